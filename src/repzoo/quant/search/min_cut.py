"""The cheapest way to put every node on one of two sides, by a minimum cut.

Each node costs something on either side, and a pair of nodes costs something where the first is on
the first side and the second is not. The sum of both is smallest where the flow from the first
side's terminal to the other's is largest.

Source: Y. Dinitz, "Algorithm for solution of a problem of maximum flow in networks with power
estimation", 1970; Y. Boykov and V. Kolmogorov, arXiv:1202.3367, section 2, on energies.
"""

from __future__ import annotations

from collections import deque

# Flows below it are rounding errors of the sums before.
SMALLEST = 1e-9


class MinCut:
    """Collects costs; nodes are numbered from 0."""

    def __init__(self, nodes: int) -> None:
        self._source = nodes
        self._sink = nodes + 1
        self._edges: list[list[int]] = [[] for _ in range(nodes + 2)]
        self._heads: list[
            int
        ] = []  # of each edge; its reverse is the edge with the last bit off
        self._room: list[float] = []

    def add_costs(self, node: int, first: float, second: float) -> None:
        """What `node` costs on the first and on the second side. Both at least 0."""
        self._add(self._source, node, second)
        self._add(node, self._sink, first)

    def add_border(self, node: int, other: int, cost: float) -> None:
        """What it costs if `node` is on the first side and `other` on the second."""
        self._add(node, other, cost)

    def solve(self) -> set[int]:
        """The nodes on the first side."""
        while True:
            levels = self._levels()
            if levels[self._sink] < 0:
                return {node for node in range(self._source) if levels[node] >= 0}
            self._fill(levels)

    def _add(self, tail: int, head: int, room: float) -> None:
        self._edges[tail].append(len(self._heads))
        self._heads.append(head)
        self._room.append(room)
        self._edges[head].append(len(self._heads))
        self._heads.append(tail)
        self._room.append(0.0)

    def _levels(self) -> list[int]:
        """Steps from the source over edges with room; -1 where none lead."""
        levels = [-1] * len(self._edges)
        levels[self._source] = 0
        queue = deque([self._source])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                head = self._heads[edge]
                if self._room[edge] > SMALLEST and levels[head] < 0:
                    levels[head] = levels[node] + 1
                    queue.append(head)
        return levels

    def _fill(self, levels: list[int]) -> None:
        """Send flow along shortest paths until none has room."""
        tried = [0] * len(self._edges)
        path: list[int] = []
        node = self._source
        while True:
            if node == self._sink:
                self._send(path)
                path, node = [], self._source
                continue
            edge = self._next_edge(node, levels, tried)
            if edge >= 0:
                path.append(edge)
                node = self._heads[edge]
            elif path:
                # a dead end: back, and past the edge that led to it
                node = self._heads[path.pop() ^ 1]
                tried[node] += 1
            else:
                return

    def _next_edge(self, node: int, levels: list[int], tried: list[int]) -> int:
        """The next edge of `node` with room that leads a step nearer to the sink; -1: none."""
        edges = self._edges[node]
        while tried[node] < len(edges):
            edge = edges[tried[node]]
            is_nearer = levels[self._heads[edge]] == levels[node] + 1
            if is_nearer and self._room[edge] > SMALLEST:
                return edge
            tried[node] += 1
        return -1

    def _send(self, path: list[int]) -> None:
        amount = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= amount
            self._room[edge ^ 1] += amount
