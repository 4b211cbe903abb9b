import torch

from sabr.attacks.pgd import negative_margin, pgd, strong_attack, training_attack
from sabr.bounds.boxes import ball
from sabr.networks.steps import LinearStep, ReLUStep, forward

STEPS = [0.5] * 4 + [0.05] * 3 + [0.005]


def linear():
    """Two classes; logit_0 - logit_1 = x_1 - 0.5."""
    return [LinearStep(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([-0.5, 0.0]))]


def test_it_finds_what_is_there_and_nothing_else():
    images = torch.tensor([[0.55, 0.5], [0.65, 0.5]])
    labels = torch.tensor([0, 0])
    region = ball(images, 0.1)
    found = strong_attack(
        linear(), region, labels, step_sizes=STEPS, restarts=2, loss="margin", generator=torch.Generator()
    )
    assert found.misclassified.tolist() == [True, False]
    assert (forward(linear(), found.points).argmax(1) == labels).tolist() == [False, True]


def test_points_stay_in_the_region(small_network):
    network, steps = small_network()
    images = torch.rand(16, 1, 28, 28)
    images[0], images[1] = 0, 1
    labels = network(images).argmax(1)
    region = ball(images, 0.07)
    found = strong_attack(
        steps, region, labels, step_sizes=STEPS, restarts=3, loss="margin", generator=torch.Generator().manual_seed(0)
    )
    assert (found.points >= region.lower).all() and (found.points <= region.upper).all()
    wrong = network(found.points).argmax(1) != labels
    assert torch.equal(wrong, found.misclassified)


def test_it_beats_random_points_and_more_restarts_never_hurt():
    generator = torch.Generator().manual_seed(0)
    hidden = LinearStep(torch.randn(50, 20, generator=generator), torch.zeros(50))
    last = LinearStep(torch.randn(3, 50, generator=generator), torch.zeros(3))
    steps = [hidden, ReLUStep(), last]
    images = torch.rand(200, 20, generator=generator)
    labels = forward(steps, images).argmax(1)
    region = ball(images, 0.1)

    def broken(restarts):
        generator = torch.Generator().manual_seed(0)
        return strong_attack(
            steps, region, labels, step_sizes=STEPS, restarts=restarts, loss="margin", generator=generator
        ).misclassified

    random = forward(steps, region.sample(torch.Generator().manual_seed(0))).argmax(1) != labels
    one, three = broken(1), broken(3)
    assert random.sum() < one.sum() <= three.sum() < 200
    assert (three | ~one).all()


def test_the_loss_grows_over_the_steps(small_network):
    network, steps = small_network()
    images = torch.rand(16, 1, 28, 28)
    labels = network(images).argmax(1)
    region = ball(images, 0.01)
    found = pgd(steps, region, labels, start=images, step_sizes=STEPS, loss="margin", stop_early=False)
    before = negative_margin(network(images), labels)
    after = negative_margin(network(found.points), labels)
    assert (after >= before - 1e-5).all()
    assert after.mean() > before.mean() + 1e-4


def test_equal_generators_give_equal_attacks(small_network):
    network, steps = small_network()
    images = torch.rand(8, 1, 28, 28)
    labels = network(images).argmax(1)
    region = ball(images, 0.1)

    def attack(seed):
        return training_attack(
            steps, images, region, labels, step_sizes=STEPS, generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


def test_weights_get_no_gradient(small_network):
    network, steps = small_network()
    images = torch.rand(4, 1, 28, 28)
    pgd(steps, ball(images, 0.1), torch.zeros(4, dtype=torch.long), start=images, step_sizes=STEPS)
    assert all(parameter.grad is None for parameter in network.parameters())
