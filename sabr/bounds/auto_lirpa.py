"""Linear bounds by the library auto_LiRPA; the only room that imports it.

The package index holds release 0.3, which was written for an older torch: four names that it needs are supplied here
where they are missing. Newer releases need none of them, and get none.
"""

import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sabr.bounds.boxes import Box
from sabr.bounds.interval import other_classes
from sabr.networks.affine import as_module
from sabr.networks.steps import LinearStep, ScaleStep, Step

METHODS = {
    "interval": "IBP",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha-crown": "CROWN-Optimized",
}

# By import, not as an attribute of torch.onnx: that is another module in newer releases of torch.
_SYMBOLIC_HELPER = "torch.onnx.symbolic_helper"


class BoundedNetwork:
    """A network as auto_LiRPA sees it, built once and asked many times.

    Parameters
    ----------
    steps
        A folded network without gradients.
    alpha_iterations, alpha_rate
        Gradient steps on the slopes in alpha-CROWN, and the rate of the first of them.
    """

    def __init__(
        self, steps: Sequence[Step], input_shape: Sequence[int], *, alpha_iterations: int = 20, alpha_rate: float = 0.1
    ) -> None:
        library = _library()
        last = steps[-1]
        if not isinstance(last, LinearStep):
            raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
        # Outside the bounded module: a division inside it fails in auto_LiRPA's patches mode.
        self._scale = steps[0] if isinstance(steps[0], ScaleStep) else None
        module = as_module(steps[1:] if self._scale else steps).eval()
        weight = next(module.parameters())
        options = {
            # Else alpha-CROWN crashes when over 90 % of a layer is unstable.
            "sparse_features_alpha": False,
            "optimize_bound_args": {"iteration": alpha_iterations, "lr_alpha": alpha_rate, "init_alpha": False},
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = library.BoundedModule(
                module, weight.new_zeros(1, *input_shape), bound_opts=options, device=weight.device
            )
        self._library = library
        self._classes = len(last.bias)

    def margin_lower_bounds(self, box: Box, labels: Tensor, *, method: str) -> Tensor:
        """Lower bounds (N, K-1) of logit_y - logit_j over each box, for j != y in increasing j.

        Sound in exact arithmetic; float32 rounding is not accounted for.

        Parameters
        ----------
        box
            (N, channels, height, width) regions of images in [0, 1].
        labels
            (N,) true classes.
        method
            A name in `METHODS`: interval; crown-ibp (Zhang et al. 2020), crown (Zhang et al. 2018), alpha-crown (Xu
            et al. 2021), each at least as tight as the one before on nearly all inputs.
        """
        lower, upper, centre = box.lower, box.upper, box.centre
        if self._scale is not None:
            lower, upper, centre = (self._scale.apply(points) for points in (lower, upper, centre))
        perturbation = self._library.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
        question = {
            "x": (self._library.BoundedTensor(centre, perturbation),),
            "bound_upper": False,
        }
        specification = _margin_specification(labels, self._classes, centre)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method == "alpha-crown":
                return self._optimised(question, specification)
            with torch.no_grad():
                bound, _ = self._module.compute_bounds(**question, C=specification, method=METHODS[method])
        return bound  # type: ignore[no-any-return]

    def _optimised(self, question: dict[str, Any], specification: Tensor) -> Tensor:
        """Alpha-CROWN on the slopes of the last backward pass; inner bounds are CROWN's.

        Slopes of the inner bounds too would cost a hundred times more here, for little.
        """
        module = self._module
        # Both names were changed after release 0.3.
        initialise = getattr(module, "init_alpha", None) or module.init_slope
        renamed = "interm_bounds" in inspect.signature(module.compute_bounds).parameters
        given = "interm_bounds" if renamed else "intermediate_layer_bounds"
        _, _, inner = initialise(**question, c=specification)
        initialise(**question, c=specification, **{given: inner})
        with _InclusiveClamp():
            bound, _ = module.compute_bounds(
                **question, C=specification, method=METHODS["alpha-crown"], **{given: inner}
            )
        return bound.detach()  # type: ignore[no-any-return]


def _margin_specification(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """(N, K-1, K): rows e_y - e_j for j != y in increasing j."""
    identity = torch.eye(classes, dtype=like.dtype, device=like.device)
    return identity[labels].unsqueeze(1) - identity[other_classes(labels, classes)]


class _InclusiveClamp(TorchFunctionMode):
    """Clamp with gradient 1 *at* its bounds, as before torch 2.14.

    Slopes start at exactly 0 or 1; with the new gradient of 0 there they would never move, and alpha-CROWN would
    silently equal CROWN.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.clamp, Tensor.clamp):
            return _clamp(*args, **kwargs)
        return func(*args, **kwargs)


def _clamp(value: Tensor, min: Any = None, max: Any = None) -> Tensor:
    clamped = value.detach().clamp(min, max)
    inside = torch.ones_like(clamped, dtype=torch.bool)
    if min is not None:
        inside &= value.detach() >= min
    if max is not None:
        inside &= value.detach() <= max
    return torch.where(inside, value, clamped)


@cache
def _library() -> Any:
    """Import auto_LiRPA, supplying what release 0.3 misses in today's torch and numpy."""
    _supply_arraysetops()
    _supply_set_opset_version()
    _supply_node_getitem()
    with warnings.catch_warnings():  # it changes the filters of the whole process when it is imported
        warnings.simplefilter("ignore")
        import auto_LiRPA

    _accept_remove_duplicate(auto_LiRPA.BoundedModule)
    return auto_LiRPA


def _supply_arraysetops() -> None:
    """`numpy.lib.arraysetops`, gone in numpy 2, of which auto_LiRPA imports `isin`."""
    name = "numpy.lib.arraysetops"
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        module.isin = np.isin  # type: ignore[attr-defined]
        sys.modules[name] = module


def _supply_set_opset_version() -> None:
    """`_set_opset_version`, gone from torch's ONNX symbolic helper."""
    symbolic_helper = importlib.import_module(_SYMBOLIC_HELPER)
    if hasattr(symbolic_helper, "_set_opset_version"):
        return
    try:
        from torch.onnx._internal.torchscript_exporter import _globals
    except ImportError:  # torch 2.8 and older
        from torch.onnx import _globals  # type: ignore[attr-defined, no-redef]

    def set_opset_version(version: int) -> None:
        _globals.GLOBALS._export_onnx_opset_version = version

    symbolic_helper._set_opset_version = set_opset_version  # type: ignore[attr-defined]


def _supply_node_getitem() -> None:
    """Attributes of graph nodes by index, gone from torch."""
    node = torch._C.Node
    if not hasattr(node, "__getitem__"):
        symbolic_helper = importlib.import_module(_SYMBOLIC_HELPER)
        setattr(node, "__getitem__", lambda self, key: symbolic_helper._node_get(self, key))  # noqa: B010


def _accept_remove_duplicate(bounded_module: Any) -> None:
    """Let auto_LiRPA's override take the argument that torch passes since 2.0."""
    original = bounded_module._named_members
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def named_members(self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_: Any) -> Any:
        return original(self, get_members_fn, prefix, recurse)

    bounded_module._named_members = named_members
