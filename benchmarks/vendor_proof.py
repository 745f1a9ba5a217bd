"""What closed quantizers make of a model: as folded, and with its weights on their grid.

    python -m benchmarks.vendor_proof MODEL=DATA [MODEL=DATA ...] [--tool NAME ...] [--variant NAME ...]
        [--images 300] [--calibration 50] [--results results/vendor_proof.jsonl] [--work FOLDER]
    python -m benchmarks.vendor_proof --table

Each vendor's tool runs with its unchanged default flow, on the same calibration images, and its own
quantized model predicts the same images as the float model. Rows that the results hold already are
not measured again.

    folded              the folded float model
    on grid             the same from `repzoo harden`
    on grid, judged     as on grid, with `--judge tool` as `repzoo pack --compile` has it: the tool
                        itself chooses how weights are rounded, or that they stay as they are
    predicted           the on-grid model as repzoo simulates the tool
    our scales          (rdk-x5) weights on the grid and our scales of activations, which the tool
                        takes from Q/DQ pairs: `calibration_type: load`
    our scales, QDQ     that file on ONNX Runtime; the tool's predictions should be the same
    rescaled            the folded model with random factors for its channels: the same function
    rescaled, on grid   what `repzoo harden` makes of that

The tool chains are those of `repzoo toolchains`; their models run on the engines of their names.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo import __version__, verbs
from repzoo.artifact import Artifact, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset
from repzoo.data.source import open_source
from repzoo.engines import Session, engine
from repzoo.engines.pixels import pixels_of
from repzoo.engines.rdk_x5 import RdkX5
from repzoo.engines.rknn import Rknn
from repzoo.errors import RepzooError
from repzoo.measure import accuracy, record
from repzoo.measure.expected_drop import snr_db
from repzoo.measure.predictions import ModelPredictions, best_classes
from repzoo.measure.record import Record
from repzoo.measure.results import PairedAccuracy
from repzoo.packs.compile import OUTPUT
from repzoo.packs.rdk_x5 import own_scales
from repzoo.packs.rdk_x5_load import load_form
from repzoo.packs.rknn import CALIBRATION, CHIPS, image_file
from repzoo.packs.rknn_program import arguments_of
from repzoo.quant.baselines import registry
from repzoo.quant.network.channels import FIXED, link_channels
from repzoo.quant.network.layers import find_layers
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters.qdq_writer import prepare_for_qdq
from repzoo.quant.rewrites.equalize import rescale_channels
from repzoo.quant.search.harden import as_target_takes_it
from repzoo.storage import make_folder
from repzoo.vendors import program, recipes
from repzoo.vendors.rknn_build import RknnBuild, hashes_of

Pixels = npt.NDArray[np.uint8]  # [n, 3, H, W]
HARDENING_IMAGES = 100
RESCALING = 1.5  # standard deviation of the logarithm of a random factor
TOOL_SECONDS = 1500.0
YAML = """\
model_parameters:
  onnx_model: 'model.onnx'
  march: 'bayes-e'
  working_dir: 'out'
  output_model_file_prefix: 'm'
input_parameters:
  input_type_rt: 'rgb'
  input_layout_rt: 'NCHW'
  input_type_train: 'rgb'
  input_layout_train: 'NCHW'
  norm_type: 'data_mean_and_scale'
  mean_value: '{mean}'
  scale_value: '{scale}'
calibration_parameters:
  {calibration}
compiler_parameters:
  compile_mode: 'latency'
  optimize_level: 'O0'
"""
FOLDER = "cal_data_dir: 'calibration_f32'\n  calibration_type: 'default'"
LOAD = "calibration_type: 'load'"


@dataclass(frozen=True)
class Case:
    """A model with the images that calibrate and judge it.

    folded       float
    calibration  pixels that a tool calibrates on
    images       pixels that judge
    reference    the float model's predictions on these
    work         folder for what takes long to make
    """

    folded: Artifact
    data: str
    calibration: Pixels
    calibration_set: Dataset
    images: Pixels
    reference: ModelPredictions
    work: Path

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """(mean, std) of pixels 0..255."""
        preprocess = self.folded.require_preprocess()
        mean = [255 * value for value in preprocess.mean]
        return mean, [255 * value for value in preprocess.std]


def read_pixels(artifact: Artifact, images: Dataset) -> Pixels:
    """`images` as the model sees them, before normalization."""
    preprocess = artifact.require_preprocess()
    parts: list[Pixels] = []
    for batch in batches(images, preprocess, 32, ReadReport()):
        parts.append(pixels_of(batch.inputs, preprocess).transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def open_case(name: str, data: str, options: argparse.Namespace) -> Case:
    """The case of one MODEL=DATA."""
    loaded = verbs.load(name)
    folded = verbs.fold(loaded) if loaded.form == "train" else loaded
    split = open_source(data).split_for_quantization(256, 0)
    chosen = split.gate.balanced_sample(min(options.images, len(split.gate)), 0)
    gate = split.gate.subset(chosen)
    # Not the images that `harden` calibrates on: a user's would be others too.
    sample = split.calibration.balanced_sample(options.calibration, 1)
    calibration = split.calibration.subset(sample)
    run = accuracy.open_run(folded, engine("onnxruntime"))
    (reference,) = accuracy.evaluate([run], gate, ReadReport(), logits=True)
    work = options.work / folded.name
    work.mkdir(parents=True, exist_ok=True)
    return Case(
        folded,
        data,
        read_pixels(folded, calibration),
        calibration,
        read_pixels(folded, gate),
        reference,
        work,
    )


def rescaled(artifact: Artifact) -> Artifact:
    """The same function with random factors for all channels that may have them."""
    model = prepare_for_qdq(artifact.model)
    layers = find_layers(model)
    channels = link_channels(model, layers)
    random = np.random.default_rng(5)
    factors = np.exp(RESCALING * random.standard_normal(channels.count))
    factors[FIXED] = 1
    result = rescale_channels(model, layers, channels, factors)
    return replace(artifact, model=result.model)


def hardened(
    case: Case, artifact: Artifact, scheme: str, label: str, judge: str = "simulation"
) -> Artifact:
    """What `repzoo harden` makes of `artifact`; from the work folder where it is there."""
    path = case.work / f"{label}.{scheme}.onnx"
    if not path.exists():
        result = verbs.harden(
            artifact,
            case.data,
            target=scheme,
            images=HARDENING_IMAGES,
            force=True,
            judge=judge,
        )
        report = result.hardening
        assert report is not None
        print(
            f"    harden {label} {scheme}: {report.stage}, {report.ranges}, "
            f"fallback {[layer.node for layer in report.fallback]}",
            flush=True,
        )
        report.simulated.save(path.with_suffix(".simulated.onnx"))
        result.save(path)
    return Artifact.read(path)


def for_tool(artifact: Artifact, scheme: str) -> Artifact:
    """`artifact` in the opset and for the number of images that the target takes."""
    model = as_target_takes_it(artifact.model, load_scheme(scheme))
    return replace(artifact, model=model)


def fresh_folder(case: Case, name: str) -> Path:
    """A folder for a run of a tool."""
    folder = case.work / f"{name}-{int(time.time() * 1000)}"
    folder.mkdir()
    return folder


def numbers(values: Sequence[float]) -> str:
    """`values` as hb_mapper reads them."""
    return " ".join(f"{value:.8g}" for value in values)


def run_rdk_x5(
    case: Case, model: onnx.ModelProto, calibration: str
) -> tuple[npt.NDArray[np.float32], Path]:
    """(logits of hb_mapper's own quantized model, the folder that it wrote)."""
    folder = fresh_folder(case, "rdk-x5")
    onnx.save(model, folder / "model.onnx")
    mean, std = case.normalization
    scale = [1 / value for value in std]
    text = YAML.format(
        mean=numbers(mean), scale=numbers(scale), calibration=calibration
    )
    (folder / "config.yaml").write_text(text)
    images = folder / "calibration_f32"
    images.mkdir()
    for number, pixels in enumerate(case.calibration):
        pixels.astype(np.float32).tofile(images / f"{number:04d}.rgb")
    command = ["hb_mapper", "makertbin", "--model-type", "onnx"]
    quantized = folder / "out" / "m_quantized_model.onnx"
    run_until(quantized, [*command, "--config", "config.yaml"], folder)
    if not quantized.exists():
        raise RepzooError(f"hb_mapper wrote no quantized model; see {folder}/log.txt")
    session = RdkX5().open_pack(quantized, case.folded.require_preprocess())
    return logits_of(case, session), folder


def run_until(path: Path, command: Sequence[str], folder: Path) -> None:
    """Run hb_mapper until it has written `path` and begun to compile, or ends."""
    log = folder / "log.txt"
    end = time.monotonic() + TOOL_SECONDS
    recipe = recipes.find_recipe("rdk-x5")
    with log.open("wb") as output:
        process = program.start(
            recipe, command, folder, output, stdin=subprocess.DEVNULL
        )
        try:
            # Compiling takes longest, and says nothing of accuracy.
            while process.poll() is None and time.monotonic() < end:
                if path.exists() and b"Start to compile" in log.read_bytes():
                    break
                time.sleep(1)
        finally:
            program.end(process)


def run_rknn(
    case: Case, model: onnx.ModelProto, method: str
) -> npt.NDArray[np.float32]:
    """The logits of rknn-toolkit2's simulator, weights by `method` (channel or layer)."""
    folder = fresh_folder(case, f"rknn-{method}")
    onnx.save(model, folder / "model.onnx")
    names = write_calibration(case, folder)
    build = RknnBuild(
        version=recipes.find_recipe("rknn").version,
        model="model.onnx",
        method=method,
        platform=CHIPS[0],
        images=names,
        float_layers=(),
        hashes=hashes_of(folder, ("model.onnx", *names)),
        **arguments_of(case.folded),
    )
    path = make_folder(folder / OUTPUT) / "build.json"
    build.write(path)
    session = Rknn().open_pack(path, case.folded.require_preprocess())
    return logits_of(case, session)


def write_calibration(case: Case, folder: Path) -> tuple[str, ...]:
    """Write the calibration images as a pack has them; their names below `folder`."""
    color = case.folded.require_preprocess().color
    make_folder(folder / CALIBRATION)
    names: list[str] = []
    for number, pixels in enumerate(case.calibration):
        suffix, content = image_file(pixels, color)
        names.append(f"{CALIBRATION}/{number:04d}.{suffix}")
        (folder / names[-1]).write_bytes(content)
    return tuple(names)


def run_own(case: Case, artifact: Artifact) -> npt.NDArray[np.float32]:
    """The logits of an ONNX model on ONNX Runtime."""
    return logits_of(case, engine("onnxruntime").open(artifact.model, exact=True))


def logits_of(case: Case, session: Session) -> npt.NDArray[np.float32]:
    """The logits [n, classes] of the images that judge."""
    preprocess = case.folded.require_preprocess()
    mean = np.array(preprocess.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(preprocess.std, np.float32).reshape(-1, 1, 1)
    rows = []
    for pixels in case.images:
        inputs = ((pixels / np.float32(255) - mean) / std)[None].astype(np.float32)
        rows.append(session.run(inputs).reshape(1, -1))
    return np.concatenate(rows)


def run_quantizer(case: Case, artifact: Artifact, name: str) -> Any:
    """The logits of what another quantizer makes of `artifact`."""
    report = ReadReport()
    calibration = case.calibration_set
    task = registry.make_task(artifact, calibration, calibration, 0.3, report)
    model = registry.load_quantizer(name)(task)
    step = Step("quantize", __version__, {"recipe": name})
    return run_own(case, artifact.then(model, step))


Answer = tuple[str, npt.NDArray[np.float32], dict[str, Any]]  # variant, logits, samples
Missing = Callable[[str], bool]


def on_rdk_x5(case: Case, missing: Missing) -> Any:
    """The rows of hb_mapper, one at a time."""
    scheme = "rdk-x5"
    yield from forms(
        case, missing, scheme, lambda model: run_rdk_x5(case, model, FOLDER)[0]
    )
    if missing("our scales"):
        artifact = hardened(case, case.folded, scheme, "folded")
        steps = own_scales(artifact)
        model = load_form(artifact.model, steps)
        logits, folder = run_rdk_x5(case, model, LOAD)
        own = run_own(case, replace(artifact, model=model))
        same = float((logits.argmax(1) == own.argmax(1)).mean() * 100)
        samples = {"same_as_qdq": same, **compare_thresholds(folder, steps)}
        yield "our scales", logits, samples
        yield "our scales, QDQ", own, {}


def compare_thresholds(folder: Path, steps: dict[str, float]) -> dict[str, int]:
    """How many of the tool's thresholds are 127 times our scale to the last digit of float32."""
    model = onnx.load(folder / "out" / "m_calibrated_model.onnx")
    ours = {np.float32(127 * np.float32(step)) for step in steps.values()}
    # The pixels have a scale of the tool's own.
    skipped = {item.name for item in (*model.graph.initializer, *model.graph.input)}
    theirs = []
    for node in model.graph.node:
        if node.op_type != "HzCalibration" or node.input[0] in skipped:
            continue
        values = {item.name: list(item.floats) for item in node.attribute}
        if len(values.get("thresholds", ())) == 1:
            theirs.append(np.float32(values["thresholds"][0]))
    equal = sum(value in ours for value in theirs)
    return {"thresholds": len(theirs), "equal_thresholds": equal}


def forms(case: Case, missing: Missing, scheme: str, run: Callable[..., Any]) -> Any:
    """The rows that every tool has; `run` gives the tool's logits of a model."""
    if missing("folded"):
        yield "folded", run(for_tool(case.folded, scheme).model), {}
    if missing("on grid") or missing("predicted"):
        artifact = hardened(case, case.folded, scheme, "folded")
        path = case.work / f"folded.{scheme}.simulated.onnx"
        if missing("predicted"):
            yield "predicted", run_own(case, Artifact.read(path)), {}
        if missing("on grid"):
            yield "on grid", run(for_tool(artifact, scheme).model), {}
    if missing("on grid, judged"):
        artifact = hardened(case, case.folded, scheme, "judged", judge="tool")
        yield "on grid, judged", run(for_tool(artifact, scheme).model), {}
    if missing("rescaled"):
        other = rescaled(case.folded)
        yield "rescaled", run(for_tool(other, scheme).model), {}
    if missing("rescaled, on grid"):
        artifact = hardened(case, rescaled(case.folded), scheme, "rescaled")
        yield "rescaled, on grid", run(for_tool(artifact, scheme).model), {}


def on_rknn(case: Case, missing: Missing) -> Any:
    """The rows of rknn-toolkit2 with a scale for each channel."""
    return forms(case, missing, "rknn", lambda model: run_rknn(case, model, "channel"))


def on_rknn_layer(case: Case, missing: Missing) -> Any:
    """The rows of rknn-toolkit2 with a scale for each weight tensor."""
    scheme = "rknn-layer"
    return forms(case, missing, scheme, lambda model: run_rknn(case, model, "layer"))


def on_quantizer(name: str, scheme: str) -> Callable[[Case, Missing], Any]:
    """The rows of another quantizer of this host, whose rules are those of `scheme`."""

    def rows(case: Case, missing: Missing) -> Any:
        if missing("folded"):
            yield "folded", run_quantizer(case, case.folded, name), {}
        if missing("on grid"):
            artifact = hardened(case, case.folded, scheme, "folded")
            yield "on grid", run_quantizer(case, artifact, name), {}

    return rows


TOOLS = {
    "rdk-x5": on_rdk_x5,
    "rknn": on_rknn,
    "rknn-layer": on_rknn_layer,
    "ort-static": on_quantizer("ort-static", "ort-minmax"),
    "ort-static-per-tensor": on_quantizer("ort-static-per-tensor", "per-tensor"),
    "nncf-default": on_quantizer("nncf-default", "ort-minmax"),
}


def versions(tool: str) -> dict[str, str]:
    """The name and version of a tool."""
    chain = {"rknn-layer": "rknn"}.get(tool, tool)
    if chain in recipes.recipes():
        return {"name": tool, "version": recipes.find_recipe(chain).version}
    return {"name": tool, "version": engine("onnxruntime").version()}


def make_record(
    case: Case, tool: str, answer: Answer, calibration: int
) -> Record[PairedAccuracy]:
    """The row of one variant in one tool, against float."""
    variant, logits, samples = answer
    first = case.reference
    assert first.logits is not None
    top = best_classes(logits, first.top.shape[1])
    identity = {**first.identity, "variant": variant}
    second = replace(
        first, identity=identity, engine=versions(tool), top=top, logits=logits
    )
    paired = accuracy.compare(first, second)
    values = replace(paired.values, logits_snr_db=snr_db(first.logits, logits))
    data = {**paired.data, "calibration_images": calibration}
    engines = {"first": first.engine, "second": versions(tool)}
    return replace(paired, values=values, data=data, engine=engines, samples=samples)


def key_of(row: Record[Any]) -> tuple[str, str, str]:
    """(model, tool, variant) of a row."""
    second = row.artifact["second"]
    return second["name"], row.engine["second"]["name"], second["variant"]


def measure(name: str, data: str, options: argparse.Namespace) -> None:
    """All rows of one model that the results lack."""
    case = open_case(name, data, options)
    known = {key_of(row) for row in read_results(options.results)}

    for tool in options.tool or TOOLS:

        def missing(variant: str, tool: str = tool) -> bool:
            wanted = variant in (options.variant or VARIANTS)
            return wanted and (case.folded.name, tool, variant) not in known

        started = time.perf_counter()
        try:
            for answer in TOOLS[tool](case, missing):
                row = make_record(case, tool, answer, len(case.calibration))
                record.append(options.results, [row])
                values = row.values
                print(
                    f"{case.folded.name} {tool} {answer[0]}: drop {values.drop:.2f}, "
                    f"same {values.same_prediction:.1f} %, {values.logits_snr_db:.1f} dB "
                    f"{answer[2] or ''} ({time.perf_counter() - started:.0f} s)",
                    flush=True,
                )
                started = time.perf_counter()
        except RepzooError as error:
            print(f"{case.folded.name} {tool}: {error}", flush=True)


def read_results(path: Path) -> list[Record[Any]]:
    """The rows in `path`; none where it is not there yet."""
    return record.read(path) if path.exists() else []


def table(path: Path) -> str:
    """The rows of `path` in Markdown, the last of equal ones."""
    rows = {key_of(row): row.values for row in read_results(path)}
    lines = [
        "| Model | Tool | Given to the tool | Images | Drop (95 % interval) | Same % | dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, tool, variant), values in sorted(rows.items(), key=order):
        interval = f"{values.drop_low:.1f} .. {values.drop_high:.1f}"
        lines.append(
            f"| {model} | {tool} | {variant} | {values.n} | {values.drop:.2f} ({interval}) | "
            f"{values.same_prediction:.1f} | {values.logits_snr_db:.1f} |"
        )
    return "\n".join(lines) + "\n"


VARIANTS = (
    "folded",
    "on grid",
    "on grid, judged",
    "predicted",
    "our scales",
    "our scales, QDQ",
    "rescaled",
    "rescaled, on grid",
)


def order(item: tuple[tuple[str, str, str], Any]) -> tuple[str, int, int]:
    """Where a row stands in the table."""
    model, tool, variant = item[0]
    return model, list(TOOLS).index(tool), VARIANTS.index(variant)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="*", metavar="MODEL=DATA")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="default: all")
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="default: all"
    )
    parser.add_argument("--images", type=int, default=300, help="that judge")
    parser.add_argument("--calibration", type=int, default=50, help="images")
    parser.add_argument("--table", action="store_true", help="print the rows, and end")
    parser.add_argument("--work", type=Path, default=Path("runs/vendor_proof"))
    parser.add_argument(
        "--results", type=Path, default=Path("results/vendor_proof.jsonl")
    )
    return parser.parse_args()


def main() -> None:
    """Measure every MODEL=DATA, and append the Records."""
    options = parse_arguments()
    options.work = options.work.resolve()
    if options.table:
        print(table(options.results), end="")
        return
    for pair in options.pairs:
        name, equals, data = pair.partition("=")
        if not equals:
            sys.exit(f"{pair!r} is not MODEL=DATA")
        measure(name, data, options)


if __name__ == "__main__":
    main()
