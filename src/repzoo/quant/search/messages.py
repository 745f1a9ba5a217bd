"""The sentences of the gate: why a model is refused, and what to know about one that passes."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.measure.results import LatencyRatio, PairedAccuracy
from repzoo.printable import signed
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.search.candidate import NAMED_LAYERS
from repzoo.quant.search.verdict import CHANGED_ALLOWED, UNCHANGED, Verdict


def refusal(
    name: str, layers: Sequence[LayerSqnr], paired: PairedAccuracy, max_drop: float
) -> str:
    """Why the model called `name` is refused, which layers are to blame, and what to do."""
    noisiest = [
        layer.sentence() for layer in sqnr.noisiest_layers(layers, NAMED_LAYERS)
    ]
    blame = (
        f"Most quantization noise comes from {'; '.join(noisiest)}. "
        if noisiest
        else ""
    )
    return (
        f"{name}: INT8 {_loss(paired, max_drop)}; nothing was written. {blame}Raise --max-drop, "
        "calibrate on images that are more like those of the check, or write the model anyway "
        "with --force"
    )


def _loss(paired: PairedAccuracy, max_drop: float) -> str:
    """What a refused model loses, and the limit that it exceeds."""
    if paired.labeled is not False and paired.drop_low > max_drop:
        interval = _points_interval(paired.drop_low, paired.drop_high, paired.n)
        loss = f"loses {paired.drop:.2f} points of Top-1 ({interval})"
        return f"{loss}, above the budget of {max_drop}"
    labels = paired.multi_label
    precision = labels.mean_average_precision if labels else None
    if precision is not None and precision.drop_low > max_drop:
        interval = _points_interval(precision.drop_low, precision.drop_high, paired.n)
        loss = (
            f"loses {precision.drop:.2f} points of mean average precision ({interval})"
        )
        return f"{loss}, above the budget of {max_drop}"
    allowed = max_drop + CHANGED_ALLOWED
    if labels is None:
        interval = _interval(paired.drop_low, paired.drop_high, paired.n)
        return (
            f"changes {paired.drop:.2f} % of the predictions ({interval}), more than the "
            f"{allowed:g} % that pass without labels"
        )
    low, high = 100 - labels.agreement_high, 100 - labels.agreement_low
    return (
        f"changes {100 - labels.agreement:.2f} % of the labels with a probability above "
        f"{labels.threshold} ({_interval(low, high, paired.n)}), more than the {allowed:g} % that "
        "may change"
    )


def _points_interval(low: float, high: float, images: int) -> str:
    return f"95 % interval {signed(low)} to {signed(high)}, {images} images"


def _interval(low: float, high: float, images: int) -> str:
    return f"95 % interval {low:.2f} to {high:.2f}, {images} images"


def warnings(
    ratio: LatencyRatio | None,
    paired: PairedAccuracy,
    verdict: Verdict,
    max_drop: float,
) -> list[str]:
    """What to know about a model that is written: about its accuracy first, then its latency."""
    sentences = _about_head(paired)
    if verdict is Verdict.REFUSED:
        sentences.append(f"forced: INT8 {_loss(paired, max_drop)}")
    elif paired.unjudged is None:
        sentences.extend(_about_drop(paired, max_drop))
    if ratio is not None and ratio.ratio_low > 1:
        sentences.append(
            f"INT8 takes {ratio.ratio:.2f} times as long as float on this engine and host"
        )
    return sentences


def _about_head(paired: PairedAccuracy) -> list[str]:
    """What was compared, where it is not the best class."""
    if paired.unjudged is not None:
        return [
            f"the gate cannot judge this head: {paired.unjudged}. Only the error of its outputs "
            f"was measured (signal-to-noise ratio {paired.logits_snr_db:.0f} dB)"
        ]
    labels = paired.multi_label
    if labels is None:
        return []
    sentence = (
        f"the model ends in Sigmoid (multi-label), so the gate compared each label at "
        f"{labels.threshold}: {labels.agreement:.2f} % of the labels agree with the float model's "
        f"(95 % interval {labels.agreement_low:.2f} to {labels.agreement_high:.2f}); "
        f"{labels.decisions_changed:.2f} % of all decisions changed, and a label of "
        f"{labels.images_changed:.2f} % of the images"
    )
    precision = labels.mean_average_precision
    if precision is not None:
        sentence += (
            f"; mean average precision {precision.first:.2f} % in float, {precision.second:.2f} % "
            f"in INT8 (95 % interval of the drop {signed(precision.drop_low)} to "
            f"{signed(precision.drop_high)} points)"
        )
    return [sentence]


def _about_drop(paired: PairedAccuracy, max_drop: float) -> list[str]:
    """What remains unknown of the drop of a model that passes, and what changed."""
    sentences = []
    is_multi_label = paired.multi_label is not None
    if paired.labeled is False and is_multi_label:
        sentences.append(
            f"the images have no labels of their own; to check the budget of {max_drop} points, "
            "give labeled images"
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
    if paired.same_prediction < UNCHANGED and not is_multi_label:
        changed = 100 - paired.same_prediction
        sentences.append(
            f"{changed:.1f} % of the predictions differ from the float model's"
        )
    return sentences


def _expected_drop(paired: PairedAccuracy) -> str:
    if paired.expected is None:
        return ""
    low, high = paired.expected.drop_interval()
    return (
        f"; expected drop on new images: {signed(paired.expected.drop)} points "
        f"(95 % interval {signed(low)} to {signed(high)})"
    )
