from dataclasses import replace
from functools import partial

import pytest
import torch
from attacks.cases import STEPS, hard_instance, linear, random_net, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabr.attacks import search as module
from sabr.attacks.losses import diversity
from sabr.attacks.search import MN_BAB, Move, Round, climb, confirm, rows_within, search, uniform_starts
from sabr.bounds.boxes import Box, ball
from sabr.bounds.interval import margins
from sabr.networks.steps import LinearStep, ReLUStep, SumStep, cast, forward

QUICK = Round("margin", "largest", starts=1, diversify=(), step_sizes=STEPS)
STRONG = tuple(Round(loss, "each", starts=6, diversify=(1.0,) * 3, step_sizes=STEPS) for loss in ("margin", "gama"))
ALL = (*STRONG, QUICK, replace(QUICK, loss="cross_entropy", starts=2))


def test_it_finds_what_an_exact_solver_says_is_there():
    found = []
    for seed in range(20):
        refutable, robust, box, labels, worst = hard_instance(seed)
        attacked = search(refutable, box, labels, rounds=MN_BAB, generator=seeded(seed), rows=250)
        found.append(bool(attacked.misclassified))
        assert found[-1] == bool(forward(refutable, attacked.points).argmax(1) != labels)
        assert found[-1] == bool(confirm(partial(forward, refutable), box, attacked.points, labels))
        # Where there is nothing, nothing is found, but the worst point comes near the optimum from above.
        attacked = search(robust, box, labels, rounds=STRONG, generator=seeded(seed), rows=250)
        assert not attacked.misclassified
        least = margins(forward(robust, worst), labels).amin()
        assert margins(forward(robust, attacked.points), labels).amin() >= least - 1e-4
    assert sum(found) >= 0.95 * len(found)


def test_it_beats_random_points_and_more_starts_never_hurt():
    steps = cast(random_net(0, (20, 50, 3)), torch.float32)
    images = torch.rand(200, 20, generator=seeded())
    labels = forward(steps, images).argmax(1)
    region = ball(images, 0.05)

    def broken(starts):
        rounds = [replace(QUICK, starts=starts)]
        return search(steps, region, labels, rounds=rounds, generator=seeded(), rows=200).misclassified

    random = forward(steps, region.sample(seeded())).argmax(1) != labels
    one, four = broken(1), broken(4)
    assert random.sum() < one.sum() <= four.sum() < 200
    assert (four | ~one).all()


@pytest.mark.parametrize("round_", ALL, ids=lambda round_: f"{round_.loss}-{round_.targets}")
def test_by_hand(round_):
    # Class 1 wins within reach of the first image, class 2 within reach of the second, none within that of the third.
    images = torch.tensor([[0.55, 0.8], [0.8, 0.55], [0.8, 0.8]])
    labels = torch.tensor([0, 0, 0])
    region = ball(images, 0.1)
    found = search(linear(), region, labels, rounds=[round_], generator=seeded(), rows=7)
    assert found.misclassified.tolist() == [True, True, False]
    assert forward(linear(), found.points).argmax(1).tolist() == [1, 2, 0]
    # The one that resists is shown at its worst.
    assert margins(forward(linear(), found.points), labels)[2].amin() == pytest.approx(0.2, abs=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-7, 0.05, 0.4, 2.0]),
    st.integers(1, 40),
    st.lists(st.sampled_from(ALL), min_size=0, max_size=3),
)
def test_points_stay_in_the_region(seed, radius, rows, rounds):
    steps = cast(random_net(seed, (5, 12, 4)), torch.float32)
    images = torch.rand(6, 5, generator=seeded(seed))
    images[0], images[1], images[2, ::2] = 0, 1, 1
    labels = torch.randint(4, (6,), generator=seeded(seed))
    region = ball(images, radius)
    found = search(steps, region, labels, rounds=rounds, generator=seeded(seed), rows=rows)
    assert (found.points >= region.lower).all() and (found.points <= region.upper).all()
    least = margins(forward(steps, found.points), labels).amin(1)
    clear = least.abs() > 1e-4
    assert torch.equal((least < 0)[clear], found.misclassified[clear])


def test_images_with_batch_norm_and_borders(small_network):
    network, steps = small_network()
    images = torch.rand(12, 1, 28, 28, generator=seeded())
    images[0], images[1] = 0, 1
    labels = network(images).argmax(1)
    region = ball(images, 0.3)
    found = search(steps, region, labels, rounds=ALL, generator=seeded(), rows=20)
    assert (found.points >= region.lower).all() and (found.points <= region.upper).all()
    assert 0 < found.misclassified.sum() < 12
    with torch.no_grad():
        least = margins(network(found.points), labels).amin(1)
    clear = least.abs() > 1e-5
    assert clear.sum() > 9 and torch.equal((least < 0)[clear], found.misclassified[clear])
    confirmed = confirm(network.double(), ball(images.double(), 0.3), found.points, labels)
    assert torch.equal(confirmed[clear], found.misclassified[clear])


def test_diversified_starts_are_inside_and_diverse(small_network):
    _, steps = small_network()
    images = torch.rand(4, 1, 28, 28, generator=seeded())
    region = ball(images, 0.05)
    part = Box(region.lower.unsqueeze(1), region.upper.unsqueeze(1))
    start = uniform_starts(part, 30, seeded())
    assert start.shape == (4, 30, 1, 28, 28)
    assert (start >= part.lower).all() and (start <= part.upper).all()

    visited = []
    original = module.linearise

    def watching(steps, points):
        visited.append(points)
        return original(steps, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "linearise", watching)
        nothing = torch.zeros(4, 1, 10, dtype=torch.bool)  # no class refutes: all points go all the way
        goal = module.Aim(
            torch.zeros(4, 1, dtype=torch.long),
            nothing,
            nothing,
            torch.zeros(4, 1, 10),
            torch.rand(4, 30, 10, generator=seeded()) * 2 - 1,
        )
        moves = [Move(diversity, number, 1.0) for number in range(5)]
        climb(steps, part, goal, start=start, moves=moves)
    end = visited[-1].view_as(start)
    assert (end >= part.lower).all() and (end <= part.upper).all()
    assert torch.equal(visited[0].view_as(start), start)

    def logits(points):
        return forward(steps, points.flatten(0, 1)).view(4, 30, 10)

    assert (diversity(logits(end), goal, 0) > diversity(logits(start), goal, 0)).all()
    assert (logits(end).std(1) > 3 * logits(start).std(1)).all()


def test_equal_seeds_give_equal_attacks(small_network):
    _, steps = small_network()
    images = torch.rand(8, 1, 28, 28, generator=seeded())
    labels = forward(steps, images).argmax(1)
    region = ball(images, 0.03)

    def attack(seed):
        return search(steps, region, labels, rounds=STRONG, generator=seeded(seed), rows=30)

    one, again, other = attack(1), attack(1), attack(2)
    assert torch.equal(one.points, again.points) and torch.equal(one.misclassified, again.misclassified)
    assert not torch.equal(one.points, other.points)


@pytest.fixture
def aims(monkeypatch):
    """What the calls of `climb` from now on are after, in order."""
    seen = []
    original = module.climb

    def watching(steps, region, aim, **kwargs):
        seen.append(aim)
        return original(steps, region, aim, **kwargs)

    monkeypatch.setattr(module, "climb", watching)
    return seen


@pytest.mark.parametrize("rows, passes", [(1, [1] * 5), (3, [1, 3, 1]), (5, [1, 4]), (100, [1, 4])])
def test_classes_take_turns_from_the_nearest_on(aims, rows, passes):
    images = torch.tensor([[0.9, 0.8]])
    rounds = [replace(QUICK, targets="each", starts=5)]
    search(linear(), ball(images, 0.1), torch.tensor([0]), rounds=rounds, generator=seeded(), rows=rows)
    assert [aim.targets.shape[1] for aim in aims] == passes
    turns = torch.cat([aim.targets for aim in aims], 1)
    assert turns.sum(2).tolist() == [[1] * 5]
    assert turns.int().argmax(2).tolist() == [[2, 1, 2, 1, 2]]


def test_directions_are_uniform_and_each_point_has_its_own(aims):
    images = torch.full((2, 2), 0.9)
    rounds = [replace(QUICK, starts=500)]
    search(linear(), ball(images, 0.1), torch.tensor([0, 0]), rounds=rounds, generator=seeded(), rows=1000)
    directions = torch.cat([aim.directions for aim in aims], 1)
    assert directions.shape == (2, 500, 3)
    assert directions.min() == pytest.approx(-1, abs=0.01) and directions.max() == pytest.approx(1, abs=0.01)
    assert directions.mean() == pytest.approx(0, abs=0.05)
    assert len(directions.unique()) > 2900


class TestOpenMargins:
    images = torch.tensor([[0.55, 0.55]] * 4)
    labels = torch.tensor([0, 0, 0, 0])
    open_margins = torch.tensor([[True, True], [True, False], [False, True], [False, False]])

    def found(self, rounds):
        region = ball(self.images, 0.1)
        return search(
            linear(), region, self.labels, rounds=rounds, generator=seeded(), rows=9, open_margins=self.open_margins
        )

    @pytest.mark.parametrize("round_", ALL, ids=lambda round_: f"{round_.loss}-{round_.targets}")
    def test_only_open_classes_refute(self, round_):
        found = self.found([round_])
        assert found.misclassified.tolist() == [True, True, True, False]
        leads = margins(forward(linear(), found.points), self.labels)
        assert leads[1, 0] < 0 and leads[2, 1] < 0
        assert torch.equal(found.points[3], self.images[3])

    def test_only_open_classes_are_targets(self, aims):
        self.found([replace(QUICK, targets="each", starts=3)])
        assert aims
        for aim in aims:
            assert not (aim.targets & ~aim.open).any()
            assert (aim.targets.sum(2) == 1).all()
        # Of the first image either class, of the next two the one that is open; the last is left alone.
        first, *others = aims[0].targets.squeeze(1).int().argmax(1).tolist()
        assert first in (1, 2) and others == [1, 2]


def test_refuted_images_leave_and_stay_refuted(small_network, monkeypatch):
    network, steps = small_network()
    images = torch.rand(10, 1, 28, 28, generator=seeded())
    labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10  # wrong without an attack
    region = ball(images, 0.3)
    passes = []
    original = module.linearise

    def watching(steps, points):
        passes.append(len(points))
        return original(steps, points)

    monkeypatch.setattr(module, "linearise", watching)
    previous = first = None
    for count in range(len(ALL) + 1):
        passes.clear()
        found = search(steps, region, labels, rounds=ALL[:count], generator=seeded(), rows=25)
        assert max(passes) <= 25
        if previous is None:
            assert found.misclassified.tolist() == [True] + [False] * 9 and passes == [10]
        else:
            old = previous.misclassified
            assert (found.misclassified | ~old).all()
            assert torch.equal(found.points[old], previous.points[old])
            # Those that resist are never shown at a milder point than before.
            now, before = (
                margins(forward(steps, points), labels).amin(1) for points in (found.points, previous.points)
            )
            assert (now <= before + 1e-6).all()
        previous, first = found, first or found
    assert first.misclassified.sum() < previous.misclassified.sum() < 10
    # All are refuted: the centres are looked at, and nothing else.
    passes.clear()
    wrong = (forward(steps, region.centre).argmax(1) + 1) % 10
    assert search(steps, region, wrong, rounds=ALL, generator=seeded(), rows=25).misclassified.all()
    assert passes == [10]


def test_an_image_leaves_at_the_step_that_refutes_it(monkeypatch):
    passes = []
    original = module.linearise

    def watching(steps, points):
        passes.append(len(points))
        return original(steps, points)

    monkeypatch.setattr(module, "linearise", watching)
    images = torch.tensor([[0.55, 0.8], [0.8, 0.8]])
    rounds = [replace(QUICK, step_sizes=(0.001, 2.0, 0.1))]
    search(linear(), ball(images, 0.1), torch.tensor([0, 0]), rounds=rounds, generator=seeded(0), rows=6)
    # The centres; the starts; after the first step; after the second, which refutes one; after the third.
    assert passes == [2, 2, 2, 2, 1]


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("images", [0, 1])
def test_few_images_and_classes(images, classes):
    last = linear()[0]
    steps = [LinearStep(last.weight[:classes], last.bias[:classes])]
    region = ball(torch.full((images, 2), 0.55), 0.1)
    labels = torch.zeros(images, dtype=torch.long)
    found = search(steps, region, labels, rounds=ALL, generator=seeded(), rows=1)
    assert found.points.shape == (images, 2)
    assert found.misclassified.tolist() == [classes > 1] * images
    exact = Box(region.lower.double(), region.upper.double())
    confirmed = confirm(partial(forward, cast(steps, torch.float64)), exact, found.points, labels)
    assert confirmed.tolist() == [classes > 1] * images


def test_weights_get_no_gradient(small_network):
    network, steps = small_network()
    images = torch.rand(2, 1, 28, 28)
    search(steps, ball(images, 0.01), network(images).argmax(1), rounds=STRONG, generator=seeded(), rows=4)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_rows_within_a_memory_limit():
    steps = linear()
    region = Box(torch.zeros(4, 2), torch.ones(4, 2))
    # 6 times the point and 2 times the three logits, 4 bytes each.
    assert rows_within(steps, region, 72e-6) == 1
    assert rows_within(steps, region, 0.0072) == 100
    assert rows_within(steps, region, 0) == 1
    block = [SumStep(((LinearStep(torch.eye(2), torch.zeros(2)), ReLUStep()), ())), *steps]
    assert rows_within(block, region, 120e-6) == 1 < rows_within(block, region, 240e-6) == 2


def test_the_published_protocol():
    starts = [round_.starts for round_ in MN_BAB]
    assert starts == [250, 250, 50]
    assert [round_.loss for round_ in MN_BAB] == ["margin", "gama", "margin"]
    assert [len(round_.moves) for round_ in MN_BAB] == [60, 60, 50]
    assert sum(MN_BAB[0].step_sizes) == pytest.approx(5 + 0.3 + 0.01 + 0.001)
