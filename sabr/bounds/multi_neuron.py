"""Joint linear constraints on groups of two or three ReLUs, from the convex hull of their graph (PRIMA, kPoly)."""

import heapq
import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

Array = NDArray[np.float64]

# All tolerances are relative: to the largest limit of a coordinate, or, behind "in widths", to each neuron's own width.
TOUCHING = 1e-12  # a point this far outside is kept: above the rounding of `_candidates`, so that no vertex is missed
SLACK = 1e-13  # added to every offset: above the rounding of the vertices and of the inner products with them
MERGED = 1e-9  # points and normals closer than this are one to the search for normals; offsets see them all
FLAT = 1e-7  # in widths: a polytope thinner than this gets a pair of constraints instead of facets
USELESS = 1e-6  # in widths: a constraint that cuts off less, or a ReLU that is stable but for this much, is left out
NEGLIGIBLE, BOUNDLESS = 1e-100, 1e100  # neurons within the one get no constraints; beyond the other, no bound at all
CHUNK = 16  # groups whose vertices are found at once: bounds memory to some 10 MB


class Constraints(NamedTuple):
    """Joint linear constraints on one group of ReLUs z = max(y, 0): y @ inputs + z @ outputs <= offset, row by row.

    Attributes
    ----------
    y, z
        (M, size) coefficients of the inputs and of the outputs; the largest |z| of a row is 1.
    offset
        (M,) right-hand sides.
    feasible
        False if no point meets the limits; there are no constraints then.
    """

    y: Array
    z: Array
    offset: Array
    feasible: bool


class GroupConstraints(NamedTuple):
    """The `Constraints` of G groups: y, z (G, M, size), offset (G, M), feasible (G,); rows of zeros fill up to M."""

    y: Tensor
    z: Tensor
    offset: Tensor
    feasible: Tensor


def octahedral_directions(size: int) -> Array:
    """All nonzero vectors of {-1, 0, 1}^size in lexicographic order: (3^size - 1, size) (PRIMA).

    Row d and row -1 - d are opposite. Bounds in these directions are the octahedral input polytope of a group.
    """
    return np.array([d for d in itertools.product((-1, 0, 1), repeat=size) if any(d)], dtype=np.float64)


def relu_hull(limits: Array, *, most: int = 30) -> Constraints:
    """Constraints on (y, max(y, 0)) that hold for every y of an octahedral polytope and that single ReLUs do not imply.

    A sound bound, rounding included: each constraint is linear on the part of the polytope in each orthant, so it is
    greatest at a vertex of a part; all vertices are enumerated (`_candidates`), and the offset is the maximum over
    them and a slack for rounding, whatever gave the coefficients. Those come from Qhull, as facets of the convex hull
    of the graph: the whole hull for two ReLUs (exact), for three the hulls of their three pairs and of all inputs with
    the sum of the outputs, each output in units of its range (on random groups 94 to 99.8 % of the improvement of the
    whole hull in six dimensions, 91 to 99.5 % with the first 30; it takes ten times as long, and Qhull may fail).

    Left out is what the polytope and the triangle relaxations of the single neurons, with the limits of the
    coordinates, imply already. Of the others `most` are kept, greedily: each is the one that cuts off most in addition
    to those before it, summed over the vertices and midpoints between them, with every set of outputs at the top of
    their triangles; cut off is the violation over the sum of |z|.

    Parameters
    ----------
    limits
        (D,) with `octahedral_directions` @ y <= limits, D = 8 or 26; those of the coordinates finite. Bounds in
        float32 can contradict each other by their rounding: widen them first, or `feasible` means nothing.
    most
        At most so many constraints, the first ones the most useful.

    Raises
    ------
    ValueError
        If a limit is NaN, that of a coordinate is infinite, or D belongs to no group of two or three.

    References
    ----------
    Singh et al., "Beyond the Single Neuron Convex Barrier" (kPoly, NeurIPS 2019); Müller et al., "PRIMA" (POPL 2022).
    """
    return _all_constraints(np.asarray(limits, dtype=np.float64)[None], most, np.dtype(np.float64))[0]


def group_constraints(limits: Tensor, *, most: int = 30) -> GroupConstraints:
    """`relu_hull` for each row of `limits` (G, D), padded with 0 <= 0 to the largest number of constraints found.

    As sound as `relu_hull`, also in float32: offsets are found for the rounded coefficients, then rounded up. The
    result has the device and type of `limits`, no gradient; the rounding of whoever evaluates it is not accounted for.
    About 0.6 ms for a group of two, 4 to 5 ms for one of three.
    """
    kept = np.dtype(np.float32 if limits.dtype == torch.float32 else np.float64)
    found = _all_constraints(limits.detach().cpu().double().numpy(), most, kept)
    size = _planes(limits.shape[1]).directions.shape[1]
    longest = max((len(one.offset) for one in found), default=0)
    y, z = np.zeros((2, len(found), longest, size))
    offset = np.zeros((len(found), longest))
    for i, one in enumerate(found):
        rows = len(one.offset)
        y[i, :rows], z[i, :rows], offset[i, :rows] = one.y, one.z, one.offset
    feasible = torch.tensor([one.feasible for one in found], dtype=torch.bool, device=limits.device)
    tensors = [torch.from_numpy(values).to(limits) for values in (y, z, offset)]
    return GroupConstraints(tensors[0], tensors[1], tensors[2], feasible)


def triangle_areas(lower: Tensor, upper: Tensor) -> Tensor:
    """Area -l u / 2 of the triangle relaxation of each ReLU, 0 where it is stable; any shape."""
    return -lower.clamp(max=0) * upper.clamp(min=0) / 2


def choose_groups(
    score: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    size: int = 3,
    partition: int = 50,
    overlap: int = 1,
    most: int | None = None,
) -> Tensor:
    """Groups of unstable ReLUs that share few neurons, those of high score first (PRIMA: its n_s, k and s).

    The unstable neurons in falling order of score are cut into partitions; in each, groups are taken in rising order
    of the sum of the ranks (then lexicographic) if they share at most `overlap` neurons with each one taken before.
    Deterministic: equal scores in order of the index.

    Parameters
    ----------
    score
        (U,) what a neuron's relaxation costs, for instance `triangle_areas`.
    lower, upper
        (U,) bounds at the inputs of the ReLUs.
    size
        Neurons in a group.
    partition
        Neurons in a partition (the last one is smaller).
    overlap
        Neurons that two groups may share, below `size`.
    most
        At most so many groups; None for all.

    Returns
    -------
    Tensor
        (G, size) indices, rising in each group; none if fewer than `size` neurons are unstable.
    """
    unstable = torch.nonzero((lower < 0) & (upper > 0)).flatten()
    ranked = unstable[torch.sort(score[unstable], descending=True, stable=True).indices]
    groups = [ranked.new_zeros(0, size)]
    for start in range(0, len(ranked), partition):
        chunk = ranked[start : start + partition]
        chosen = torch.tensor(_sparse_cover(len(chunk), size, overlap), dtype=torch.long, device=score.device)
        groups.append(chunk[chosen.reshape(-1, size)].sort(1).values)
    return torch.cat(groups)[:most]


@lru_cache(maxsize=64)
def _sparse_cover(length: int, size: int, overlap: int) -> list[tuple[int, ...]]:
    """Subsets of range(length) of `size` with no more than `overlap` in common, greedily, small sums first."""
    taken: list[tuple[int, ...]] = []
    used: set[tuple[int, ...]] = set()
    for group in sorted(itertools.combinations(range(length), size), key=sum):
        parts = list(itertools.combinations(group, overlap + 1))
        if used.isdisjoint(parts):
            taken.append(group)
            used.update(parts)
    return taken


class _Planes(NamedTuple):
    """What depends on the size of a group alone: every set of `size` independent planes, and how to intersect it.

    Attributes
    ----------
    directions
        (D, size); plane d < D is directions[d] @ y = limits[d], plane D + i is y_i = 0.
    subsets
        (T, size) indices of planes.
    adjugate, determinant
        (T, size, size) and (T,) small integers: the planes of t meet in adjugate[t] @ sides / determinant[t].
    corner
        (T,) whether all planes are limits: the intersection is a vertex of the polytope, not only of a part.
    """

    directions: Array
    subsets: NDArray[np.int64]
    adjugate: Array
    determinant: Array
    corner: NDArray[np.bool_]


@lru_cache(maxsize=2)
def _planes(count: int) -> _Planes:
    sizes = {3**size - 1: size for size in (2, 3)}
    if count not in sizes:
        raise ValueError(f"{count} limits: a group of two has {min(sizes)}, a group of three {max(sizes)}")
    size = sizes[count]
    directions = octahedral_directions(size)
    normals = np.vstack([directions, np.eye(size)])
    subsets = np.array(list(itertools.combinations(range(len(normals)), size)))
    determinant = np.rint(np.linalg.det(normals[subsets]))
    subsets, determinant = subsets[determinant != 0], determinant[determinant != 0]
    adjugate = np.rint(np.linalg.inv(normals[subsets]) * determinant[:, None, None])
    return _Planes(directions, subsets, adjugate, determinant, (subsets < count).all(1))


def _all_constraints(limits: Array, most: int, kept: np.dtype[Any]) -> list[Constraints]:
    """`Constraints` of each row of limits (G, D), in numbers that the type `kept` can hold."""
    planes = _planes(limits.shape[1])
    size = planes.directions.shape[1]
    if np.isnan(limits).any():
        raise ValueError("a limit of a group of ReLUs is NaN")
    single = np.abs(planes.directions).sum(1) == 1
    if (np.abs(limits[:, single]) > BOUNDLESS).any():
        raise ValueError("a neuron in a group of ReLUs has no finite bound")
    found: list[Constraints] = []
    nothing = np.zeros((0, size))
    for start in range(0, len(limits), CHUNK):
        for box, points, inside in _candidates(limits[start : start + CHUNK], planes):
            if not inside.any():
                found.append(Constraints(nothing, nothing, np.zeros(0), False))
            else:
                found.append(_constraints(box, points[inside], planes.corner[inside], most, kept))
    return found


def _candidates(limits: Array, planes: _Planes) -> list[tuple[Array, Array, NDArray[np.bool_]]]:
    """For each group its box (2, size), all intersections of planes (T, size), and which of them are in the polytope.

    These hold every vertex of the polytope's part in each orthant, up to rounding: such a vertex is where `size`
    independent planes meet. With B the largest limit of a coordinate, those planes are within size B of 0, and the
    integers of a subset small, so its computed point is off by less than 2e-14 B and passes a test within 1e-12 B.
    """
    directions = planes.directions
    size = directions.shape[1]
    axes = np.eye(size)
    highest = limits[:, [int(np.flatnonzero((directions == axis).all(1))[0]) for axis in axes]]
    lowest = -limits[:, [int(np.flatnonzero((directions == -axis).all(1))[0]) for axis in axes]]
    largest = np.maximum(np.abs(highest), np.abs(lowest)).max(1, keepdims=True)
    reach = (size + 1) * largest  # the box is within size B of 0: a plane moved to here from further away misses it too
    limits = np.clip(limits, -reach, reach)
    sides = np.concatenate([limits, np.zeros((len(limits), size))], 1)[:, planes.subsets]
    points = np.einsum("tij,gtj->gti", planes.adjugate, sides) / planes.determinant[:, None]
    half = len(directions) // 2  # row -1 - d is the opposite of row d
    along = points @ directions[:half].T
    tolerance = (TOUCHING * largest)[:, :, None]
    inside = (along <= limits[:, None, :half] + tolerance) & (-along <= limits[:, None, : half - 1 : -1] + tolerance)
    return list(zip(np.stack([lowest, highest], 1), points, inside.all(2), strict=True))


def _constraints(box: Array, points: Array, corner: NDArray[np.bool_], most: int, kept: np.dtype[Any]) -> Constraints:
    """The constraints of one group from the box of its limits (2, size) and all vertices of its parts (V, size)."""
    size = points.shape[1]
    largest = np.abs(box).max()
    low, high = points.min(0), points.max(0)
    widths = np.maximum(high - low, MERGED * largest)
    crossing = np.minimum(-low, high) > USELESS * widths
    if largest < NEGLIGIBLE or not crossing.any():
        return Constraints(np.zeros((0, size)), np.zeros((0, size)), np.zeros(0), True)
    y, z = _normals(points / widths, corner, np.flatnonzero(crossing))
    unit = np.abs(z / widths).max(1, keepdims=True)
    y, z = ((values / widths / unit).astype(kept).astype(np.float64) for values in (y, z))
    rounding = SLACK * largest * (np.abs(y).sum(1) + np.abs(z).sum(1))
    offset = (points @ y.T + np.maximum(points, 0) @ z.T).max(0) + rounding

    distinct = points[_distinct(points / widths)]
    gap = _triangle_tops(distinct, box) - np.maximum(distinct, 0)
    # The most that points of the triangles violate each constraint: linear in y on each part, so reached at a vertex.
    violation = distinct @ y.T + np.maximum(distinct, 0) @ z.T + gap @ np.maximum(z, 0).T - offset
    depth = violation.max(0)
    useful = np.flatnonzero(depth > USELESS * (np.abs(z) @ widths))
    order = useful[np.argsort(-depth[useful] / np.abs(z[useful]).sum(1), kind="stable")]
    order = order[_most_useful(y[order], z[order], offset[order], distinct, box, most)]
    return Constraints(y[order], z[order], _rounded_up(offset[order], kept), True)


def _normals(points: Array, corner: NDArray[np.bool_], crossing: NDArray[np.int64]) -> tuple[Array, Array]:
    """Coefficients of y and z, each (M, size), worth trying: facets of hulls of the graph over `points`, in widths."""
    size = points.shape[1]
    outputs = np.maximum(points, 0)
    found = [np.zeros((0, 2 * size))]
    for pair in itertools.combinations(crossing, 2):
        inputs = np.array(pair)
        found.append(_facets(points[:, inputs], outputs[:, inputs], inputs, np.eye(size)[inputs]))
    if (size > 2 or len(crossing) == 1) and corner.any():  # limits that cross within rounding may have no corner
        # A sum of outputs is convex in y, so the hull below it is spanned by the vertices of the polytope alone.
        total = np.zeros((1, size))
        total[0, crossing] = 1
        found.append(_facets(points[corner], outputs[corner] @ total.T, np.arange(size), total))
    normals = np.concatenate(found)
    normals = normals[_distinct(normals)]
    return normals[:, :size], normals[:, size:]


def _facets(y: Array, z: Array, inputs: NDArray[np.int64], outputs: Array) -> Array:
    """Normals (M, 2 size) that involve z, of the hull of the points (y, z); outputs (r, size): what each z stands for.

    Where the points are flat, dependent columns get a pair of opposite constraints, and the hull is that of the others.
    Qhull may fail or be wrong: normals are only proposals.
    """
    columns = np.hstack([y, z])
    columns = columns[_distinct(columns)]
    columns = columns - columns.mean(0)
    width = columns.shape[1]
    triangle, pivots = qr(columns, mode="r", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    rank = int((diagonal > FLAT * diagonal[0]).sum())
    basis, dependent = pivots[:rank], pivots[rank:]
    normals = [np.zeros((0, width))]
    if len(dependent):
        flat = np.zeros((len(dependent), width))
        flat[:, basis] = -np.linalg.lstsq(columns[:, basis], columns[:, dependent], rcond=None)[0].T
        flat[np.arange(len(dependent)), dependent] = 1
        normals += [flat, -flat]
    if rank > 1:
        try:
            equations = ConvexHull(columns[:, basis]).equations[:, :-1]
        except QhullError:
            equations = np.zeros((0, rank))
        facets = np.zeros((len(equations), width))
        facets[:, basis] = equations
        normals.append(facets)
    found = np.concatenate(normals)
    found[np.abs(found) < MERGED] = 0
    count = y.shape[1]
    found = found[np.abs(found[:, count:]).max(1) > USELESS]
    size = outputs.shape[1]
    result = np.zeros((len(found), 2 * size))
    result[:, inputs] = found[:, :count]
    result[:, size:] = found[:, count:] @ outputs
    return result


def _most_useful(y: Array, z: Array, offset: Array, points: Array, box: Array, most: int) -> list[int]:
    """Which `most` constraints to keep, as `relu_hull` says; those given first win where nothing is gained any more."""
    if not len(offset):
        return []
    spread = np.concatenate([points, (points + np.roll(points, len(points) // 2, 0)) / 2])
    outputs = np.maximum(spread, 0)
    gap = _triangle_tops(spread, box) - outputs
    sets = np.array([s for s in itertools.product((0.0, 1.0), repeat=y.shape[1]) if any(s)])
    bottom = y @ spread.T + z @ outputs.T - offset[:, None]
    rise = np.einsum("si,mi,pi->msp", sets, z, gap, optimize=True)
    cut = np.maximum(bottom[:, None] + rise, 0).reshape(len(y), -1) / np.abs(z).sum(1, keepdims=True)
    cut = np.ascontiguousarray(cut[:, cut.max(0) > 0])
    # Gains only fall as more is cut off, so one that is still the greatest after an update need not wait for others.
    waiting = [(-float(gain), i) for i, gain in enumerate(cut.sum(1))]  # the smallest comes first
    heapq.heapify(waiting)
    chosen: list[int] = []
    covered, total = np.zeros(cut.shape[1]), 0.0
    while waiting and len(chosen) < most:
        _, i = heapq.heappop(waiting)
        together = np.maximum(cut[i], covered)
        gain = total - (reached := float(together.sum()))
        if waiting and (gain, i) > waiting[0]:
            heapq.heappush(waiting, (gain, i))
        else:
            chosen.append(i)
            covered, total = together, reached
    return chosen


def _triangle_tops(points: Array, box: Array) -> Array:
    """The largest outputs (V, size) that the triangle relaxations over `box` allow at inputs `points`."""
    low, high = box
    unstable = (low < 0) & (high > 0)
    slope = np.where(unstable, high, low >= 0) / np.where(unstable, high - low, 1)
    tops: Array = slope * (points - np.where(unstable, low, 0))
    return tops


def _distinct(rows: Array) -> NDArray[np.int64]:
    """Indices, rising, of one of each set of rows that are equal to within `MERGED`."""
    whole = np.rint(rows / MERGED).astype(np.int64)
    # One wrapping sum a row is enough to sort: rows that collide by chance cost a proposal, never soundness.
    keys = whole @ np.cumprod(np.full(rows.shape[1], 6364136223846793005))
    return np.sort(np.unique(keys, return_index=True)[1])


def _rounded_up(offset: Array, kept: np.dtype[Any]) -> Array:
    """The least numbers of type `kept` that are not below `offset`."""
    rounded = offset.astype(kept)
    above: Array = np.where(rounded < offset, np.nextafter(rounded, np.array(np.inf, kept)), rounded)
    return above.astype(np.float64)
