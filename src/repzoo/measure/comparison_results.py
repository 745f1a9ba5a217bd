"""Results of comparisons of quantizers (benchmarks/int8.py), as Records hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from repzoo.graph.tools.int8_share import Int8Share
from repzoo.measure.results import ExpectedDrop, inline


@dataclass(frozen=True, kw_only=True)
class EngineComparison:
    """One quantizer's INT8 model on one engine, against the float model.

    Fields are those of PairedAccuracy; `float_top1` is the float model's Top-1 in percent, and
    `latency_ratio` the latency over that of the float model. `stage` is the stage of repzoo's
    ladder that was chosen on this engine; None for other quantizers. `int8` is how much of the
    model runs in INT8; None in older rows.
    """

    n: int
    drop: float
    drop_low: float
    drop_high: float
    same_prediction: float
    expected: ExpectedDrop | None = field(default=None, metadata=inline("expected_"))
    logits_snr_db: float | None = None
    float_top1: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    stage: str | None = None
    int8: Int8Share | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizerComparison:
    """One quantizer among others on the same model and images (benchmarks/int8.py).

    recipe              name of the quantizer
    stage               the stage of repzoo's ladder that made the file whose size and seconds these
                        are; None for other quantizers
    seconds             what quantizing took
    reason              why there is no model; empty where there is one
    engines             figures by engine; empty where there is no model
    bytes, float_bytes  size of the INT8 file (None: there is none) and of the float file
    """

    recipe: str
    stage: str | None = None
    seconds: float
    reason: str
    engines: Mapping[str, EngineComparison]
    bytes: int | None
    float_bytes: int
