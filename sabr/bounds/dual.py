"""Lower bounds of a network over boxes, by linear relaxation with given slopes and multipliers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.crown import relax as triangle
from sabr.kernels import kernel

# At ReLU layer `number`, of the outputs' coefficients (N, Q, U): the inputs' ones, and what the constant gains, (N, Q).
AtReLUBackward = Callable[[int, Tensor], tuple[Tensor, Tensor]]
# At ReLU layer `number`, of the inputs (N, Q, U): the outputs.
AtReLUForward = Callable[[int, Tensor], Tensor]


class Layer(NamedTuple):
    """The unstable ReLUs of one layer, of N images; images with fewer than U are filled up.

    Attributes
    ----------
    rows
        (N, U, W) the ReLUs' inputs y as functions: columns are the D entries of the input, the constant, and the
        outputs z of each layer before.
    lower, upper
        (N, U) bounds of y; -1 and 1 where `real` is false.
    real
        (N, U) false for filling, whose rows are zero.
    places
        (N, U) flat places (`sabr.bounds.rows.flat`) in the layer.
    """

    rows: Tensor
    lower: Tensor
    upper: Tensor
    real: Tensor
    places: Tensor


class Problem(NamedTuple):
    """Minimise functions of N networks, each over its box.

    Attributes
    ----------
    box
        (N, D) ends of the boxes.
    layers
        The unstable ReLUs.
    objective
        (N, Q, W) Q functions of each, in the columns of a layer behind all others.
    """

    box: Box
    layers: list[Layer]
    objective: Tensor

    @property
    def bytes(self) -> int:
        """Memory of the matrices."""
        return sum(t.numel() * t.element_size() for t in (self.objective, *(layer.rows for layer in self.layers)))

    @property
    def bytes_of_a_query(self) -> int:
        """Memory that optimising one query of one image takes, roughly."""
        return 10 * self.objective.shape[2] * self.objective.element_size()

    @property
    def columns(self) -> list[slice]:
        """Where each layer's outputs stand in a row."""
        result, start = [], self.box.lower.shape[1] + 1
        for layer in self.layers:
            result.append(slice(start, start + layer.lower.shape[1]))
            start = result[-1].stop
        return result

    def pull(self, at_relu: AtReLUBackward) -> tuple[Tensor, Tensor]:
        """The objective as a linear function of the input, (N, Q, D) and (N, Q), last ReLU layer first."""
        size = self.box.lower.shape[1]
        row = self.objective.clone()
        for number, (layer, columns) in reversed(list(enumerate(zip(self.layers, self.columns, strict=True)))):
            down, constant = at_relu(number, row[..., columns])
            row[..., size] += constant
            row[..., : columns.start] += torch.bmm(down, layer.rows)
        return row[..., :size], row[..., size]

    def push(self, points: Tensor, at_relu: AtReLUForward) -> Tensor:
        """The objective (N, Q) at points (N, Q, D) of the boxes, taken through the network first ReLU layer first."""
        size = self.box.lower.shape[1]
        values = self.objective.new_empty(self.objective.shape)
        values[..., :size] = points
        values[..., size] = 1
        for number, (layer, columns) in enumerate(zip(self.layers, self.columns, strict=True)):
            y = torch.bmm(values[..., : columns.start], layer.rows.transpose(1, 2))
            values[..., columns] = at_relu(number, y)
        return (values * self.objective).sum(2)

    def inner(self, number: int, weight: Tensor) -> "Problem":
        """Minimise, instead, weight @ y for the inputs y of one layer's ReLUs: weight is (N, Q, U)."""
        return Problem(self.box, self.layers[:number], torch.bmm(weight, self.layers[number].rows))

    def offsets(self) -> list[Tensor]:
        """What each ReLU's input is where the network's input and all ReLUs' outputs are 0, (N, U) for each layer."""
        size = self.box.lower.shape[1]
        return [layer.rows[..., size] for layer in self.layers]

    def part(self, places: Tensor, dim: int) -> "Problem":
        """Some of the images (dim 0), or of all images' queries (dim 1)."""
        own = self._replace(objective=self.objective.index_select(dim, places))
        if dim:
            return own
        layers = [Layer(*(field.index_select(0, places) for field in layer)) for layer in self.layers]
        return own._replace(box=Box(*(end.index_select(0, places) for end in self.box)), layers=layers)


class Neurons(Protocol):
    """The unstable ReLUs of one layer, as in `Layer`, without their rows."""

    @property
    def lower(self) -> Tensor: ...  # noqa: D102
    @property
    def upper(self) -> Tensor: ...  # noqa: D102
    @property
    def real(self) -> Tensor: ...  # noqa: D102
    @property
    def places(self) -> Tensor: ...  # noqa: D102


class Relaxable(Protocol):
    """What bounds ask of a network over boxes, condensed (`Problem`) or not (`sabr.bounds.unrolled.Unrolled`).

    `pull` and `push` may leave out layers that the objective does not see.
    """

    @property
    def box(self) -> Box: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[Neurons]: ...  # noqa: D102
    @property
    def objective(self) -> Tensor: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def bytes_of_a_query(self) -> int: ...  # noqa: D102
    def pull(self, at_relu: AtReLUBackward) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def push(self, points: Tensor, at_relu: AtReLUForward) -> Tensor: ...  # noqa: D102
    def inner(self, number: int, weight: Tensor) -> "Relaxable": ...  # noqa: D102
    def offsets(self) -> list[Tensor]: ...  # noqa: D102
    def part(self, places: Tensor, dim: int) -> "Relaxable": ...  # noqa: D102


class Cuts(NamedTuple):
    """Linear constraints on groups of ReLUs of one layer: sum of y_weight * y + z_weight * z over a group <= limit.

    Attributes
    ----------
    members
        (N, C, G) numbers of each group's ReLUs in the layer.
    y_weight, z_weight
        (N, C, G); zero for filling.
    limit
        (N, C)
    """

    members: Tensor
    y_weight: Tensor
    z_weight: Tensor
    limit: Tensor


@dataclass(frozen=True)
class Lines:
    """How each of Q queries relaxes each ReLU z = max(y, 0) of one layer, all (N, 1 or Q, U).

    z is between alpha * y, with alpha free in [0, 1] where `free`, and upper_slope * y + upper_offset. Where a ReLU is
    split, `sign` is 1 for y >= 0 and -1 for y <= 0, which has a multiplier; else it is 0.
    """

    alpha: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    free: Tensor
    sign: Tensor | None


@dataclass(frozen=True)
class Multipliers:
    """What is optimised: slopes alpha (N, Q, U) in [0, 1] of each layer, and multipliers, all at least 0.

    beta belongs to splits, (N, Q, U) of each layer; mu to cuts, (N, Q, C) of each layer. None: there are none.
    """

    alpha: list[Tensor]
    beta: list[Tensor] | None = None
    mu: list[Tensor | None] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Multipliers":
        """Apply a function to each tensor."""
        return Multipliers(
            [function(t) for t in self.alpha],
            None if self.beta is None else [function(t) for t in self.beta],
            None if self.mu is None else [None if t is None else function(t) for t in self.mu],
        )


def relax(lower: Tensor, upper: Tensor, sign: Tensor | None = None) -> Lines:
    """The triangle over l <= y <= u, or the one linear piece where a ReLU is stable or split; any broadcast shapes.

    alpha starts as the adaptive slope.
    """
    if sign is not None:
        # A ReLU that is split is stable, whatever its bounds say.
        lower, upper = (torch.where(sign == 0, end, sign.to(end.dtype)) for end in (lower, upper))
    line = triangle(Box(lower, upper))
    return Lines(line.lower_slope, line.upper_slope, line.upper_offset, (lower < 0) & (upper > 0), sign)


def lines_of(problem: Relaxable, splits: Sequence[Tensor] | None = None) -> list[Lines]:
    """How each layer is relaxed, by its own bounds; `splits`: for each layer (N, Q, U), -1, 0 or 1."""
    signs = [None] * len(problem.layers) if splits is None else list(splits)
    return [
        relax(layer.lower.unsqueeze(1), layer.upper.unsqueeze(1), sign)
        for layer, sign in zip(problem.layers, signs, strict=True)
    ]


class Passed(NamedTuple):
    """What one pass from the objective to the input gives.

    Attributes
    ----------
    lower
        (N, Q) lower bounds, sound in exact arithmetic whatever the slopes and multipliers are, if they are in range.
    coefficients
        For each layer (N, Q, U): what the bound's linear function weighs the ReLUs' outputs with.
    point
        (N, Q, D) where in the box that function is least: a place to look for a counterexample.
    """

    lower: Tensor
    coefficients: list[Tensor]
    point: Tensor


def start_of(problem: Relaxable, lines: Sequence[Lines], cuts: Sequence[Cuts | None] | None = None) -> Multipliers:
    """Adaptive slopes and all multipliers 0; beta only where something is split."""
    count, queries, _ = problem.objective.shape
    alpha = [line.alpha.expand(count, queries, -1).clone() for line in lines]
    beta = [torch.zeros_like(a) for a in alpha] if any(line.sign is not None for line in lines) else None
    mu = None
    if cuts is not None:
        mu = [None if cut is None else problem.objective.new_zeros(count, queries, cut.limit.shape[1]) for cut in cuts]
    return Multipliers(alpha, beta, mu)


def projected(multipliers: Multipliers, lines: Sequence[Lines]) -> Multipliers:
    """The nearest multipliers in range; slopes that are not free are what they must be."""
    alpha = [
        torch.where(line.free, a.clamp(0, 1), line.upper_slope)
        for a, line in zip(multipliers.alpha, lines, strict=True)
    ]
    rest = Multipliers([], multipliers.beta, multipliers.mu).map(lambda t: t.clamp(min=0))
    return Multipliers(alpha, rest.beta, rest.mu)


def bound(problem: Relaxable, lines: Sequence[Lines] | None = None) -> Tensor:
    """Lower bounds (N, Q) of the objective with the adaptive slopes: CROWN (Zhang et al. 2018); exact arithmetic."""
    lines = lines_of(problem) if lines is None else lines
    return backward(problem, lines, Multipliers([line.alpha for line in lines])).lower


def backward(
    problem: Relaxable, lines: Sequence[Lines], multipliers: Multipliers, cuts: Sequence[Cuts | None] | None = None
) -> Passed:
    """Lower bounds of the objective by one pass from it to the input.

    Each layer's outputs z are replaced by alpha y where they are weighed positively and by their upper line elsewhere;
    a split adds beta * -sign * y, which is at most 0 where the split holds, and a cut mu * (its left side - limit),
    likewise (Lagrange multipliers: Wang et al. 2021, Ferrari et al. 2022). What is left is linear in the input.
    """
    coefficients: dict[int, Tensor] = {}

    def at_relu(number: int, own: Tensor) -> tuple[Tensor, Tensor]:
        line = lines[number]
        cut = None if cuts is None else cuts[number]
        mu = None if multipliers.mu is None else multipliers.mu[number]
        if cut is not None and mu is not None:
            own = own + _spread(mu, cut.z_weight, cut, own.shape[2])
        coefficients[number] = own
        down, constant = _weighed(own, multipliers.alpha[number], line.upper_slope, line.upper_offset)
        if line.sign is not None and multipliers.beta is not None:
            down = down - line.sign * multipliers.beta[number]
        if cut is not None and mu is not None:
            down = down + _spread(mu, cut.y_weight, cut, own.shape[2])
            constant = constant - (mu * cut.limit.unsqueeze(1)).sum(2)
        return down, constant

    row, constant = problem.pull(at_relu)
    point = torch.where(row > 0, problem.box.lower.unsqueeze(1), problem.box.upper.unsqueeze(1))
    lower = constant + (row * point).sum(2)
    every = [
        coefficients[number] if number in coefficients else torch.zeros_like(multipliers.alpha[number])
        for number in range(len(lines))
    ]
    return Passed(lower, every, point)


def gradient(
    problem: Relaxable,
    lines: Sequence[Lines],
    multipliers: Multipliers,
    passed: Passed,
    cuts: Sequence[Cuts | None] | None = None,
) -> Multipliers:
    """A supergradient of the lower bounds: the relaxed network, evaluated where each linear function is least.

    Parameters
    ----------
    problem, lines, multipliers, cuts
        As they were in `backward`.
    passed
        What that gave.
    """
    alpha = [torch.zeros_like(a) for a in multipliers.alpha]
    beta = [torch.zeros_like(a) for a in multipliers.alpha]
    mu: list[Tensor | None] = [None] * len(alpha)

    def at_relu(number: int, y: Tensor) -> Tensor:
        line, own = lines[number], passed.coefficients[number]
        z, alpha[number] = _evaluated(y, own, multipliers.alpha[number], line.upper_slope, line.upper_offset, line.free)
        if line.sign is not None:
            beta[number] = -line.sign * y
        cut = None if cuts is None else cuts[number]
        mu[number] = None if cut is None else _left_side(y, z, cut) - cut.limit.unsqueeze(1)
        return z

    problem.push(passed.point, at_relu)
    return Multipliers(alpha, None if multipliers.beta is None else beta, None if multipliers.mu is None else mu)


@kernel
def _weighed(own: Tensor, alpha: Tensor, upper_slope: Tensor, upper_offset: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of relaxed ReLUs' outputs as those of their inputs, and what the constant gains."""
    falling = own.clamp(max=0)
    down = (own - falling).mul_(alpha).addcmul_(falling, upper_slope)
    return down, falling.mul_(upper_offset).sum(2)


@kernel
def _evaluated(
    y: Tensor, own: Tensor, alpha: Tensor, upper_slope: Tensor, upper_offset: Tensor, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Relaxed ReLUs at y, where their outputs are weighed with `own`; and the gradient of alpha."""
    # On the lower line where weighed positively, else on the upper one: lerp is exact at both ends, and beats where.
    z = torch.addcmul(upper_offset, upper_slope, y).lerp_(alpha * y, (own > 0).to(y.dtype))
    return z, own.clamp(min=0).mul_(y).mul_(free)


def _spread(mu: Tensor, weight: Tensor, cut: Cuts, size: int) -> Tensor:
    """(N, Q, U): what constraints with multipliers (N, Q, C) add to the coefficients of a layer's ReLUs."""
    return torch.bmm(mu, _matrix(cut, weight, size))


def _left_side(y: Tensor, z: Tensor, cut: Cuts) -> Tensor:
    """(N, Q, C): the constraints' left sides at inputs y and outputs z, (N, Q, U)."""
    return torch.bmm(y, _matrix(cut, cut.y_weight, y.shape[2]).transpose(1, 2)) + torch.bmm(
        z, _matrix(cut, cut.z_weight, y.shape[2]).transpose(1, 2)
    )


def _matrix(cut: Cuts, weight: Tensor, size: int) -> Tensor:
    return weight.new_zeros(*cut.limit.shape, size).scatter_add_(2, cut.members, weight)
