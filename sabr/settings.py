"""The vocabulary of the paper: which datasets and networks there are, before anything is read or built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before a byte of it is read.

    Attributes
    ----------
    name
        Name used in configuration, file names and on the command line.
    classes
        Number of classes.
    channels, stored_size
        Images are stored as ``channels x stored_size x stored_size`` bytes.
    size
        Height and width of what a network sees, after cropping.
    train_images, test_images
        Images in each split; for TinyImageNet the validation images serve as test set, as in the literature.
    mean, std
        Per channel, in [0, 1] pixel units; applied inside the network. None: images are used as they are.
    flip
        Training images are flipped left to right with probability 1/2.
    padding
        Training images are padded by this many edge pixels before a random crop to ``size``.
    """

    name: str
    classes: int
    channels: int
    stored_size: int
    size: int
    train_images: int
    test_images: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool = False
    padding: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as a network sees it: channels, height, width."""
        return (self.channels, self.size, self.size)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("mnist", 10, 1, 28, 28, 60_000, 10_000),
        Dataset(
            "cifar10",
            10,
            3,
            32,
            32,
            50_000,
            10_000,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            flip=True,
            padding=2,
        ),
        Dataset(
            "tinyimagenet",
            200,
            3,
            64,
            56,
            100_000,
            10_000,
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2302, 0.2265, 0.2262),
            flip=True,
        ),
    )
}


@dataclass(frozen=True)
class Convolution:
    """One convolution of an architecture: output channels and square kernel, stride and zero padding in pixels."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Architecture:
    """Convolutions, then hidden linear layers by width, all with batch norm and ReLU; a linear layer ends it."""

    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...]


def _cnn7(channels: tuple[int, int, int, int, int], hidden: int) -> Architecture:
    """CNN7 of the paper (appendix C): the third of five 3x3 convolutions has stride 2."""
    strides = (1, 1, 2, 1, 1)
    return Architecture(tuple(Convolution(c, stride=s) for c, s in zip(channels, strides, strict=True)), (hidden,))


ARCHITECTURES = {
    "cnn7": _cnn7((64, 64, 128, 128, 128), 512),
    "cnn7-narrow": _cnn7((32, 32, 64, 64, 64), 216),
    "cnn7-wide": _cnn7((96, 96, 192, 192, 192), 512),
    # The medium network of Gowal et al. (2018), with batch norm.
    "cnn-medium": Architecture(
        (Convolution(32), Convolution(32, 4, 2), Convolution(64), Convolution(64, 4, 2)), (512, 512)
    ),
    "cnn-small": Architecture((Convolution(16, 4, 2), Convolution(32, 4, 2)), (100,)),
    "cnn-small-narrow": Architecture((Convolution(8, 4, 2), Convolution(16, 4, 2)), (50,)),
    "cnn-small-wide": Architecture((Convolution(32, 4, 2), Convolution(64, 4, 2)), (200,)),
    "cnn-tiny": Architecture((Convolution(8, 4, 2), Convolution(8, 4, 2)), (32,)),
}
