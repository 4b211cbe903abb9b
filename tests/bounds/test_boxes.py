import torch
from hypothesis import given
from hypothesis import strategies as st

from sabr.bounds.boxes import Box, ball, outwards, small_box

pixels = st.floats(0, 1, width=32)
eps = st.floats(1e-4, 0.5)


@given(st.lists(pixels | st.sampled_from([0.0, 1.0]), min_size=1, max_size=20), eps)
def test_the_ball_is_cut_to_the_image_range(values, eps):
    images = torch.tensor(values)
    box = ball(images, eps)
    assert (box.lower >= 0).all() and (box.upper <= 1).all()
    assert (box.lower <= images).all() and (images <= box.upper).all()
    assert (box.upper - images <= eps + 1e-6).all() and (images - box.lower <= eps + 1e-6).all()


@given(
    st.lists(st.tuples(pixels | st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=20),
    eps,
    st.floats(0.01, 0.5),
)
def test_the_small_box_lies_in_the_ball(values, eps, lambda_ratio):
    images = torch.tensor([v for v, _ in values])
    region = ball(images, eps)
    adversarial = region.lower + torch.tensor([u for _, u in values]) * (region.upper - region.lower)
    box = small_box(adversarial, region, lambda_ratio * eps)
    assert (box.lower >= region.lower - 1e-6).all()
    assert (box.upper <= region.upper + 1e-6).all()
    assert (box.radius <= lambda_ratio * eps + 1e-6).all()


@given(
    st.lists(st.tuples(pixels | st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=20),
    eps,
    st.floats(0.01, 1),
)
def test_the_small_box_with_a_radius_for_each_entry_always_lies_in_the_ball(values, eps, lambda_ratio):
    region = ball(torch.tensor([v for v, _ in values]), eps)
    adversarial = region.lower + torch.tensor([u for _, u in values]) * (region.upper - region.lower)
    box = small_box(adversarial, region, lambda_ratio * region.radius)
    assert (box.lower >= region.lower - 1e-6).all() and (box.upper <= region.upper + 1e-6).all()
    torch.testing.assert_close(box.radius, lambda_ratio * region.radius, rtol=0, atol=1e-6)


@given(st.lists(st.floats(0.5, 0.5) | pixels, min_size=1, max_size=20), st.floats(1e-4, 0.2))
def test_with_lambda_1_it_is_the_ball_where_no_border_cuts(values, eps):
    images = torch.tensor(values).clamp(eps, 1 - eps)
    region = ball(images, eps)
    box = small_box(region.sample(), region, eps)
    torch.testing.assert_close(box.lower, region.lower, atol=2e-6, rtol=0)
    torch.testing.assert_close(box.upper, region.upper, atol=2e-6, rtol=0)


def test_above_one_half_the_published_box_may_leave_the_ball_at_white_pixels():
    # The golden values ask for it (eps 0.3, lambda 0.6); `small_box` says so.
    region = ball(torch.ones(1), 0.3)
    box = small_box(torch.ones(1), region, 0.18)
    torch.testing.assert_close(box.lower, torch.tensor([0.64]))
    torch.testing.assert_close(region.lower, torch.tensor([0.7]))


def test_samples_lie_inside_and_follow_their_generator():
    box = ball(torch.rand(50, 3), 0.2)
    one = box.sample(torch.Generator().manual_seed(1))
    two = box.sample(torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert (one >= box.lower).all() and (one <= box.upper).all()


@given(st.lists(st.tuples(st.floats(-1e300, 1e300), st.floats(0, 1e300) | st.just(0.0)), min_size=1, max_size=20))
def test_the_box_in_float32_is_the_smallest_around_the_one_in_float64(ends):
    low, width = torch.tensor(ends, dtype=torch.float64).t()
    exact = Box(low, low + width)
    found = outwards(exact)
    assert found.lower.dtype == found.upper.dtype == torch.float32
    assert (found.lower.double() <= exact.lower).all() and (found.upper.double() >= exact.upper).all()
    # One float32 number further in, either end would cut something off.
    further = Box(
        *(
            torch.nextafter(end, torch.full_like(end, by))
            for end, by in zip(found, (torch.inf, -torch.inf), strict=True)
        )
    )
    assert (further.lower.double() > exact.lower).all() and (further.upper.double() < exact.upper).all()


@given(st.lists(pixels | st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20))
def test_what_float32_holds_stays_as_it_is(values):
    points = torch.tensor(values, dtype=torch.float32)
    found = outwards(Box(points.double(), points.double()))
    assert torch.equal(found.lower, points) and torch.equal(found.upper, points)
