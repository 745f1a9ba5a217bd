"""What repzoo's harness adds to the bare engine call: its figures beside a hand-written loop's, in one interleaved run.

    python -m benchmarks.harness [MODEL.onnx] [SECONDS]

For each installed engine: round by round repzoo times the model, and so does a loop over the runtime's own Python call that a
user would write without repzoo, on a session of its own with the same settings, and on repzoo's very session. Printed is
repzoo's median latency over the loop's, which is to be at most 1.02 at 1 ms an inference; the same for two client threads as
images a second; and what an empty model shows the harness to add to any call. Last, where it is installed
(pip install mlcommons-loadgen): repzoo's single-stream figure over MLPerf LoadGen's on the same engine. MODEL is by default the
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

ROUNDS = 24
Call = Callable[[], object]


def bare_onnxruntime(artifact: Artifact, inputs: Array) -> Callable[[], Call]:
    """A factory of calls, one for each thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(artifact.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: lambda: session.run(None, {name: inputs})


def bare_openvino(artifact: Artifact, inputs: Array) -> Callable[[], Call]:
    """As for onnxruntime; the shape is fixed, as its own benchmark_app asks for."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(artifact.model.SerializeToString())
    model.reshape(list(inputs.shape))
    settings = {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2, "ENABLE_CPU_PINNING": False}
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
    threads = [threading.Thread(target=lambda one=one: counts.append(len(loop(one, seconds)))) for one in calls]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(counts) / (time.perf_counter() - began)


def in_turns(title: str, ours: Callable[[], float], theirs: Callable[[], float]) -> None:
    """Print the ratio of both figures, round by round."""
    ours(), theirs()
    ratios = [ours() / theirs() if turn % 2 else 1 / (theirs() / ours()) for turn in range(ROUNDS)]
    found = stats.median_interval([one for one in ratios if np.isfinite(one)] or [np.nan])
    print(f"{title}: {found.value:.3f} (95 % interval {found.low:.3f} .. {found.high:.3f}, {ROUNDS} rounds)")


def compare(name: str, artifact: Artifact, seconds: float) -> None:
    """One client's latency and two clients' rate, by repzoo over by hand."""
    each = seconds / ROUNDS / 2
    single, double = latency.case(artifact, engine(name)), latency.case(artifact, engine(name), streams=2)

    def timed(one: latency.Case) -> latency.Case:
        one.rounds_us.clear(), one.rounds_fps.clear()
        latency.run([one], each, rounds=1)
        return one

    made = BARE[name](artifact, single.inputs)
    call = made()
    bare = lambda: float(np.median(loop(call, each))) / 1000  # noqa: E731
    same = lambda: float(np.median(loop(lambda: single.session.run(single.inputs), each))) / 1000  # noqa: E731
    print(f"{name} {engine(name).version()}: {artifact.name}, {bare():.0f} us a call in the bare loop")
    in_turns("  median latency, repzoo over the bare loop", lambda: timed(single).medians_us()[0], bare)
    in_turns("  median latency, repzoo over a loop on repzoo's session", lambda: timed(single).medians_us()[0], same)
    calls = [made(), made()]
    in_turns(
        "  two clients' images a second, repzoo over the bare loops",
        lambda: timed(double).rounds_fps[0],
        lambda: loops(calls, each),
    )


def least(name: str) -> None:
    """What is added to a call whatever the model, by a model that does nothing: the least of many, which other work cannot lift."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 4, 4] data) => (float[N, 48] output) { output = Flatten (data) }"""
    artifact = Artifact(onnx.parser.parse_model(text), "flat", Preprocess(size=4))
    one = latency.case(artifact, engine(name))
    latency.run([one], 1.0)
    ours, bare = min(map(min, one.rounds_us)), min(loop(BARE[name](artifact, one.inputs)(), 1.0)) / 1000
    share = (ours - bare) / 1000
    print(f"  an empty model: {ours:.1f} us by repzoo, {bare:.1f} us by the bare loop; {share:.2%} of 1 ms (at most 2 %)")


def loadgen(name: str, artifact: Artifact, seconds: float) -> None:
    """LoadGen's early-stopping p90 over repzoo's, each from its own run of the same number of queries."""
    import mlperf_loadgen as lg

    one = latency.case(artifact, engine(name), scenario="single-stream")
    call = BARE[name](artifact, one.inputs)()

    def issue(samples: list[Any]) -> None:
        call()
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    def theirs() -> float:
        settings, logs = lg.TestSettings(), lg.LogSettings()
        settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
        settings.min_query_count = settings.max_query_count = 300
        settings.min_duration_ms = 0
        with tempfile.TemporaryDirectory() as folder:
            output = lg.LogOutputSettings()
            output.outdir, logs.log_output, logs.enable_trace = folder, output, False
            system, library = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
            lg.StartTestWithLogSettings(system, library, settings, logs, "")
            lg.DestroyQSL(library), lg.DestroySUT(system)
            line = next(
                line for line in (Path(folder) / "mlperf_log_summary.txt").read_text().splitlines() if "percentile estimate" in line
            )
        return float(line.split(":")[1]) / 1e6

    def ours() -> float:
        one.rounds_us.clear(), one.rounds_fps.clear()
        (record,) = latency.run([one], 2 * seconds / ROUNDS, rounds=1)
        return float(record.values["early_stopping_ms"] or np.nan)

    in_turns("  single-stream p90, repzoo over LoadGen", ours, theirs)


def main() -> None:
    """Every engine that is installed and has a bare loop here."""
    artifact = verbs.load(sys.argv[1] if len(sys.argv) > 1 else "repghostnet_050.digits")
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 6.0
    for name in BARE:
        if importlib.util.find_spec(name):
            compare(name, artifact, seconds)
            least(name)
            if importlib.util.find_spec("mlperf_loadgen"):
                loadgen(name, artifact, seconds)


if __name__ == "__main__":
    main()
