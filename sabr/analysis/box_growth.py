"""How boxes grow in one simulated ReLU layer (paper, section 4: box growth)."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def simulate(
    sizes: NDArray[np.float64], *, mean: float = -1.0, deviation: float = 0.5, centres: int = 1_000_000, seed: int = 0
) -> pd.DataFrame:
    """Mean output size of y = ReLU(x) over random box centres, for each input size, with its linear extrapolation.

    A box of size s around c is [c - s/2, c + s/2]; its output size is ReLU(c + s/2) - ReLU(c - s/2), exactly. The paper
    draws c from N(-1.0, 0.5); 0.5 is read as the standard deviation. The same centres serve every size.

    Parameters
    ----------
    sizes
        Input sizes (whole widths, not radii) in increasing order, none negative, at least one positive.
    mean, deviation
        Mean and standard deviation of the box centres.
    centres
        How many centres are drawn.
    seed
        Seed of the centres.

    Returns
    -------
    pandas.DataFrame
        input_size; output_size, the mean; standard_error of that mean; linear, the extrapolation from the smallest
        positive size, whose slope tends to the share of active centres as that size tends to 0; mean, deviation,
        centres, seed.

    Raises
    ------
    ValueError
        When `sizes` are not as asked for.
    """
    if len(sizes) == 0 or sizes[0] < 0 or sizes[-1] <= 0 or (np.diff(sizes) <= 0).any():
        raise ValueError("sizes must increase, none negative, at least one positive")
    drawn = np.random.default_rng(seed).normal(mean, deviation, centres)
    means, errors = np.empty(len(sizes)), np.empty(len(sizes))
    for i, size in enumerate(sizes):
        output = np.maximum(drawn + size / 2, 0) - np.maximum(drawn - size / 2, 0)
        means[i], errors[i] = output.mean(), output.std() / np.sqrt(centres)
    smallest = int(np.argmax(sizes > 0))
    return pd.DataFrame(
        {
            "input_size": sizes,
            "output_size": means,
            "standard_error": errors,
            "linear": sizes * means[smallest] / sizes[smallest],
            "mean": mean,
            "deviation": deviation,
            "centres": centres,
            "seed": seed,
        }
    )
