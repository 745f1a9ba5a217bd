"""The minimum cut against all assignments, and against SciPy's maximum flow."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from repzoo.quant.search.min_cut import MinCut

COSTS = st.integers(0, 20)
BORDERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), COSTS), max_size=12)


def total(
    first: set[int], costs: list[tuple[int, int]], borders: list[tuple[int, int, int]]
) -> int:
    by_node = sum(pair[node not in first] for node, pair in enumerate(costs))
    cut = [
        cost for node, other, cost in borders if node in first and other not in first
    ]
    return by_node + sum(cut)


@given(st.lists(st.tuples(COSTS, COSTS), min_size=6, max_size=6), BORDERS)
def test_no_assignment_is_cheaper(
    costs: list[tuple[int, int]], borders: list[tuple[int, int, int]]
) -> None:
    cut = MinCut(len(costs))
    for node, (first, second) in enumerate(costs):
        cut.add_costs(node, first, second)
    for node, other, cost in borders:
        cut.add_border(node, other, cost)
    everything = range(len(costs))
    best = min(
        total(set(chosen), costs, borders)
        for size in range(len(costs) + 1)
        for chosen in itertools.combinations(everything, size)
    )
    assert total(cut.solve(), costs, borders) == best


def test_a_large_cut_costs_what_the_maximum_flow_is() -> None:
    random = np.random.default_rng(0)
    nodes = 400
    costs = [tuple(pair) for pair in random.integers(0, 50, (nodes, 2)).tolist()]
    borders = []
    for node in range(1, nodes):
        other = int(random.integers(0, node))
        weight = int(random.integers(1, 30))
        borders += [(node, other, weight), (other, node, weight)]
    cut = MinCut(nodes)
    room = np.zeros((nodes + 2, nodes + 2), np.int32)
    for node, (first, second) in enumerate(costs):
        cut.add_costs(node, first, second)
        room[nodes, node] += second
        room[node, nodes + 1] += first
    for node, other, weight in borders:
        cut.add_border(node, other, weight)
        room[node, other] += weight
    flow = maximum_flow(csr_array(room), nodes, nodes + 1).flow_value
    assert total(cut.solve(), costs, borders) == flow
