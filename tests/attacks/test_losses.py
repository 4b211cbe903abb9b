import pytest
import torch
import torch.nn.functional as F

from sabr.attacks.losses import Aim, Gama, cross_entropy, diversity, lead, margin
from sabr.networks.steps import cast, forward, linearise


def aim(labels, targets, *, reference=None, directions=None):
    """For logits (N, S, K); what the loss at hand does not look at is not a number."""
    nothing = torch.full((len(labels), 1, targets.shape[-1]), torch.nan)
    return Aim(
        labels.unsqueeze(1),
        targets,
        targets,
        nothing if reference is None else reference,
        nothing if directions is None else directions,
    )


def wrong(labels, classes):
    return ~F.one_hot(labels, classes).bool().unsqueeze(1)


def test_margin_by_hand():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]]])
    labels = torch.tensor([0])
    assert margin(logits, aim(labels, wrong(labels, 3)), 0).tolist() == [[2.0, -1.0]]
    only_last = torch.tensor([[[False, False, True]]])
    assert margin(logits, aim(labels, only_last), 0).tolist() == [[1.0, -1.0]]
    # A target for each point.
    each = torch.tensor([[[False, True, False], [False, False, True]]])
    assert margin(logits, aim(labels, each), 0).tolist() == [[2.0, -1.0]]
    nothing = torch.zeros(1, 1, 3, dtype=torch.bool)
    assert lead(logits, labels.unsqueeze(1), nothing).tolist() == [[-torch.inf] * 2]


def test_cross_entropy_is_the_usual_one_among_the_label_and_the_targets():
    logits = 3 * torch.randn(4, 2, 5)
    labels = torch.tensor([0, 1, 3, 4])
    usual = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(2), reduction="none").view(4, 2)
    torch.testing.assert_close(cross_entropy(logits, aim(labels, wrong(labels, 5)), 0), usual)
    targets = torch.zeros(4, 1, 5, dtype=torch.bool)
    targets[..., 2] = True
    pair = torch.stack([logits.gather(2, labels.view(4, 1, 1).expand(4, 2, 1)).squeeze(2), logits[..., 2]], 2)
    expected = -pair.log_softmax(2)[..., 0]
    torch.testing.assert_close(cross_entropy(logits, aim(labels, targets), 0), expected)


def test_diversity_is_the_random_function():
    logits, directions = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    labels = torch.zeros(3, dtype=torch.long)
    value = diversity(logits, aim(labels, wrong(labels, 5), directions=directions), 0)
    torch.testing.assert_close(value, torch.einsum("nsk,nsk->ns", logits, directions))


@pytest.mark.parametrize("step", [0, 3, 40])
def test_gradient_of_gama_through_the_network_is_that_of_autograd(small_network, step):
    _, steps = small_network()
    steps = cast(steps, torch.float64)
    generator = torch.Generator().manual_seed(step)
    centres = torch.rand(3, 1, 28, 28, generator=generator, dtype=torch.float64)
    points = (centres + 0.1 * torch.randn(3, 1, 28, 28, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 4, 9])
    with torch.no_grad():
        reference = forward(steps, centres)
    p, q = forward(steps, points).softmax(1), reference.softmax(1)
    others = torch.stack([torch.cat([row[:label], row[label + 1 :]]) for row, label in zip(p, labels, strict=True)])
    expected = others.amax(1) - p[range(3), labels] + 10 * 0.9**step * ((p - q) ** 2).sum(1)
    (gradient,) = torch.autograd.grad(expected.sum(), points)

    logits, pull = linearise(steps, points.detach())
    logits.requires_grad_()
    values = Gama()(logits.unsqueeze(1), aim(labels, wrong(labels, 10), reference=reference.unsqueeze(1)), step)
    torch.testing.assert_close(values.squeeze(1), expected)
    found = pull(torch.autograd.grad(values.sum(), logits)[0])
    torch.testing.assert_close(found, gradient)
    assert found.abs().max() > 0


def test_the_guide_of_gama_fades():
    labels = torch.tensor([0])
    logits, reference = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 2.0]]])
    goal = aim(labels, wrong(labels, 3), reference=reference)
    bare = lead(logits.softmax(-1), goal.labels, goal.targets)
    distances = [Gama(weight=4, decay=0.5)(logits, goal, step) - bare for step in range(3)]
    torch.testing.assert_close(distances[0], 2 * distances[1])
    torch.testing.assert_close(distances[1], 2 * distances[2])
    torch.testing.assert_close(Gama()(logits, goal, 500), bare)


def test_a_part_of_an_aim():
    labels = torch.tensor([0, 1, 2])
    goal = aim(labels, wrong(labels, 3), reference=torch.randn(3, 1, 3), directions=torch.randn(3, 2, 3))
    part = goal.of(torch.tensor([False, True, True]))
    assert part.labels.tolist() == [[1], [2]]
    assert torch.equal(part.directions, goal.directions[1:])
    assert torch.equal(part.of(torch.tensor([1])).reference, goal.reference[2:])
