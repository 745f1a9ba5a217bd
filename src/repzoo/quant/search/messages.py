"""The sentences of the gate: why a model is refused, and what to know about one that passes."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.measure.results import LatencyRatio, PairedAccuracy
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.search.candidate import NAMED_LAYERS
from repzoo.quant.search.verdict import CHANGED_ALLOWED, UNCHANGED, Verdict


def refusal(
    name: str, layers: Sequence[LayerSqnr], paired: PairedAccuracy, max_drop: float
) -> str:
    """Why the model called `name` is refused, which layers are to blame, and what to do."""
    interval = f"95 % interval {paired.drop_low:.2f} to {paired.drop_high:.2f}, {paired.n} images"
    if paired.labeled is not False:
        drop = f"{paired.drop:.2f} points of Top-1 ({interval})"
        loss = f"loses {drop}, above the budget of {max_drop}"
    else:
        allowed = max_drop + CHANGED_ALLOWED
        loss = (
            f"changes {paired.drop:.2f} % of the predictions ({interval}), more than the "
            f"{allowed:g} % that pass without labels"
        )
    noisiest = [
        layer.sentence() for layer in sqnr.noisiest_layers(layers, NAMED_LAYERS)
    ]
    blame = (
        f"Most quantization noise comes from {'; '.join(noisiest)}. "
        if noisiest
        else ""
    )
    return (
        f"{name}: INT8 {loss}; nothing was written. {blame}Raise --max-drop, calibrate on images "
        "that are more like those of the check, or write the model anyway with --force"
    )


def warnings(
    ratio: LatencyRatio, paired: PairedAccuracy, verdict: Verdict, max_drop: float
) -> list[str]:
    """What to know about a model that is written: about its accuracy first, then its latency."""
    sentences = []
    if verdict is Verdict.REFUSED:
        sentences.append(
            f"forced: the drop of {paired.drop:.2f} points is above the budget of {max_drop}"
        )
    elif paired.labeled is False:
        sentences.append(
            f"the images have no labels: at most {paired.drop_high:.2f} points of Top-1 are lost "
            f"({paired.drop:.2f} % of the predictions changed); to check the budget of {max_drop} "
            "points, give labeled images"
        )
    elif paired.drop_high > max_drop:
        sentences.append(
            f"{paired.n} images cannot exclude a drop of up to {paired.drop_high:.2f} points "
            f"(budget {max_drop}){_expected_drop(paired)}"
        )
    if paired.same_prediction < UNCHANGED:
        changed = 100 - paired.same_prediction
        sentences.append(
            f"{changed:.1f} % of the predictions differ from the float model's"
        )
    if ratio.ratio_low > 1:
        sentences.append(
            f"INT8 takes {ratio.ratio:.2f} times as long as float on this engine and host"
        )
    return sentences


def _expected_drop(paired: PairedAccuracy) -> str:
    if paired.expected is None:
        return ""
    low, high = paired.expected.drop_interval()
    return (
        f"; expected drop on new images: {paired.expected.drop:z.2f} points "
        f"(95 % interval {low:z.2f} to {high:z.2f})"
    )
