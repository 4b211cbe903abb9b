"""The exact minimum of a margin over a box, for small networks: big-M mixed-integer programming with SciPy's HiGHS."""

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from sabr.bounds.boxes import Box
from sabr.bounds.interval import propagate
from sabr.networks.steps import ReLUStep


def exact_minimum(steps, box, objective):
    """Minimise objective @ network(x) over the box (one row); `steps` are linear and ReLU steps in float64.

    Tjeng et al. (2019): for z = relu(y) with l < 0 < u and a binary d: z >= 0, z >= y, z <= u d, z <= y - l (1 - d).
    The big-M constants are a little wider than interval bounds, so that rounding cannot cut off the optimum.
    """
    relu_boxes = [Box(b.lower[0].numpy() - 1e-6, b.upper[0].numpy() + 1e-6) for b in propagate(steps, box).relu_inputs]
    # Columns: x, then for each linear step its outputs, and for each ReLU its outputs and its binaries.
    sizes, kinds = [box.lower.shape[1]], ["x"]
    for step in steps:
        size = sizes[-1]
        if isinstance(step, ReLUStep):
            sizes += [size, size]
            kinds += ["binary", "z"]
        else:
            sizes.append(len(step.bias))
            kinds.append("y")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = starts[-1]
    lower, upper = np.full(total, -np.inf), np.full(total, np.inf)
    lower[: sizes[0]], upper[: sizes[0]] = box.lower[0].numpy(), box.upper[0].numpy()
    integrality = np.zeros(total)
    rows, low, high = [], [], []

    def add(entries, at_least, at_most):
        rows.append(entries)
        low.append(at_least)
        high.append(at_most)

    block, relu = 0, 0
    previous = range(starts[0], starts[1])
    for step in steps:
        if isinstance(step, ReLUStep):
            binary, z = range(starts[block + 1], starts[block + 2]), range(starts[block + 2], starts[block + 3])
            bounds = relu_boxes[relu]
            for i, (y, d, out) in enumerate(zip(previous, binary, z, strict=True)):
                low_y, high_y = bounds.lower[i], bounds.upper[i]
                integrality[d], lower[d], upper[d] = 1, 0, 1
                lower[out], upper[out] = 0, max(high_y, 0)
                add({out: 1, y: -1}, 0, np.inf)
                add({out: 1, d: -max(high_y, 0)}, -np.inf, 0)
                add({out: 1, y: -1, d: -min(low_y, 0)}, -np.inf, -min(low_y, 0))
            previous, block, relu = z, block + 2, relu + 1
        else:
            outputs = range(starts[block + 1], starts[block + 2])
            weight, bias = step.weight.numpy(), step.bias.numpy()
            for i, y in enumerate(outputs):
                add({y: 1, **{x: -weight[i, j] for j, x in enumerate(previous)}}, bias[i], bias[i])
            previous, block = outputs, block + 1
    matrix = lil_matrix((len(rows), total))
    for i, entries in enumerate(rows):
        for column, value in entries.items():
            matrix[i, column] = value
    cost = np.zeros(total)
    cost[list(previous)] = objective.numpy()
    solved = milp(
        cost,
        constraints=LinearConstraint(matrix.tocsr(), low, high),
        bounds=Bounds(lower, upper),
        integrality=integrality,
        options={"mip_rel_gap": 1e-9},
    )
    assert solved.success, solved.message
    point = torch.tensor(solved.x[: sizes[0]]).unsqueeze(0)
    return float(solved.fun), point
