"""What the paper's studies measure on trained networks: typed and validated."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from sabr.methods import Strict


class Studies(Strict):
    """How much each study of a trained network measures.

    Attributes
    ----------
    images
        The first of the test set.
    lambda_ratios
        Sizes of the propagated box, in units of eps, of the loss against lambda; 0 is the point alone.
    eps_factors
        Radii of the accuracy against eps, in units of the setting's.
    memory_mb
        What the tensors of a batch may take, roughly.
    """

    images: PositiveInt
    lambda_ratios: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=2)
    eps_factors: tuple[PositiveFloat, ...] = Field(min_length=2)
    memory_mb: PositiveInt
