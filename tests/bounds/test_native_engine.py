"""Our bounds against the library's, on networks of the workflow."""

import warnings

import pytest
import torch

from sabr.bounds.auto_lirpa import METHODS, BoundedNetwork, _margin_specification
from sabr.bounds.boxes import ball
from sabr.bounds.condensed import condense
from sabr.bounds.crown import crown_margins
from sabr.bounds.dual import bound, lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_bounds, margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.rounding import allowances
from sabr.bounds.unrolled import unroll
from sabr.certification.engines import AutoLirpaEngine, NativeEngine
from sabr.networks.steps import forward
from sabr.settings import DATASETS

MEMORY = 2**28
EPS = 0.02


@pytest.fixture(params=["mnist", "cifar10"])
def case(request, small_network):
    dataset = DATASETS[request.param]
    _, steps = small_network(request.param)
    images = torch.rand(6, *dataset.shape, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    labels = forward(steps, images).argmax(1)
    labels[5] = (labels[5] + 1) % 10  # a wrong one
    return steps, ball(images, EPS), labels, BoundedNetwork(steps, dataset.shape, alpha_iterations=20)


def relative(ours, theirs):
    return float((ours - theirs).abs().max()) / float(theirs.abs().max())


def with_inner_bounds(library, region, labels, bounds):
    """CROWN of the library with given bounds at every ReLU's input."""
    module, lower, upper, centre = library._module, region.lower, region.upper, region.centre
    if library._scale is not None:
        lower, upper, centre = (library._scale.apply(points) for points in (lower, upper, centre))
    perturbation = library._library.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
    relus = [node for node in module._modules.values() if type(node).__name__ == "BoundRelu"]
    known = {relu.inputs[0].name: [b.lower, b.upper] for relu, b in zip(relus, bounds, strict=True)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found, _ = module.compute_bounds(
            x=(library._library.BoundedTensor(centre, perturbation),),
            C=_margin_specification(labels, 10, centre),
            method=METHODS["crown"],
            bound_upper=False,
            intermediate_layer_bounds=known,
        )
    return found


def inner_crown(steps, region):
    return crown_inputs(steps[:-1], region, propagate(steps[:-1], region).relu_inputs, memory=MEMORY)


def test_intervals_and_crown_ibp_are_the_same(case):
    steps, region, labels, library = case
    intervals = margin_bounds(steps, region, labels)
    theirs = library.margin_lower_bounds(region, labels, method="interval")
    assert relative(intervals.lower, theirs) <= 1e-4
    theirs = library.margin_lower_bounds(region, labels, method="crown-ibp")
    assert relative(crown_margins(steps, region, intervals.relu_inputs, labels), theirs) <= 1e-4


def test_crown_is_the_same_with_the_same_inner_bounds(case):
    steps, region, labels, library = case
    inner = inner_crown(steps, region)
    own = crown_margins(steps, region, inner, labels)
    assert relative(own, with_inner_bounds(library, region, labels, inner)) <= 1e-4
    problem = condense(steps[:-1], region, *margin_rows(steps[-1], labels), inner, memory=MEMORY)
    assert relative(bound(problem), with_inner_bounds(library, region, labels, inner)) <= 1e-4
    intervals = propagate(steps[:-1], region).relu_inputs
    assert relative(own, with_inner_bounds(library, region, labels, intervals)) > 1e-2, "the inner bounds were not used"


def test_crown_is_no_looser_than_the_librarys(case):
    steps, region, labels, library = case
    theirs = library.margin_lower_bounds(region, labels, method="crown")
    own = crown_margins(steps, region, inner_crown(steps, region), labels)
    assert (own >= theirs - 1e-4 * theirs.abs().max()).all()


@pytest.mark.parametrize("form", ["condensed", "unrolled"])
def test_alpha_crown_is_no_looser_and_better_than_crown(case, form):
    steps, region, labels, library = case
    theirs = library.margin_lower_bounds(region, labels, method="alpha-crown")
    rows = margin_rows(steps[-1], labels)
    inner = inner_crown(steps, region)
    if form == "condensed":
        problem = condense(steps[:-1], region, *rows, inner, memory=MEMORY)
    else:
        problem = unroll(steps[:-1], region, *rows, inner)
    lines = lines_of(problem)
    found = optimise(problem, lines, start_of(problem, lines), iterations=20, rate=0.1, target=float("inf"))
    own, crown = found.passed.lower, bound(problem, lines)
    width = margin_bounds(steps, ball(region.centre, 0.0), labels).lower - theirs
    assert (width > 0).all()
    assert (theirs - own <= 0.01 * width).all()
    assert (own >= crown).all() and int((own > crown + 1e-3 * width).any(1).sum()) >= 5


def test_the_native_engine_gives_up_only_what_rounding_may_be_off_by(case):
    steps, region, labels, _ = case
    engine = NativeEngine(steps, iterations=20, rate=0.1, memory=MEMORY)
    everything = torch.ones(6, 9, dtype=torch.bool)
    exact = margin_bounds(steps, region, labels).lower
    found = engine.margins("interval", region, labels, list(range(6)), everything)
    torch.testing.assert_close(found.lower, exact)
    previous = None
    for stage, own in (("crown-ibp", propagate(steps[:-1], region).relu_inputs), ("crown", inner_crown(steps, region))):
        expected = crown_margins(steps, region, own, labels)
        found = engine.margins(stage, region, labels, list(range(6)), everything)
        assert (found.lower <= expected + 1e-4 * expected.abs().max()).all()
        allowed = allowances(steps[:-1], region, own, *margin_rows(steps[-1], labels)).objective
        assert (expected - found.lower <= allowed).all()
        previous = found.lower
    optimised = engine.margins("alpha-crown", region, labels, list(range(6)), everything)
    assert (optimised.lower >= previous - 1e-4 * previous.abs().max()).all()


def test_both_engines_say_the_same_to_the_cascade(case):
    steps, region, labels, _ = case
    engines = [
        NativeEngine(steps, iterations=5, rate=0.1, memory=MEMORY),
        AutoLirpaEngine(steps, iterations=5, rate=0.1, shape=region.lower.shape[1:]),
    ]
    everything = torch.ones(6, 9, dtype=torch.bool)
    reached = margin_bounds(steps, ball(region.centre, 0.0), labels).lower
    for stage in ("interval", "crown-ibp", "crown", "alpha-crown"):
        own, theirs = (engine.margins(stage, region, labels, list(range(6)), everything) for engine in engines)
        for found in (theirs, own):
            assert (found.lower[found.proved] > 0).all()
            assert not (found.proved & (reached <= 0)).any()
        clear = (theirs.lower - own.lower).abs() < torch.minimum(theirs.lower.abs(), own.lower.abs())
        assert clear.float().mean() > 0.5
        assert torch.equal(theirs.proved[clear], own.proved[clear])
