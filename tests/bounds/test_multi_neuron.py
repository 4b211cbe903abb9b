import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sabr.bounds import multi_neuron
from sabr.bounds.multi_neuron import group_constraints, octahedral_directions, relu_hull

ALL = 100_000  # more than a group ever has
KINDS = ["affine", "loose", "thin", "twins", "opposites", "constant", "stable", "segment", "point", "box", "mixed"]


def polytope(size, kind, seed, scale=1.0):
    """Limits of an octahedral polytope, and 100,000 of its points, each computed from its own inputs x."""
    rng = np.random.default_rng(seed)
    directions = octahedral_directions(size)
    inputs = 12
    weight = rng.normal(size=(size, inputs))
    bias = rng.normal(size=size)
    if kind == "thin":
        weight[1] = weight[0] + 1e-9 * weight[1]
        bias[1] = bias[0]
    elif kind == "twins":
        weight[1], bias[1] = weight[0], bias[0]
    elif kind == "opposites":
        weight[1], bias[1] = -weight[0], 0.3 - bias[0]
    elif kind == "constant":
        weight[0] = 0
    elif kind == "stable":
        bias[0] = 1.1 * np.abs(weight[0]).sum() * rng.choice([-1, 1])
    elif kind == "segment":
        weight[:, 1:] = 0
    elif kind == "point":
        weight[:] = 0
    elif kind == "box":
        weight = np.zeros((size, inputs))
        weight[np.arange(size), np.arange(size)] = rng.uniform(0.1, 3, size)
    elif kind == "mixed":
        factor = 10.0 ** rng.uniform(-6, 6, size)
        weight, bias = weight * factor[:, None], bias * factor
    weight, bias = weight * scale, bias * scale
    limits = np.abs(directions @ weight).sum(1) + directions @ bias
    # What these three round to must not cut off the points: the caller's bounds are sound, rounding included.
    limits = limits + 1e-15 * (np.abs(directions) @ (np.abs(weight).sum(1) + np.abs(bias)))
    if kind == "loose":
        limits = limits * np.where(limits > 0, rng.choice([1.0, 1.5, 10.0, np.inf], limits.shape), 1)
        single = np.abs(directions).sum(1) == 1
        limits[single] = np.where(np.isfinite(limits[single]), limits[single], 1e3 * scale)
    x = rng.uniform(-1, 1, (100_000, inputs))
    x[::2] = np.sign(x[::2])
    # Corners in the directions of the limits: no other points of the region come as close to them.
    x[: len(directions)] = np.sign(directions @ weight)
    # And towards the kinks, one neuron at a time, as far as the region goes.
    kink = rng.integers(size, size=len(x) // 4)
    along = weight[kink]
    needed = -(np.einsum("ni,ni->n", along, x[-len(kink) :]) + bias[kink]) / np.maximum((along**2).sum(1), 1e-300)
    x[-len(kink) :] = np.clip(x[-len(kink) :] + needed[:, None] * along, -1, 1)
    return limits, x @ weight.T + bias


def assert_they_hold(found, points):
    reached = points @ found.y.T + np.maximum(points, 0) @ found.z.T
    assert (reached <= found.offset).all()  # no tolerance: the offsets have one


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_point_is_cut_off(size, kind, scale):
    for seed in range(4):
        limits, points = polytope(size, kind, seed, scale)
        found = relu_hull(limits, most=ALL)
        assert found.feasible
        assert np.isfinite(found.y).all() and np.isfinite(found.z).all() and np.isfinite(found.offset).all()
        assert_they_hold(found, points)


def hit_and_run(limits, start, rng, chains=500, length=200):
    """100,000 points of a polytope with an interior, half of them on its boundary, from a point inside."""
    size = len(start)
    directions = octahedral_directions(size)
    current = np.tile(start, (chains, 1))
    points = []
    for _ in range(length // 2):
        step = rng.normal(size=(chains, size))
        speed, room = step @ directions.T, np.maximum(limits - current @ directions.T, 0)
        forth = np.where(speed > 0, room / speed, np.inf).min(1)
        back = np.where(speed < 0, room / speed, -np.inf).max(1)
        points.append(current + forth[:, None] * step)
        current = current + (back + rng.uniform(size=chains) * (forth - back))[:, None] * step
        points.append(current)
    return np.concatenate(points)


def vertices(limits):
    """All vertices of the polytope's parts, one in each orthant, by solving every system, one after the other."""
    size = {8: 2, 26: 3}[len(limits)]
    directions = octahedral_directions(size)
    planes = [*zip(directions, limits, strict=True), *((axis, 0.0) for axis in np.eye(size))]
    points = []
    for chosen in itertools.combinations(planes, size):
        normals = np.array([normal for normal, _ in chosen])
        if abs(np.linalg.det(normals)) > 0.5:
            point = np.linalg.solve(normals, [side for _, side in chosen])
            if (directions @ point <= limits + 1e-14 * np.abs(limits).max()).all():
                points.append(point)
    return np.unique(points, axis=0)


@settings(max_examples=60)
@given(st.integers(2, 3), st.integers(0, 1_000_000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_polytopes_that_no_network_made(size, seed, scale):
    rng = np.random.default_rng(seed)
    directions = octahedral_directions(size)
    limits = rng.uniform(-0.2, 2, len(directions))
    inside = linprog(  # the centre of the largest ball inside; a negative radius: how far from there being any
        np.append(np.zeros(size), -1),
        A_ub=np.hstack([directions, np.linalg.norm(directions, axis=1)[:, None]]),
        b_ub=limits,
        bounds=(None, None),
    )
    found = relu_hull(scale * limits, most=ALL)
    if inside.x[size] > 1e-6:
        assert found.feasible
        assert_they_hold(found, scale * hit_and_run(limits, inside.x[:size], rng))
    elif inside.x[size] < -1e-6:
        assert not found.feasible and not len(found.offset)


@settings(max_examples=20)
@given(st.integers(2, 3), st.integers(0, 1_000_000), st.sampled_from([1e-6, 1.0, 1e6]), st.booleans())
def test_polytopes_that_are_flat_or_have_many_planes_through_a_point(size, seed, scale, flat):
    rng = np.random.default_rng(seed)
    directions = octahedral_directions(size)
    limits = rng.integers(0, 3, len(directions)).astype(float)
    if flat:
        inside = np.round(rng.normal(size=size), 3)
        limits = directions @ inside + rng.integers(0, 3, len(directions))
        chosen = rng.integers(len(directions))
        limits[chosen] = directions[chosen] @ inside
        limits[-1 - chosen] = -limits[chosen]
    limits = limits * scale
    corners = vertices(limits)
    found = relu_hull(limits, most=ALL)
    assert found.feasible
    assert_they_hold(found, corners)
    for sharpness in (0.05, 1):
        assert_they_hold(found, rng.dirichlet(np.full(len(corners), sharpness), 20_000) @ corners)


def relaxed_maximum(objective_y, objective_z, limits, found):
    """Maximise over the polytope, the triangles and, if given, the joint constraints."""
    size = len(objective_y)
    directions = octahedral_directions(size)
    upper = np.array([limits[(directions == axis).all(1)][0] for axis in np.eye(size)])
    lower = -np.array([limits[(directions == -axis).all(1)][0] for axis in np.eye(size)])
    assert (lower < 0).all() and (upper > 0).all()
    slope = upper / (upper - lower)
    rows = [np.hstack([directions, 0 * directions]), np.hstack([np.eye(size), -np.eye(size)])]
    rows.append(np.hstack([-np.diag(slope), np.eye(size)]))
    sides = [limits, np.zeros(size), -slope * lower]
    if found is not None:
        rows.append(np.hstack([found.y, found.z]))
        sides.append(found.offset)
    solved = linprog(
        -np.concatenate([objective_y, objective_z]),
        A_ub=np.vstack(rows),
        b_ub=np.concatenate(sides),
        bounds=[(None, None)] * size + [(0, None)] * size,
    )
    assert solved.success, solved.message
    return -solved.fun


def crossing_limits(size, seed):
    """Limits of a polytope in which all neurons are unstable."""
    rng = np.random.default_rng(seed)
    directions = octahedral_directions(size)
    weight = rng.normal(size=(size, 3 + seed % 8))
    reach = np.abs(weight).sum(1)
    limits = np.abs(directions @ weight).sum(1) + directions @ (rng.uniform(-0.7, 0.7, size) * reach)
    return limits * rng.uniform(0.95, 1, limits.shape) if seed % 2 else limits


@pytest.mark.parametrize("seed", range(12))
def test_for_two_neurons_it_is_the_convex_hull(seed):
    limits = crossing_limits(2, seed)
    found = relu_hull(limits, most=ALL)
    points = vertices(limits)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        objective_y, objective_z = rng.normal(size=(2, 2))
        exact = (points @ objective_y + np.maximum(points, 0) @ objective_z).max()
        assert abs(relaxed_maximum(objective_y, objective_z, limits, found) - exact) <= 1e-7


@pytest.mark.parametrize("size", [2, 3])
def test_each_constraint_cuts_off_what_the_triangles_allow(size):
    limits = crossing_limits(size, 1)
    found = relu_hull(limits, most=ALL)
    points = vertices(limits)
    for y, z, offset in zip(found.y[::4], found.z[::4], found.offset[::4], strict=True):
        assert relaxed_maximum(y, z, limits, None) > offset + 1e-7
        assert (points @ y + np.maximum(points, 0) @ z).max() == pytest.approx(offset, abs=1e-10)  # and touches


def improvement(size, seeds, most):
    """Of what the hull improves on polytope and triangles, the mean share that `most` constraints give."""
    shares = []
    for seed in seeds:
        limits = crossing_limits(size, seed)
        found, points = relu_hull(limits, most=most), vertices(limits)
        rng = np.random.default_rng(seed)
        for _ in range(8):
            objective_z = rng.normal(size=size)
            objective_y = -np.maximum(objective_z, 0) * rng.uniform(size=size) + 0.3 * rng.normal(size=size)
            loose = relaxed_maximum(objective_y, objective_z, limits, None)
            exact = (points @ objective_y + np.maximum(points, 0) @ objective_z).max()
            if loose - exact > 1e-3:
                tight = relaxed_maximum(objective_y, objective_z, limits, found)
                assert exact - 1e-7 <= tight <= loose + 1e-7
                shares.append((loose - tight) / (loose - exact))
    assert len(shares) > 10
    return np.mean(shares)


def test_few_constraints_give_most_of_the_hull():
    assert improvement(2, range(8), most=10) > 0.95
    assert improvement(3, range(8), most=ALL) > 0.93
    assert improvement(3, range(8), most=30) > 0.88
    assert improvement(3, range(8), most=10) > 0.75


def test_the_cut_known_by_hand():
    # |y1 + y2| <= 2 and |y1 - y2| <= 2. The triangles, z <= y / 2 + 1, give z1 + z2 <= (y1 + y2) / 2 + 2 <= 3. But the
    # diamond's corners (2, 0), (0, 2), (-2, 0), (0, -2) have z1 + z2 = 2, 2, 0, 0, so z1 + z2 <= (y1 + y2) / 2 + 1 <= 2.
    limits = np.full(8, 2.0)
    found = relu_hull(limits)
    assert relaxed_maximum(np.zeros(2), np.ones(2), limits, None) == pytest.approx(3)
    assert relaxed_maximum(np.zeros(2), np.ones(2), limits, found) == pytest.approx(2)
    known = np.array([-0.5, -0.5, 1, 1, 1])
    rows = np.hstack([found.y, found.z, found.offset[:, None]])
    assert np.abs(rows - known).max(1).min() < 1e-9


def test_what_single_neurons_imply_is_left_out():
    # On a box the hull is the product of the triangles.
    for size in (2, 3):
        directions = octahedral_directions(size)
        upper, lower = np.array([1.0, 0.5, 2.0])[:size], np.array([-1.0, -2.0, -0.1])[:size]
        limits = np.maximum(directions, 0) @ upper + np.minimum(directions, 0) @ lower
        found = relu_hull(limits)
        assert found.feasible and not len(found.offset)
        limits[np.abs(directions).sum(1) > 1] = np.inf
        found = relu_hull(limits)
        assert found.feasible and not len(found.offset)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_stable_neuron_still_speaks_through_its_input(sign):
    # y1 = 3 sign + t, y2 = t, |t| <= 1: y1 is stable, and says all about y2.
    directions = octahedral_directions(2)
    limits = np.abs(directions.sum(1)) + 3 * sign * directions[:, 0]
    found = relu_hull(limits)
    assert found.feasible
    t = np.linspace(-1, 1, 10_001)[:, None]
    assert_they_hold(found, t + np.array([3.0 * sign, 0.0]))
    assert not len(found.offset)  # on a line the triangle of the other one is already the hull
    # Where the first is large, the second is at a kink: y in the triangle (2, -1), (2, 1), (4, 0).
    corners = np.array([[2.0, -1.0], [2.0, 1.0], [4.0, 0.0]]) * [sign, 1]
    found = relu_hull((corners @ directions.T).max(0))
    assert len(found.offset) and (found.z[:, 0] == 0).all()
    # At y = (4 sign, 0) the triangle of the second allows z2 = 1/2, the joint constraints nothing above 0.
    allowed = (found.offset - found.y @ corners[2])[found.z[:, 1] > 0] / found.z[found.z[:, 1] > 0, 1]
    assert allowed.min() == pytest.approx(0, abs=1e-9)


def test_all_stable_or_nothing_there():
    directions = octahedral_directions(3)
    for point in ([1.0, 2.0, 3.0], [-1.0, 2.0, -3.0], [0.0, 0.0, 0.0]):
        for radius in (0.0, 0.5):
            if point != [0.0, 0.0, 0.0] or radius == 0:
                found = relu_hull(directions @ np.array(point) + radius * np.abs(directions).sum(1))
                assert found.feasible and found.offset.shape == (0,) and found.y.shape == (0, 3)


def test_an_empty_polytope_is_said_to_be_one():
    directions = octahedral_directions(2)
    limits = np.ones(8)
    for row, value in [([1, 1], -2.1), ([1, 0], -1.1), ([0, -1], -1.1), ([-1, 1], -np.inf)]:
        crossed = limits.copy()
        crossed[(directions == row).all(1)] = value
        found = relu_hull(crossed)
        assert not found.feasible
        assert found.y.shape == found.z.shape == (0, 2) and found.offset.shape == (0,)


def test_a_failing_or_lying_qhull_costs_constraints_only(monkeypatch):
    limits, points = polytope(3, "affine", 0)

    class Lying:
        def __init__(self, points):
            self.equations = np.random.default_rng(0).normal(size=(40, points.shape[1] + 1))

    monkeypatch.setattr(multi_neuron, "ConvexHull", Lying)
    assert_they_hold(relu_hull(limits, most=ALL), points)

    def failing(points):
        raise multi_neuron.QhullError("QH6154")

    monkeypatch.setattr(multi_neuron, "ConvexHull", failing)
    assert relu_hull(limits).feasible


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_is_its_groups(size, dtype):
    limits = torch.tensor(np.array([polytope(size, kind, 7)[0] for kind in KINDS]), dtype=dtype)
    limits = torch.nextafter(limits, torch.tensor(torch.inf, dtype=dtype))  # rounding made some of them empty
    limits[3] = -1  # empty
    limits = torch.cat([limits, limits.flip(0)])  # more than one chunk
    found = group_constraints(limits, most=7)
    assert found.y.dtype == found.z.dtype == found.offset.dtype == dtype
    assert found.y.shape == found.z.shape == (len(limits), found.offset.shape[1], size)
    assert found.feasible.tolist() == [i not in (3, len(limits) - 4) for i in range(len(limits))]
    again = group_constraints(limits, most=7)
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
    for i, row in enumerate(limits):
        alone = relu_hull(row.double().numpy(), most=7)
        count = len(alone.offset)
        assert count <= 7 and not found.y[i, count:].any() and not found.offset[i, count:].any()
        accuracy = 1e-12 if dtype == torch.float64 else 1e-5
        for ours, theirs in zip(found[:3], alone[:3], strict=True):
            largest = np.abs(theirs).max(initial=1)
            np.testing.assert_allclose(ours[i, :count].numpy(), theirs, rtol=accuracy, atol=accuracy * largest)


@pytest.mark.parametrize("size", [2, 3])
def test_float32_coefficients_are_sound_too(size):
    for seed, kind in enumerate(KINDS):
        limits, points = polytope(size, kind, seed)
        rounded = torch.tensor(limits[None], dtype=torch.float32)
        rounded = torch.nextafter(rounded, torch.tensor(torch.inf))
        found = group_constraints(rounded, most=ALL)
        y, z, offset = (values[0].double().numpy() for values in found[:3])
        assert (points @ y.T + np.maximum(points, 0) @ z.T <= offset).all()
        if kind in ("affine", "box"):
            corners = vertices(rounded[0].double().numpy())  # where offsets rounded to the nearest would fail
            assert (corners @ y.T + np.maximum(corners, 0) @ z.T <= offset).all()


def test_no_groups():
    found = group_constraints(torch.zeros(0, 8))
    assert found.y.shape == (0, 0, 2) and found.feasible.shape == (0,)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (np.ones(7), "7 limits"),
        (np.array([1.0] * 7 + [np.nan]), "NaN"),
        (np.full(26, np.inf), "no finite bound"),
    ],
)
def test_bad_limits_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        relu_hull(limits)


@pytest.mark.parametrize("size", [2, 3])
def test_directions(size):
    directions = octahedral_directions(size)
    assert directions.shape == (3**size - 1, size) and len(np.unique(directions, axis=0)) == len(directions)
    assert (directions == -directions[::-1]).all() and set(directions.flatten()) == {-1, 0, 1}
