from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from sabr.data.batches import TrainingBatches, evaluation_images, flipped_crops
from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.settings import DATASETS


def random_split(dataset, count=50):
    generator = torch.Generator().manual_seed(1)
    shape = (count, dataset.channels, dataset.stored_size, dataset.stored_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count))  # the label tells which image it was


def batches(name, batch_size=8, seed=0, count=50):
    dataset = DATASETS[name]
    return TrainingBatches(random_split(dataset, count), dataset, batch_size, seed, "cpu")


def equal(some, others):
    return all(torch.equal(a, b) for pair in zip(some, others, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("name", DATASETS)
def test_shapes_types_and_range(name):
    made = batches(name)
    epoch = list(made.epoch())
    assert len(made) == len(epoch) == 6  # 50 images: the last 2 are dropped
    for images, labels in epoch:
        assert images.shape == (8, *DATASETS[name].shape) and images.dtype == torch.float32
        assert labels.shape == (8,) and labels.dtype == torch.int64
    images = torch.cat([images for images, _ in epoch])
    assert images.min() == 0 and images.max() == 1
    assert len({int(label) for _, labels in epoch for label in labels}) == 48


def test_exact_multiple_keeps_all():
    labels = torch.cat([labels for _, labels in batches("mnist", batch_size=10).epoch()])
    assert labels.sort().values.tolist() == list(range(50))
    assert labels.tolist() != list(range(50))


@pytest.mark.parametrize("batch_size", [0, 51])
def test_unsuitable_batch_size_is_refused(batch_size):
    with pytest.raises(SabrError, match="between 1 and 50"):
        batches("mnist", batch_size=batch_size)


@pytest.mark.parametrize("name", DATASETS)
def test_equal_seeds_equal_batches(name):
    one, two, other = batches(name, seed=3), batches(name, seed=3), batches(name, seed=4)
    first = list(one.epoch())
    assert equal(first, two.epoch())
    assert not equal(first, other.epoch())
    assert not equal(first, one.epoch())  # the next epoch is shuffled anew


def test_the_global_generator_does_not_matter():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches("cifar10").epoch())
    assert torch.equal(torch.get_rng_state(), before)


def test_state_and_restore():
    made = batches("cifar10")
    list(made.epoch())
    state = made.state()
    expected = list(made.epoch())
    fresh = batches("cifar10", seed=99)
    fresh.restore(state)
    assert equal(expected, fresh.epoch())
    assert state.dtype == torch.uint8


def test_mnist_is_not_augmented():
    split = random_split(DATASETS["mnist"])
    for images, labels in batches("mnist").epoch():
        assert torch.equal(images, split.images[labels].float() / 255)


@pytest.mark.parametrize(("padding", "size"), [(0, 9), (2, 9), (3, 5)])
def test_flip_and_crop_against_padding_each_image(padding, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 9, 9, generator=generator)
    rows = torch.randint(20, (200,), generator=generator)
    flips = torch.rand(200, generator=generator) < 0.5
    corners = torch.randint(9 + 2 * padding - size + 1, (200, 2), generator=generator) - padding
    found = flipped_crops(images, rows, flips, corners, size)
    for i in range(200):
        image = images[rows[i]].flip(-1) if flips[i] else images[rows[i]]
        padded = pad(image[None], (padding,) * 4, mode="replicate")[0]
        top, left = (corners[i] + padding).tolist()
        assert torch.equal(found[i], padded[:, top : top + size, left : left + size])


@pytest.mark.parametrize("name", ["cifar10", "tinyimagenet"])
def test_every_flip_and_corner_occurs_equally_often(name):
    """Each training image is one of the naive augmentations of its original, and each of these is as likely."""
    dataset = replace(DATASETS[name], stored_size=8, size=6 if name == "tinyimagenet" else 8)
    split = random_split(dataset, 4)
    padded = pad(split.images.float() / 255, (dataset.padding,) * 4, mode="replicate")
    room = 8 + 2 * dataset.padding - dataset.size + 1
    flipped = pad(split.images.float().flip(-1) / 255, (dataset.padding,) * 4, mode="replicate")
    counts = torch.zeros(2, room, room)
    made = TrainingBatches(split, dataset, 4, 0, "cpu")
    epochs = 50 * room * room // 2
    for _ in range(epochs):
        for images, labels in made.epoch():
            windows = (
                torch.stack([padded[labels], flipped[labels]]).unfold(3, dataset.size, 1).unfold(4, dataset.size, 1)
            )
            same = (windows == images[None, :, :, None, None]).all(-1).all(-1).all(2)
            assert (same.flatten(2).sum((0, 2)) == 1).all()
            counts += same.sum(1)
    expected = 4 * epochs / counts.numel()
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize("name", DATASETS)
def test_evaluation_images(name):
    dataset = DATASETS[name]
    split = random_split(dataset)
    images, labels = evaluation_images(split, dataset, slice(10, 14), "cpu")
    assert images.shape == (4, *dataset.shape) and images.dtype == torch.float32
    assert labels.tolist() == [10, 11, 12, 13]
    edge = {"mnist": 0, "cifar10": 0, "tinyimagenet": 4}[name]
    end = dataset.stored_size - edge
    assert torch.equal(images, split.images[10:14, :, edge:end, edge:end].float() / 255)
    for chosen in ([3, 1], torch.tensor([3, 1])):
        some, some_labels = evaluation_images(split, dataset, chosen, "cpu")
        assert some_labels.tolist() == [3, 1]
        assert torch.equal(some[1], evaluation_images(split, dataset, slice(1, 2), "cpu")[0][0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_equal_batches_on_the_gpu():
    dataset = DATASETS["cifar10"]
    gpu = TrainingBatches(random_split(dataset), dataset, 8, 0, "cuda")
    assert equal(batches("cifar10").epoch(), [(images.cpu(), labels.cpu()) for images, labels in gpu.epoch()])
