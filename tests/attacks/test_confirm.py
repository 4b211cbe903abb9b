from functools import partial

import pytest
import torch
from attacks.cases import STEPS, linear, seeded

from sabr.attacks.search import Round, confirm, polish, search
from sabr.bounds.boxes import Box, ball
from sabr.bounds.interval import margins
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


class TestPolish:
    def test_the_start_counts_and_no_steps_are_needed(self):
        start = torch.tensor([[0.45, 0.9], [0.6, 0.6]])
        region = Box(torch.zeros(2, 2), torch.ones(2, 2))
        found = polish(linear(), region, torch.tensor([0, 0]), start=start, step_sizes=[])
        assert found.misclassified.tolist() == [True, False]
        assert torch.equal(found.points, start)

    def test_the_best_iterate_is_kept(self):
        # logit_1 - logit_0 = 2 relu(x) - 2 relu(2 x - 1) - 2 has its top at 1/2; a step of 1/2 overshoots it.
        hidden = LinearStep(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, -1.0]))
        steps = [hidden, ReLUStep(), LinearStep(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), torch.tensor([0.0, -2.0]))]
        region = Box(torch.zeros(1, 1), torch.ones(1, 1))
        found = polish(steps, region, torch.tensor([0]), start=torch.tensor([[0.4]]), step_sizes=[1.0])
        assert found.points.tolist() == [[pytest.approx(0.4)]]
        found = polish(steps, region, torch.tensor([0]), start=torch.tensor([[0.4]]), step_sizes=[0.2, 1.0])
        assert found.points.tolist() == [[pytest.approx(0.5)]] and not found.misclassified

    def test_it_never_gets_worse_and_several_rows_of_an_image_are_apart(self, small_network):
        _, steps = small_network()
        images = torch.rand(3, 1, 28, 28, generator=seeded()).repeat_interleave(4, 0)
        labels = forward(steps, images).argmax(1)
        region = ball(images, 0.02)
        start = region.sample(seeded())
        found = polish(steps, region, labels, start=start, step_sizes=[0.5, 0.2])
        before = margins(forward(steps, start), labels).amin(1)
        after = margins(forward(steps, found.points), labels).amin(1)
        assert (after <= before + 1e-6).all() and after.mean() < before.mean() - 1e-3
        alone = polish(
            steps, Box(region.lower[5:6], region.upper[5:6]), labels[5:6], start=start[5:6], step_sizes=[0.5, 0.2]
        )
        torch.testing.assert_close(alone.points, found.points[5:6])

    def test_no_rows(self):
        nothing = torch.zeros(0, 2)
        found = polish(linear(), Box(nothing, nothing), torch.zeros(0, dtype=torch.long), start=nothing, step_sizes=[1])
        assert found.points.shape == (0, 2) and found.misclassified.shape == (0,)
