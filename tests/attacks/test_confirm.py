from functools import partial

import pytest
import torch
from attacks.cases import STEPS, seeded

from sabr.attacks.search import Round, confirm, search
from sabr.bounds.boxes import Box, ball
from sabr.networks.steps import LinearStep, ReLUStep, cast, forward

QUICK = Round("margin", "largest", starts=1, diversify=(), step_sizes=STEPS)


class TestConfirm:
    unit = 2.0**-23

    def near_tie(self):
        """Logits 1 + 0.8 u and 1 + 0.6 u at (1, 1); in float32 the first loses both 0.4 u, the second rounds up."""
        u = self.unit
        return [
            LinearStep(torch.tensor([[1, 0.4 * u], [0, 1], [1, 0]]), torch.zeros(3)),
            ReLUStep(),
            LinearStep(torch.tensor([[1, 0.4 * u, 0], [0, 0.6 * u, 1]]), torch.zeros(2)),
        ]

    def test_it_rejects_what_only_float32_gets_wrong(self):
        images, labels = torch.ones(1, 2), torch.tensor([0])
        region = Box(images, images)
        attacked = search(self.near_tie(), region, labels, rounds=[QUICK], generator=seeded(), rows=1)
        assert attacked.misclassified
        steps64 = cast(self.near_tie(), torch.float64)
        exact = Box(images.double(), images.double())
        assert not confirm(partial(forward, steps64), exact, attacked.points, labels)
        assert confirm(partial(forward, steps64), exact, attacked.points, torch.tensor([1]))

    def test_points_are_moved_into_the_exact_region(self):
        # The float32 ball reaches a little too far, and only there the image is misclassified.
        image, labels = torch.tensor([[0.6, 0.9]]), torch.tensor([0])
        exact = ball(image.double(), 0.1)
        bias = -float(exact.lower[0, 0]) + 1e-9
        bias64 = torch.tensor([bias, 0], dtype=torch.float64)
        steps64 = [LinearStep(torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64), bias64)]
        outside = exact.lower - 1e-8
        assert forward(steps64, outside).argmax(1) == 1
        assert not confirm(partial(forward, steps64), exact, outside, labels)

    def test_ties_and_what_is_no_number_refute_nothing(self):
        region = Box(torch.zeros(3, 2).double(), torch.ones(3, 2).double())
        logits = torch.tensor([[1.0, 1.0], [torch.nan, 1.0], [1.0, 1.0 + 1e-15]]).double()
        logits[2, 1] = torch.nextafter(logits[2, 0], torch.tensor(2.0).double())
        found = confirm(lambda _: logits, region, torch.zeros(3, 2), torch.tensor([0, 0, 0]))
        assert found.tolist() == [False, False, True]

    def test_float32_is_refused(self):
        points, labels = torch.zeros(1, 2), torch.tensor([0])
        with pytest.raises(TypeError, match="the region is torch.float32"):
            confirm(lambda points: points, Box(points, points), points, labels)
        exact = Box(points.double(), points.double())
        with pytest.raises(TypeError, match="the network is torch.float32"):
            confirm(lambda points: points.float(), exact, points, labels)
