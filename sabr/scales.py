"""A scale in words, as titles and captions say it."""

from collections.abc import Iterable


def in_words(
    name: str,
    architectures: Iterable[str],
    train_images: Iterable[int | None],
    epochs: Iterable[int],
    images: Iterable[int],
    kind: str,
) -> str:
    """Say what was trained, and what it was judged on: "tiny: cnn-tiny, all training images, 3 epochs, first 24 ...".

    Parameters
    ----------
    name
        Of the scale.
    architectures, train_images, epochs, images
        Those of the networks in question, in any order; train_images None: all of the dataset.
    kind
        What the images were: "test images".
    """
    networks = "/".join(sorted(set(architectures)))
    return (
        f"{name}: {networks}, {_counts(train_images)} training images, {_counts(epochs)} epochs, "
        f"first {_counts(images)} {kind}"
    )


def without_images(title: str) -> str:
    """What `in_words` says without the images: for what says itself how many it took."""
    return title.rpartition(", first ")[0] or title


def _counts(counts: Iterable[int | None]) -> str:
    """In increasing order, "all" first."""
    return " / ".join(f"{count:,}" if count else "all" for count in sorted({count or 0 for count in counts}))
