"""The result of benchmarks/peers.py: one contender beside others on the same model."""

from __future__ import annotations

from dataclasses import dataclass, field

from repzoo.measure.results import Latency, LatencyRatio, Setting, inline


@dataclass(frozen=True, kw_only=True)
class PeerLatency:
    """One contender, timed in the same interleaved rounds as all others of its job.

    setting      threads and batch
    contender    what was timed, such as "NNCF"
    own          whether repzoo made the file
    exact        False where this host's kernels saturate sums of the file's 8-bit products
    reason       why there is no latency; empty where there is one
    macs         multiply-accumulates of one image, the same for all contenders
    latency      None where there is a `reason`
    ms           the latency to compare: median over the rounds, each divided by how slow the host
                 was in it (the geometric mean of all contenders), times its median. On a shared
                 host whose clock changes, percentiles of all calls are of different clocks
    peak_share   MACs a second over the peak of as many cores as threads, 0..1; None where the
                 peak is not known
    ratio        latency over that of the fastest peer; None for that peer itself
    exact_ratio  the same, over the fastest of the exact peers
    drop         points of Top-1 that an INT8 file loses on its engine; None for float
    same         percent of predictions that it leaves as float has them
    refused      whether repzoo's gate would refuse the INT8 file
    """

    setting: Setting = field(metadata=inline())
    contender: str
    own: bool
    exact: bool = True
    reason: str = ""
    macs: int
    latency: Latency | None = None
    ms: float | None = None
    peak_share: float | None = None
    ratio: LatencyRatio | None = None
    exact_ratio: LatencyRatio | None = None
    drop: float | None = None
    same: float | None = None
    refused: bool | None = None
