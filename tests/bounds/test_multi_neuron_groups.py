import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sabr.bounds.multi_neuron import choose_groups, triangle_areas


def test_groups_are_of_the_neurons_that_cost_most():
    lower = torch.tensor([-1.0, -1.0, 0.5, -2.0, -1.0, -3.0, -1.0])
    upper = torch.tensor([1.0, 1.0, 2.0, 2.0, 0.0, 1.0, 1.0])
    areas = triangle_areas(lower, upper)
    assert areas.tolist() == [0.5, 0.5, 0, 2, 0, 1.5, 0.5]
    # Ranks: 3, 5, 0, 1, 6. Triples that share at most one: (0, 1, 2), then (0, 3, 4).
    assert choose_groups(areas, lower, upper).tolist() == [[0, 3, 5], [1, 3, 6]]
    assert choose_groups(areas, lower, upper, most=1).tolist() == [[0, 3, 5]]
    assert choose_groups(areas, lower, upper, size=2, partition=3).tolist() == [[3, 5], [0, 3], [0, 5], [1, 6]]
    assert choose_groups(areas, lower, upper, overlap=0).tolist() == [[0, 3, 5]]
    assert choose_groups(-areas, lower, upper, most=1).tolist() == [[0, 1, 6]]
    assert choose_groups(areas[:3], lower[:3], upper[:3]).shape == (0, 3)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(0, 70), st.integers(2, 3), st.integers(5, 30))
def test_groups_overlap_little(seed, count, size, partition):
    generator = torch.Generator().manual_seed(seed)
    lower = -torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) - 0.2
    areas = triangle_areas(lower, upper)
    groups = choose_groups(areas, lower, upper, size=size, partition=partition)
    assert torch.equal(groups, choose_groups(areas, lower, upper, size=size, partition=partition))
    sets = [set(group) for group in groups.tolist()]
    assert all(len(group) == size for group in sets)
    assert all(len(one & other) <= 1 for one, other in itertools.combinations(sets, 2))
    unstable = int(((lower < 0) & (upper > 0)).sum())
    if unstable >= partition:  # most pairs of a full partition are in a group
        possible = (unstable // partition) * partition * (partition - 1) / (size * (size - 1))
        assert len(sets) >= 0.5 * possible
