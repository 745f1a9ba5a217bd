"""repzoo beside other tools on the same model, all timed in the same interleaved rounds.

    python -m benchmarks.peers MODEL [MODEL ...] [--step STEP ...]
        [--threads 1,2] [--batch 1,8] [--data DIR] [--images 256] [--search-seconds S]
        [--seconds 2.5] [--work runs/peers] [--renew] [--results results/peers.jsonl]

MODEL is a name of the catalog, of any model of timm, or an ONNX file. A named model is trained for
a moment on images that a program draws (models.py, textures.py), so that INT8 has an accuracy to
lose; --data gives other images, which an ONNX file needs. The steps:

    build     the float files, and the INT8 files of ONNX Runtime's static quantizer and of NNCF
    compile   fill torch.compile's cache, which takes more than a minute
    quantize  repzoo's INT8 files, one for each engine and number of threads, as `repzoo quantize`
              makes them
    judge     the predictions of all INT8 files beside those of float, each on its engine
    time      all files, in one run for each number of threads and each batch

Files that are there are not made again, without --renew. Each run appends Records, one for each
contender: its latency, its ratio to the fastest peer with the interval, its share of the
processor's peak (peak.py), and the kind of host. What cannot be timed has a Record with the reason.

On hosts without VNNI, 8-bit weights clip in ONNX Runtime's default sessions and on OpenVINO: their
kernels add products in 16 bits (quant/network/host_arithmetic.py). Such rows are marked, the
session of ONNX Runtime that is exact is timed beside the default one, and repzoo's own rows count
only where they are exact. Nor do they count where repzoo's gate refuses the file. repzoo's INT8 is not timed on MNN and PyTorch, which compute it in float.

With ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI in the environment, OpenVINO runs as on a processor with
VNNI and without AMX. ONNX Runtime has no such limit, so that its INT8 is as fast as with AMX.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from timm.models import reparameterize_model

from benchmarks import models, peak, peer_files
from benchmarks.peer_files import FLOAT, OWN_FLOAT, ModelFolder, own_int8
from repzoo.data.batches import ReadReport
from repzoo.engines import Engine, arithmetic, engine
from repzoo.engines.pytorch import PyTorchSession
from repzoo.engines.signature import signature_of
from repzoo.errors import InputError, RepzooError
from repzoo.graph.tools.cost import count
from repzoo.measure import accuracy, latency, record
from repzoo.measure.host import host
from repzoo.measure.latency_case import Case
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import LatencyRatio, Setting
from repzoo.quant.network.host_arithmetic import saturates
from repzoo.quant.search.verdict import Budget
from repzoo.report import peers
from repzoo.storage import json_text, write_atomically

STEPS = ("build", "compile", "quantize", "judge", "time")
EXACT = "exact"  # the session of ONNX Runtime
COMPILERS = ("c++", "g++", "clang++")
COMPILE = "pytorch:compile"
JUDGED = "judged.json"


@dataclass(frozen=True)
class Contender:
    """What is timed.

    name     in tables
    file     of the model's folder
    engine   its name; `pytorch` runs timm's own module
    session  EXACT for ONNX Runtime as repzoo opens it; "" for default sessions
    own      whether repzoo made the file
    """

    name: str
    file: str
    engine: str
    session: str = ""
    own: bool = False

    @property
    def key(self) -> str:
        """What no other contender has."""
        return " ".join(filter(None, (self.file, self.engine, self.session)))

    def with_threads(self, threads: int) -> Contender:
        """The same for sessions with so many threads: repzoo searches for each number."""
        if self.file != own_int8(self.engine):
            return self
        return replace(self, file=own_int8(self.engine, threads))


CONTENDERS = (
    Contender("timm", FLOAT, "pytorch"),
    Contender("timm", FLOAT, COMPILE),
    Contender("float", FLOAT, "onnxruntime"),
    Contender("float", FLOAT, "openvino"),
    Contender("float", FLOAT, "mnn"),
    Contender("ORT static", "ort-static", "onnxruntime"),
    Contender("ORT static", "ort-static", "onnxruntime", EXACT),
    Contender("ORT static", "ort-static", "openvino"),
    Contender("NNCF", "nncf-default", "openvino"),
    Contender("repzoo float", OWN_FLOAT, "onnxruntime", own=True),
    Contender("repzoo float", OWN_FLOAT, "openvino", own=True),
    Contender("repzoo float", OWN_FLOAT, "mnn", own=True),
    Contender("repzoo INT8", own_int8("onnxruntime"), "onnxruntime", own=True),
    Contender("repzoo INT8", own_int8("onnxruntime"), "onnxruntime", EXACT, own=True),
    Contender("repzoo INT8", own_int8("openvino"), "openvino", own=True),
)


class TimmEngine:
    """timm's own module as an engine, whatever model it is asked to open.

    torch.compile works once: a session that is opened anew would only compile the same again.
    """

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        if name == COMPILE:
            if not any(map(shutil.which, COMPILERS)):
                raise InputError("torch.compile needs a C++ compiler; there is none")
            options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
            module = torch.compile(module, dynamic=False, options=options)
        self._module = module

    def version(self) -> str:
        """The version of PyTorch."""
        return str(torch.__version__)

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> PyTorchSession:
        """See `engines.Engine.open`."""
        return PyTorchSession(
            lambda inputs: [self._module(inputs)],
            signature_of(model),
            threads,
            self.name,
        )


@dataclass
class Entry:
    """A contender in one run: its case, or the reason why it has none."""

    contender: Contender
    exact: bool = True
    case: Case | None = None
    reason: str = ""
    ms: float = math.inf  # see PeerLatency


def open_engine(contender: Contender, folder: ModelFolder) -> Engine:
    """The engine of a contender, with the session that it names.

    Raises:
        InputError: there is none for this model.
    """
    if contender.engine.startswith("pytorch"):
        module, _ = peer_files.trained_module(folder)
        return TimmEngine(contender.engine, reparameterize_model(module))
    runner = engine(contender.engine)
    if contender.engine == "onnxruntime" and contender.session != EXACT:
        default: Engine = runner.with_default_precision()  # type: ignore[attr-defined]
        return default
    return runner


def is_exact(contender: Contender, model: onnx.ModelProto) -> bool:
    """Whether the contender's sums of 8-bit products cannot saturate on this host."""
    if contender.session == EXACT or not saturates(host()):
        return True
    return not peer_files.has_8_bit_weights(model)


def open_entry(contender: Contender, folder: ModelFolder, setting: Setting) -> Entry:
    """The contender with a session, or with the reason why there is none."""
    try:
        runner = open_engine(contender, folder)
        artifact = folder.read(contender.file)
        artifact = replace(
            peer_files.with_batch(artifact, setting.batch), name=folder.name
        )
        case = latency.case(
            artifact, runner, threads=setting.threads, batch=setting.batch
        )
    except InputError as error:
        return Entry(contender, reason=str(error))
    return Entry(contender, is_exact(contender, artifact.model), case)


def fill_compile_cache(folder: ModelFolder) -> None:
    """Let torch.compile work once, so that the timing run finds its kernels in the cache."""
    for contender in CONTENDERS:
        if contender.engine == COMPILE:
            entry = open_entry(contender, folder, Setting())
            if entry.case:
                entry.case.session.run(entry.case.inputs)


def judge(folder: ModelFolder, making: peer_files.Setting) -> None:
    """Compare the predictions of every INT8 file with those of its float file; keep the figures."""
    split = making.source().split_for_quantization(making.images, models.SEED)
    judged = {}
    every = [contenders(threads) for threads in making.threads]
    for contender in dict.fromkeys(chain.from_iterable(every)):
        is_float = contender.file in (FLOAT, OWN_FLOAT)
        if is_float or not folder.file(contender.file).exists():
            continue
        runner = open_engine(contender, folder)
        original = folder.read(OWN_FLOAT if contender.own else FLOAT)
        pair = [original, folder.read(contender.file)]
        runs = [accuracy.open_run(model, runner) for model in pair]
        first, second = accuracy.evaluate(runs, split.gate, ReadReport(), logits=True)
        paired = accuracy.compare(first, second).values
        refused = not Budget().judge(paired).passes
        judged[contender.key] = {
            "drop": paired.drop,
            "same": paired.same_prediction,
            "refused": refused,
        }
        print(
            f"{folder.name}: {contender.key}: drop {paired.drop:.2f}, "
            f"{paired.same_prediction:.1f} % unchanged{', refused' if refused else ''}",
            flush=True,
        )
    write_atomically(folder.path / JUDGED, json_text(judged).encode())


def read_judged(folder: ModelFolder) -> dict[str, dict[str, Any]]:
    """The figures of `judge` by contender; none where it was not run."""
    path = folder.path / JUDGED
    if not path.exists():
        return {}
    figures: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
    return figures


def contenders(threads: int) -> list[Contender]:
    """All that differ on this host: where nothing saturates, every session is exact."""
    chosen = []
    for contender in CONTENDERS:
        if contender.session != EXACT or saturates(host()):
            chosen.append(contender.with_threads(threads))
    return chosen


def time_model(
    folder: ModelFolder, setting: Setting, options: argparse.Namespace
) -> list[Record[PeerLatency]]:
    """Time all contenders of one model in one setting; a Record for each."""
    entries = [
        open_entry(item, folder, setting) for item in contenders(setting.threads)
    ]

    def leave_out(case: Case, error: InputError) -> None:
        """Note why a session failed."""
        for entry in entries:
            if entry.case is case:
                entry.case, entry.reason = None, str(error)

    limit = peak.case()
    cases = [entry.case for entry in entries if entry.case]
    if not cases:
        raise InputError(f"nothing of {folder.name} can be timed: {entries[-1].reason}")
    began = time.perf_counter()
    beside = [limit] if limit else []
    latency.run(
        [*cases, *beside],
        options.seconds,
        openings=options.openings,
        on_error=leave_out,
    )
    set_comparable(entries)
    print(f"{folder.name}: timed in {time.perf_counter() - began:.0f} s", flush=True)
    macs = count(folder.read(FLOAT)).macs
    data = {
        "images": options.data or "textures",
        "calibration_images": options.images,
        "search_seconds": options.search_seconds,
    }
    rows = rows_of(entries, setting, macs, limit, data)
    judged = read_judged(folder)
    return [
        replace(row, values=replace(row.values, **judged.get(entry.contender.key, {})))
        for row, entry in zip(rows, entries, strict=True)
    ]


def rows_of(
    entries: Sequence[Entry],
    setting: Setting,
    macs: int,
    limit: Case | None,
    data: dict[str, Any],
) -> list[Record[PeerLatency]]:
    """The Records of one run.

    limit  the peak, timed in the same rounds; None where it is not known
    """
    facts_of_host = {**host(), **host_facts()}
    job = uuid.uuid4().hex[:12]
    best = fastest([entry for entry in entries if not entry.contender.own])
    exact = fastest(
        [entry for entry in entries if not entry.contender.own and entry.exact]
    )
    rows = []
    for entry in entries:
        contender = entry.contender
        facts = {"name": contender.engine, "threads": setting.threads}
        if contender.session:
            facts["session"] = contender.session
        values = PeerLatency(
            setting=setting,
            contender=contender.name,
            own=contender.own,
            exact=entry.exact,
            reason=entry.reason,
            macs=macs,
        )
        row = Record(
            {"name": name_of(entries)},
            values,
            facts,
            data,
            host=facts_of_host,
            job=job,
        )
        rows.append(with_times(row, entry, (best, exact), limit))
    return rows


def with_times(
    row: Record[PeerLatency],
    entry: Entry,
    compared: tuple[Case | None, Case | None],
    limit: Case | None,
) -> Record[PeerLatency]:
    """`row` with what was timed.

    compared  the fastest peer and the fastest exact one
    """
    case = entry.case
    if case is None:
        return row
    timed = case.record()
    best, exact = compared
    values = replace(
        row.values,
        latency=timed.values,
        ms=entry.ms,
        peak_share=peak_share(row.values, case, limit),
        ratio=ratio_to(case, best),
        exact_ratio=ratio_to(case, exact),
    )
    return replace(
        row,
        artifact=identity_of(case.artifact),
        values=values,
        engine={**row.engine, **arithmetic.facts(case.engine)},
        # The medians of rounds reproduce the ratios; every call would be a hundred times as much.
        samples={"round_median_us": case.medians_us(), "session": case.rounds_of},
        host={**row.host, **case.disturbed},
    )


def name_of(entries: Sequence[Entry]) -> str:
    """The model's name, as the cases of this run have it."""
    return next(entry.case.artifact.name for entry in entries if entry.case)


def set_comparable(entries: Sequence[Entry]) -> None:
    """Set `ms` of all that were timed."""
    timed = [entry for entry in entries if entry.case]
    medians = [entry.case.medians_us() for entry in timed if entry.case]
    for entry, ms in zip(timed, comparable_ms(medians), strict=True):
        entry.ms = ms


def comparable_ms(medians_us: Sequence[Sequence[float]]) -> list[float]:
    """The latency of each case without the host's changes of speed; see PeerLatency.

    medians_us  of each case, the median of each round
    """
    milliseconds = np.array(medians_us) / 1000
    slowness = np.exp(np.log(milliseconds).mean(axis=0))
    relative = np.median(milliseconds / slowness, axis=1)
    values: list[float] = (relative * np.median(slowness)).tolist()
    return values


def fastest(entries: Sequence[Entry]) -> Case | None:
    """The case with the lowest latency; None where none was timed."""
    timed = [entry for entry in entries if entry.case]
    best = min(timed, key=lambda entry: entry.ms, default=None)
    return best.case if best else None


def ratio_to(case: Case, other: Case | None) -> LatencyRatio | None:
    """Latency of `case` over that of `other`; None for the case itself."""
    if other is None or other is case:
        return None
    return latency.ratio(case, other).values


def peak_share(values: PeerLatency, case: Case, limit: Case | None) -> float | None:
    """MACs a second over the peak of as many cores as threads, 0..1; None without a peak.

    limit  the peak of one core, timed in the same rounds: both have the clock of their round
    """
    if limit is None:
        return None
    macs = values.macs * values.setting.batch / values.setting.threads
    rates = macs / np.array(case.medians_us())
    limits = limit.engine.macs / np.array(limit.medians_us())  # type: ignore[attr-defined]
    return float(np.median(rates / limits))


def host_facts() -> dict[str, Any]:
    """The kind of host, and its peak where it is known."""
    facts: dict[str, Any] = {"vnni": peak.has_vnni()}
    limit = peak.measure()
    if limit is not None:
        facts["clock_ghz"] = round(limit.clock_ghz, 3)
        facts["macs_per_cycle"] = round(limit.macs_per_cycle, 2)
        facts["peak"] = limit.instruction
    return facts


def numbers(text: str) -> list[int]:
    """The positive numbers of an option such as "1,2"."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number must be at least 1")
    return values


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--step", action="append", choices=STEPS, help="may be repeated; default: all"
    )
    parser.add_argument("--threads", type=numbers, default=[1])
    parser.add_argument("--batch", type=numbers, default=[1])
    parser.add_argument("--data", default="", help="images, instead of drawn ones")
    parser.add_argument("--images", type=int, default=256, help="that calibrate")
    parser.add_argument("--search-seconds", type=float)
    parser.add_argument("--seconds", type=float, default=2.5, help="for each contender")
    parser.add_argument("--openings", type=int, default=latency.OPENINGS)
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    parser.add_argument("--renew", action="store_true", help="make all files anew")
    parser.add_argument("--results", type=Path, default=Path("results/peers.jsonl"))
    return parser.parse_args()


def run_model(name: str, options: argparse.Namespace) -> None:
    """The steps of one model."""
    folder = peer_files.open_folder(options.work, name)
    making = peer_files.Setting(
        options.data,
        options.images,
        options.search_seconds,
        options.threads,
        options.renew,
    )
    steps = options.step or STEPS
    if "build" in steps:
        peer_files.build(folder, making)
    if "compile" in steps:
        fill_compile_cache(folder)
    if "quantize" in steps:
        peer_files.quantize(folder, making)
    if "judge" in steps:
        judge(folder, making)
    if "time" not in steps:
        return
    for threads in options.threads:
        for batch in options.batch:
            setting = Setting(threads=threads, batch=batch)
            rows = time_model(folder, setting, options)
            record.append(options.results, rows)
            print("\n".join(peers.table(rows, "en")), flush=True)


def main() -> None:
    """Run the steps of one model after another."""
    options = parse_arguments()
    try:
        for name in options.models:
            run_model(name, options)
    except RepzooError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
