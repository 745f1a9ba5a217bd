"""What repzoo's harness adds to the bare engine call: its figures beside a hand-written loop's,
in one interleaved run.

    python -m benchmarks.harness [MODEL.onnx] [SECONDS]

For each installed engine: round by round repzoo times the model, and so does a loop over the
runtime's own Python call that a user would write without repzoo, on a session of its own with
the same settings, and on repzoo's very session. Printed is repzoo's median latency over the
loop's, which is to be at most 1.02 at 1 ms an inference; the same for two client threads as
images a second; what an empty model shows the harness to add to any call; how often the
interval of a file against itself excludes 1, as it should once in twenty; and what OpenVINO's
streams cost a single client. Last, where it is installed (pip install mlcommons-loadgen):
repzoo's single-stream figure over MLPerf LoadGen's on the same engine. MODEL is by default the
embedded classifier of digits, about 1 ms a call.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from repzoo import verbs
from repzoo.artifact import Artifact, Preprocess
from repzoo.engines import Array, engine
from repzoo.measure import latency, stats

ROUNDS, FRESH = (
    24,
    6,
)  # rounds of each comparison; how often its sessions are opened anew
TWINS = 10  # runs of a file against itself
Call = Callable[[], object]


def bare_onnxruntime(
    artifact: Artifact, inputs: Array, clients: int
) -> Callable[[], Call]:
    """A factory of calls, one for each thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        artifact.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda: lambda: session.run(None, {name: inputs})


def bare_openvino(
    artifact: Artifact, inputs: Array, clients: int
) -> Callable[[], Call]:
    """As for onnxruntime; the shape is fixed, as its own benchmark_app asks for."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(artifact.model.SerializeToString())
    model.reshape(list(inputs.shape))
    settings = {
        "NUM_STREAMS": clients,
        "INFERENCE_NUM_THREADS": clients,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(model, "CPU", settings)

    def made() -> Call:
        request = compiled.create_infer_request()
        return lambda: request.infer([inputs], share_inputs=True)

    return made


BARE = {"onnxruntime": bare_onnxruntime, "openvino": bare_openvino}


def loop(call: Call, seconds: float) -> list[int]:
    """Nanoseconds of each call, as a user would write it."""
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        call()
        found.append(time.perf_counter_ns() - began)
    return found


def loops(calls: list[Call], seconds: float) -> float:
    """Calls a second of all threads."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: counts.append(len(loop(one, seconds))))
        for one in calls
    ]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(counts) / (time.perf_counter() - began)


def said(title: str, ratios: list[float]) -> None:
    """Print the median of `ratios` with its interval over openings of the sessions, each of
    which has ROUNDS / FRESH of them.
    """
    each = ROUNDS // FRESH
    kept = [
        float(np.nanmedian(ratios[start : start + each]))
        for start in range(0, len(ratios), each)
    ]
    found = stats.median_interval(kept)
    print(
        f"{title}: {found.value:.3f} (95 % interval {found.low:.3f} .. {found.high:.3f}, "
        f"{FRESH} openings)",
        flush=True,
    )


def in_turns(ours: Callable[[], float], theirs: Callable[[], float]) -> list[float]:
    """The ratios of both figures of one opening, round by round, the order turning."""
    ours(), theirs()
    return [
        ours() / theirs() if turn % 2 else 1 / (theirs() / ours())
        for turn in range(ROUNDS // FRESH)
    ]


def compare(name: str, artifact: Artifact, seconds: float) -> None:
    """One client's latency and two clients' rate, by repzoo over by hand; sessions differ by
    where they lie, so several are opened.
    """
    each = seconds / ROUNDS / 2
    found: dict[str, list[float]] = {
        "over the bare loop": [],
        "over a loop on repzoo's session": [],
        "two clients": [],
    }
    for _ in range(FRESH):
        single, double = (
            latency.case(artifact, engine(name)),
            latency.case(artifact, engine(name), streams=2),
        )
        call, calls = (
            BARE[name](artifact, single.inputs, 1)(),
            BARE[name](artifact, single.inputs, 2),
        )
        pair = calls(), calls()
        bare = lambda call=call: float(np.median(loop(call, each))) / 1000  # noqa: E731
        same = lambda one=single: float(  # noqa: E731
            np.median(loop(lambda: one.session.run(one.inputs), each)) / 1000
        )
        ours = lambda one=single: timed(one, each).medians_us()[0]  # noqa: E731
        found["over the bare loop"] += in_turns(ours, bare)
        found["over a loop on repzoo's session"] += in_turns(ours, same)
        found["two clients"] += in_turns(
            lambda: timed(double, each).rounds_fps[0],  # noqa: B023
            lambda: loops(list(pair), each),  # noqa: B023
        )
    print(
        f"{name} {engine(name).version()}: {artifact.name}, {bare():.0f} us a call in the bare loop"
    )
    said("  median latency, repzoo over the bare loop", found["over the bare loop"])
    said(
        "  median latency, repzoo over a loop on repzoo's session",
        found["over a loop on repzoo's session"],
    )
    said(
        "  two clients' images a second, repzoo over the bare loops",
        found["two clients"],
    )


def timed(one: latency.Case, seconds: float) -> latency.Case:
    """One round of `one`, and no other."""
    one.rounds_us.clear(), one.rounds_fps.clear(), one.rounds_of.clear()
    latency.run([one], seconds, rounds=1)
    return one


def against_itself(name: str, artifact: Artifact, seconds: float) -> None:
    """How often a ratio's interval excludes 1 where it is 1: every file against itself, its
    sessions opened once and several times.
    """
    for openings in (1, latency.OPENINGS):
        wrong, width = 0, []
        for _ in range(TWINS):
            pair = [latency.case(artifact, engine(name)) for _ in range(2)]
            latency.run(pair, seconds, openings=openings)
            found = latency.ratio(*pair).values
            wrong += found.faster is not None
            width.append(found.ratio_high - found.ratio_low)
        print(
            f"  against itself, {openings} opening(s): {wrong} of {TWINS} intervals exclude 1, "
            f"width {np.median(width):.3f}",
            flush=True,
        )


def streams(artifact: Artifact, seconds: float) -> None:
    """What a session of openvino that is opened for two clients costs a single one."""
    runner, one, two = (
        engine("openvino"),
        latency.case(artifact, engine("openvino")),
        latency.case(artifact, engine("openvino")),
    )
    two.session = runner.open(artifact.model, streams=2)
    latency.run([one, two], seconds)
    found = latency.ratio(two, one).values
    print(
        f"  one client, session opened for two over for one: {found.ratio:.2f} "
        f"({found.ratio_low:.2f} .. {found.ratio_high:.2f})"
    )


def least(name: str) -> None:
    """What is added to a call whatever the model, by a model that does nothing: the least of
    many, which other work cannot lift.
    """
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] data) => (float[N, 48] output) { output = Flatten (data) }"""
    artifact = Artifact(onnx.parser.parse_model(text), "flat", Preprocess(size=4))
    one = latency.case(artifact, engine(name))
    latency.run([one], 1.0)
    ours, bare = (
        min(map(min, one.rounds_us)),
        min(loop(BARE[name](artifact, one.inputs, 1)(), 1.0)) / 1000,
    )
    share = (ours - bare) / 1000
    print(
        f"  an empty model: {ours:.1f} us by repzoo, {bare:.1f} us by the bare loop; "
        f"{share:.2%} of 1 ms (at most 2 %)"
    )


def loadgen(name: str, artifact: Artifact, seconds: float) -> None:
    """LoadGen's early-stopping p90 over repzoo's, each from its own run of the same number of
    queries.
    """
    import mlperf_loadgen as lg

    one = latency.case(artifact, engine(name), scenario="single-stream")
    call = BARE[name](artifact, one.inputs, 1)()

    def issue(samples: list[Any]) -> None:
        call()
        lg.QuerySamplesComplete(
            [lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        )

    def theirs() -> float:
        settings, logs = lg.TestSettings(), lg.LogSettings()
        settings.scenario, settings.mode = (
            lg.TestScenario.SingleStream,
            lg.TestMode.PerformanceOnly,
        )
        settings.min_query_count = settings.max_query_count = 300
        settings.min_duration_ms = 0
        with tempfile.TemporaryDirectory() as folder:
            output = lg.LogOutputSettings()
            output.outdir, logs.log_output, logs.enable_trace = folder, output, False
            system, library = (
                lg.ConstructSUT(issue, lambda: None),
                lg.ConstructQSL(1, 1, lambda _: None, lambda _: None),
            )
            lg.StartTestWithLogSettings(system, library, settings, logs, "")
            lg.DestroyQSL(library), lg.DestroySUT(system)
            line = next(
                line
                for line in (Path(folder) / "mlperf_log_summary.txt")
                .read_text()
                .splitlines()
                if "percentile estimate" in line
            )
        return float(line.split(":")[1]) / 1e6

    def ours() -> float:
        one.rounds_us.clear(), one.rounds_fps.clear(), one.rounds_of.clear()
        (record,) = latency.run([one], 2 * seconds / ROUNDS, rounds=1)
        stopping = record.values.early_stopping
        return stopping.ms if stopping and stopping.ms else float("nan")

    said(
        "  single-stream p90, repzoo over LoadGen",
        [one for _ in range(FRESH) for one in in_turns(ours, theirs)],
    )


def main() -> None:
    """Every engine that is installed and has a bare loop here."""
    artifact = verbs.load(
        sys.argv[1] if len(sys.argv) > 1 else "repghostnet_050.digits"
    )
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 6.0
    for name in BARE:
        if importlib.util.find_spec(name):
            compare(name, artifact, seconds)
            least(name)
            against_itself(name, artifact, seconds / 2)
            if name == "openvino":
                streams(artifact, seconds)
            if importlib.util.find_spec("mlperf_loadgen"):
                loadgen(name, artifact, seconds)


if __name__ == "__main__":
    main()
