"""The sentences of the gate: why a model is refused, and what to know about one that passes."""

from __future__ import annotations

from collections.abc import Sequence

from repzoo.measure.race_result import RaceEntry
from repzoo.measure.results import (
    ExpectedDrop,
    LatencyRatio,
    MeanAveragePrecision,
    PairedAccuracy,
)
from repzoo.printable import MINUS, signed
from repzoo.quant.parameters import sqnr
from repzoo.quant.parameters.sqnr import LayerSqnr
from repzoo.quant.search.candidate import NAMED_LAYERS
from repzoo.quant.search.verdict import CHANGED_ALLOWED, UNCHANGED, Verdict
from repzoo.remark import Remark


def refusal(
    name: str,
    layers: Sequence[LayerSqnr],
    paired: PairedAccuracy,
    max_drop: float,
    precision: str = "INT8",
) -> str:
    """Why the model called `name` is refused, which layers are to blame, and what to do."""
    blame = ""
    noisiest = sqnr.noisiest_layers(layers, NAMED_LAYERS)
    if noisiest:
        sentences = [layer.sentence() for layer in noisiest]
        blame = f"Most quantization noise comes from {'; '.join(sentences)}. "
    return (
        f"{name}: {precision} {_loss(paired, max_drop)}; nothing was written. {blame}Raise "
        "--max-drop, calibrate on images that are more like those of the check, or write the "
        "model anyway with --force"
    )


def _loss(paired: PairedAccuracy, max_drop: float) -> Remark:
    """What a refused model loses, and the limit that it exceeds."""
    if paired.labeled is not False and paired.drop_low > max_drop:
        return _loss_of("Top-1", paired, paired.n, max_drop)
    labels = paired.multi_label
    precision = labels.mean_average_precision if labels else None
    if precision is not None and precision.drop_low > max_drop:
        return _loss_of("mean average precision", precision, paired.n, max_drop)
    allowed = max_drop + CHANGED_ALLOWED
    if labels is None:
        return Remark(
            "changes {share:.2f} % of the predictions (95 % interval {low:.2f} to {high:.2f}, "
            "{n} images), more than the {allowed:g} % that pass without labels",
            share=paired.drop,
            low=paired.drop_low,
            high=paired.drop_high,
            n=paired.n,
            allowed=allowed,
        )
    return Remark(
        "changes {share:.2f} % of the labels with a probability above {threshold} (95 % interval "
        "{low:.2f} to {high:.2f}, {n} images), more than the {allowed:g} % that may change",
        share=100 - labels.agreement,
        threshold=labels.threshold,
        low=100 - labels.agreement_high,
        high=100 - labels.agreement_low,
        n=paired.n,
        allowed=allowed,
    )


def _loss_of(
    measure: str,
    drop: PairedAccuracy | MeanAveragePrecision,
    images: int,
    max_drop: float,
) -> Remark:
    return Remark(
        "loses {drop:.2f} points of {measure} (95 % interval {low} to {high}, {n} images), above "
        "the budget of {budget}",
        drop=drop.drop,
        measure=measure,
        low=signed(drop.drop_low),
        high=signed(drop.drop_high),
        n=images,
        budget=f"{max_drop:g}".replace("-", MINUS),
    )


def warnings(
    ratio: LatencyRatio | None,
    paired: PairedAccuracy,
    verdict: Verdict,
    max_drop: float,
    precision: str = "INT8",
) -> list[str]:
    """What to know about a model that is written: about its accuracy first, then its latency."""
    sentences = _about_head(paired)
    if verdict is Verdict.REFUSED:
        loss = _loss(paired, max_drop)
        sentences.append(
            Remark("forced: {precision} {loss}", precision=precision, loss=loss)
        )
    elif paired.unjudged is None:
        sentences.extend(_about_drop(paired, max_drop))
    # Half precision that gains no time has a sentence of its own (half_model.py).
    if precision == "INT8" and ratio is not None and ratio.ratio_low > 1:
        sentences.append(
            Remark(
                "INT8 takes {ratio:.2f} times as long as float on this engine and host",
                ratio=ratio.ratio,
            )
        )
    return sentences


def int8_wins(int8: RaceEntry, fastest_float: RaceEntry) -> Remark:
    """Why INT8 wins the race of engines."""
    assert int8.ratio is not None
    assert int8.ratio_low is not None
    if int8.ratio_low > 1:
        return Remark(
            "INT8 on {engine} was asked for; it takes {ratio:.2f} times as long as float on "
            "{float_engine}",
            engine=int8.engine,
            ratio=int8.ratio,
            float_engine=fastest_float.engine,
        )
    assert int8.ratio_high is not None
    if int8.ratio_high > 1:
        return Remark(
            "INT8 on {engine} and the fastest float, on {float_engine}, are as fast as far as can "
            "be told: INT8 takes {ratio:.2f} of the time (95 % interval {low:.2f} to {high:.2f}), "
            "and its file is smaller",
            engine=int8.engine,
            ratio=int8.ratio,
            float_engine=fastest_float.engine,
            low=int8.ratio_low,
            high=int8.ratio_high,
        )
    return Remark(
        "INT8 on {engine} takes {ratio:.2f} of the time of the fastest float, which is on "
        "{float_engine} (95 % interval {low:.2f} to {high:.2f})",
        engine=int8.engine,
        ratio=int8.ratio,
        float_engine=fastest_float.engine,
        low=int8.ratio_low,
        high=int8.ratio_high,
    )


def float_wins(fastest_float: RaceEntry, int8: RaceEntry) -> Remark:
    """Why float wins the race of engines."""
    return Remark(
        "INT8 cannot win here: its fastest, on {engine}, takes {ratio:.2f} times as long as float "
        "on {float_engine} (95 % interval {low:.2f} to {high:.2f})",
        engine=int8.engine,
        ratio=int8.ratio,
        float_engine=fastest_float.engine,
        low=int8.ratio_low,
        high=int8.ratio_high,
    )


def could_not_win(int8: RaceEntry) -> Remark:
    """Why INT8 on one engine has a time and no accuracy, and how to get it."""
    return Remark(
        "INT8 on {engine} is slower than INT8 that passes already, so its accuracy was not looked "
        "at; --engine {engine} makes it",
        engine=int8.engine,
    )


def smallest_wins(entry: RaceEntry) -> Remark:
    """Why an entry wins the race for the smallest file."""
    form = "INT8" if entry.form == "int8" else "float"
    return Remark(
        "{form} on {engine} is the smallest file that passes the gate: {bytes} bytes",
        form=form,
        engine=entry.engine,
        bytes=entry.bytes,
    )


def _about_head(paired: PairedAccuracy) -> list[str]:
    """What was compared, where it is not the best class."""
    if paired.unjudged is not None:
        return [
            Remark(
                "the gate cannot judge this head: {reason}. Only the error of its outputs was "
                "measured (signal-to-noise ratio {snr:.0f} dB)",
                reason=paired.unjudged,
                snr=paired.logits_snr_db,
            )
        ]
    labels = paired.multi_label
    if labels is None:
        return []
    return [
        Remark(
            "the model ends in Sigmoid (multi-label), so the gate compared each label at "
            "{threshold}: {agreement:.2f} % of the labels agree with the float model's (95 % "
            "interval {low:.2f} to {high:.2f}); {decisions:.2f} % of all decisions changed, and a "
            "label of {images:.2f} % of the images{precision}",
            threshold=labels.threshold,
            agreement=labels.agreement,
            low=labels.agreement_low,
            high=labels.agreement_high,
            decisions=labels.decisions_changed,
            images=labels.images_changed,
            precision=_precision(labels.mean_average_precision),
        )
    ]


def _precision(precision: MeanAveragePrecision | None) -> str:
    """The end of a sentence; "" where no labels are known."""
    if precision is None:
        return ""
    return Remark(
        "; mean average precision {first:.2f} % in float, {second:.2f} % in INT8 (95 % interval "
        "of the drop {low} to {high} points)",
        first=precision.first,
        second=precision.second,
        low=signed(precision.drop_low),
        high=signed(precision.drop_high),
    )


def _about_drop(paired: PairedAccuracy, max_drop: float) -> list[str]:
    """What remains unknown of the drop of a model that passes, and what changed."""
    sentences: list[str] = []
    is_multi_label = paired.multi_label is not None
    if paired.labeled is False:
        sentences.append(_without_labels(paired, max_drop))
    elif paired.drop_high > max_drop:
        sentences.append(
            Remark(
                "{n} images cannot exclude a drop of up to {drop:.2f} points (budget {budget})"
                "{expected}",
                n=paired.n,
                drop=paired.drop_high,
                budget=max_drop,
                expected=_expected_drop(paired.expected),
            )
        )
    if paired.same_prediction < UNCHANGED and not is_multi_label:
        sentences.append(
            Remark(
                "{share:.1f} % of the predictions differ from the float model's",
                share=100 - paired.same_prediction,
            )
        )
    return sentences


def _without_labels(paired: PairedAccuracy, max_drop: float) -> Remark:
    if paired.multi_label is not None:
        return Remark(
            "the images have no labels of their own; to check the budget of {budget} points, give "
            "labeled images",
            budget=max_drop,
        )
    return Remark(
        "the images have no labels: at most {most:.2f} points of Top-1 are lost ({share:.2f} % of "
        "the predictions changed); to check the budget of {budget} points, give labeled images",
        most=paired.drop_high,
        share=paired.drop,
        budget=max_drop,
    )


def _expected_drop(expected: ExpectedDrop | None) -> str:
    """The end of a sentence; "" where the logits are not known."""
    if expected is None:
        return ""
    low, high = expected.drop_interval()
    return Remark(
        "; expected drop on new images: {drop} points (95 % interval {low} to {high})",
        drop=signed(expected.drop),
        low=signed(low),
        high=signed(high),
    )
