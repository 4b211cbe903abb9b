import torch

from sabr.attacks.pgd import cross_entropy, pgd, training_attack
from sabr.bounds.boxes import ball

STEPS = [0.5] * 4 + [0.05] * 3 + [0.005]


def test_the_loss_grows_over_the_steps(small_network):
    network, steps = small_network()
    images = torch.rand(16, 1, 28, 28)
    labels = network(images).argmax(1)
    region = ball(images, 0.01)
    found = pgd(steps, region, labels, start=images, step_sizes=STEPS, stop_early=False)
    before = cross_entropy(network(images), labels)
    after = cross_entropy(network(found.points), labels)
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
