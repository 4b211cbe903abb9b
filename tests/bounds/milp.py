"""The exact minimum of linear functions of a network over a box, for small networks: mixed-integer programs by HiGHS.

Independent of `sabr.bounds`: all that it asks of a step is its value at points.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from sabr.networks.steps import ReLUStep, SumStep, forward


class Unrolled(NamedTuple):
    """A network over a box as rows over columns: the entries of the input, the constant 1, unstable ReLUs' outputs.

    Attributes
    ----------
    output
        (H, columns)
    relu_inputs
        (U, columns) of the unstable ReLUs alone.
    lower, upper
        (columns,) limits of each column's value, and `low`, `high` (U,) those of the unstable ReLUs' inputs.
    """

    output: np.ndarray
    relu_inputs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    low: np.ndarray
    high: np.ndarray


def unrolled(steps, box):
    """Unroll a network (float64) over a box (one row): affine steps are known by their values at the columns."""
    shape = box.lower.shape[1:]
    lower, upper = [box.lower.flatten(), torch.ones(1).double()], [box.upper.flatten(), torch.ones(1).double()]
    size = box.lower.numel()
    columns = torch.cat([torch.eye(size, dtype=torch.float64), torch.zeros(1, size)]).view(size + 1, *shape)
    rows, lows, highs = [], [], []

    def relu(values):
        values = torch.cat([values, values.new_zeros(sum(map(len, lower)) - len(values), *values.shape[1:])])
        flat = values.flatten(1)
        low = (flat.clamp(min=0).t() @ torch.cat(lower)) + (flat.clamp(max=0).t() @ torch.cat(upper))
        high = (flat.clamp(min=0).t() @ torch.cat(upper)) + (flat.clamp(max=0).t() @ torch.cat(lower))
        # A little wider, so that rounding cannot cut off the optimum.
        low, high = low - 1e-9 * (1 + low.abs()), high + 1e-9 * (1 + high.abs())
        unstable = torch.nonzero((low < 0) & (high > 0)).flatten()
        rows.extend(flat[:, i] for i in unstable)
        lows.append(low[unstable])
        highs.append(high[unstable])
        lower.append(torch.zeros(len(unstable)).double())
        upper.append(high[unstable])
        own = flat.new_zeros(len(unstable), flat.shape[1])
        own[range(len(unstable)), unstable] = 1
        return torch.cat([flat * (low >= 0), own]).view(-1, *values.shape[1:])

    def through(part, values):
        for step in part:
            if isinstance(step, ReLUStep):
                values = relu(values)
            elif isinstance(step, SumStep):
                paths = [through(path, values) for path in step.paths]
                longest = max(map(len, paths))
                values = sum(torch.cat([p, p.new_zeros(longest - len(p), *p.shape[1:])]) for p in paths)
            else:
                constant = step.apply(torch.zeros_like(values[:1]))
                values = step.apply(values) - constant
                values[size] += constant[0]
        return values

    output = through(steps, columns)
    total = sum(map(len, lower))

    def matrix(parts):
        full = [torch.cat([p, p.new_zeros(total - len(p))]) for p in parts]
        return torch.stack(full).numpy() if full else np.zeros((0, total))

    ends = [torch.cat(e).numpy() if e else np.zeros(0) for e in (lower, upper, lows, highs)]
    return Unrolled(matrix(list(output.flatten(1).t())), matrix(rows), *ends)


def exact_minimum(steps, box, objective, network=None):
    """Minimise objective @ network(x) over the box (one row); `steps` are in float64.

    Tjeng et al. (2019): for z = relu(y) with l < 0 < u and a binary d: z >= 0, z >= y, z <= u d, z <= y - l (1 - d).
    `network` is what `unrolled` gave, if several functions are asked for.

    Gives a value that the function takes in the box, and the point (1, ...) where it does. No value is smaller, up to
    the solver's tolerances of 1e-6; but no sound bound is above it even by rounding.
    """
    net = unrolled(steps, box) if network is None else network
    count, total = net.relu_inputs.shape
    size = box.lower.numel()
    z, d, y = np.eye(total)[total - count :], np.eye(count), net.relu_inputs
    none = np.zeros_like(d)
    matrix = np.vstack(
        [
            np.hstack([z - y, none]),
            np.hstack([z, -net.high[:, None] * d]),
            np.hstack([z - y, -net.low[:, None] * d]),
        ]
    )
    zero, free = np.zeros(count), np.full(count, np.inf)
    low, high = np.concatenate([zero, -free, -free]), np.concatenate([free, zero, -net.low])
    solved = milp(
        np.concatenate([objective.numpy() @ net.output, np.zeros(count)]),
        constraints=LinearConstraint(matrix, low, high) if count else None,
        bounds=Bounds(np.concatenate([net.lower, np.zeros(count)]), np.concatenate([net.upper, np.ones(count)])),
        integrality=np.concatenate([np.zeros(total), np.ones(count)]),
        options={"mip_rel_gap": 1e-9},
    )
    assert solved.success, solved.message
    point = box.clamp(torch.tensor(solved.x[:size]).view_as(box.lower))
    attained = float(forward(steps, point).flatten() @ objective)
    assert abs(attained - solved.fun) <= 1e-5 * (1 + abs(attained)), "the program is not the network"
    return attained, point
