"""Results that a board or its maker's tools measured or estimated, as Records.

They never mix with measurements of this machine: each says its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# board log: it ran on the board. compiler estimate: nothing ran. vendor tool: it ran on a PC, in
# the tool's own arithmetic.
Source = Literal["board log", "compiler estimate", "vendor tool"]


@dataclass(frozen=True, kw_only=True)
class BoardLatency:
    """Latency and throughput of one model on a board, as a log or a compiler states them.

    A log has one number for each figure, so there are no intervals. None: it does not say.

    target             such as rdk-x5
    source             who says so
    threads            that called the model at once
    batch              images in a call
    latency_ms         average of a call
    min_ms, max_ms     the fastest and the slowest call
    percentiles_ms     those that the log itself prints, such as "p99"
    fps                images a second, all threads together
    frames             calls that were timed
    ddr_bytes          read from and written to memory for one image
    memory_bytes       that the model takes
    accelerator_nodes  nodes of the compiled graph that run on the accelerator
    cpu_nodes          those that run on the CPU; a compiler's estimate leaves their time out
    """

    target: str
    source: Source
    threads: int | None = None
    batch: int = 1
    latency_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    percentiles_ms: Mapping[str, float] | None = None
    fps: float | None = None
    frames: int | None = None
    ddr_bytes: int | None = None
    memory_bytes: int | None = None
    accelerator_nodes: int | None = None
    cpu_nodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class BoardAccuracy:
    """Accuracy that a board's script printed, in percent of images.

    precision  number format of the model that ran, such as "int8"; "" where it is not known
    n          number of images; None where the log does not say. Only with it are there intervals
    *_low, *_high  Wilson's 95 % interval
    """

    target: str
    source: Source
    precision: str = ""
    n: int | None = None
    top1: float
    top1_low: float | None = None
    top1_high: float | None = None
    top5: float | None = None
    top5_low: float | None = None
    top5_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class NodeSimilarity:
    """A tensor of the vendor's quantized model against the same of the float model.

    Every tool has figures of its own; None: not one of this tool's.

    device     that runs the node, such as BPU, NPU or CPU
    cosine     cosine similarity, with all errors of the nodes before
    alone      cosine similarity where only this node is quantized
    threshold  absolute value that becomes the largest integer
    dtype      number format
    l1, l2, chebyshev, euclid  distances in the tensor's unit, as the tool computes them
    snr_db     signal-to-noise ratio
    """

    name: str
    op: str = ""
    device: str = ""
    dtype: str = ""
    cosine: float | None = None
    alone: float | None = None
    threshold: float | None = None
    l1: float | None = None
    l2: float | None = None
    chebyshev: float | None = None
    euclid: float | None = None
    snr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoardSimilarity:
    """How near a vendor's quantized model is to the float model, tensor by tensor.

    calibration  method that the tool chose; "" where it does not say
    outputs      of the model; empty where the tool does not tell them from other tensors
    nodes        in the order of the tool
    """

    target: str
    source: Source = "vendor tool"
    calibration: str = ""
    outputs: tuple[NodeSimilarity, ...] = ()
    nodes: tuple[NodeSimilarity, ...] = ()

    @property
    def cpu_nodes(self) -> int:
        """Nodes that run on the CPU, where the tool says where nodes run."""
        return sum(node.device == "CPU" for node in self.nodes)
