"""What repzoo's timing adds to the bare engine call, beside a hand-written loop.

    python -m benchmarks.harness [MODEL.onnx] [SECONDS]

For each installed engine, round by round, repzoo times the model, and so does a loop over the
runtime's own Python call that a user would write without repzoo. The loop runs once on a session
of its own with the same settings, and once on repzoo's session. Printed are:

- repzoo's median latency over the loop's: at most 1.02 at 1 ms an inference
- the same for two client threads, as images per second
- what an empty model shows the harness to add to any call
- how often the interval of a file against itself excludes 1: once in twenty
- what OpenVINO's streams cost a single client
- repzoo's single-stream figure over MLPerf LoadGen's, where that is installed
  (pip install mlcommons-loadgen)

MODEL is by default the embedded classifier of digits, about 1 ms a call.
"""

from __future__ import annotations

import importlib.util
import math
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
from repzoo.measure.record import Record
from repzoo.measure.results import Latency

ROUNDS = 24  # of each comparison
OPENINGS = 6  # how often the sessions of a comparison are opened anew
ROUNDS_PER_OPENING = ROUNDS // OPENINGS
SELF_COMPARISONS = 10
LOADGEN_QUERIES = 300
EMPTY_MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 4, 4] data) => (float[N, 48] output) { output = Flatten (data) }"""

Call = Callable[[], object]
CallFactory = Callable[[], Call]  # a call of its own for each thread


def bare_onnxruntime(artifact: Artifact, inputs: Array, clients: int) -> CallFactory:
    """Calls of ONNX Runtime, without repzoo."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        artifact.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda: lambda: session.run(None, {name: inputs})


def bare_openvino(artifact: Artifact, inputs: Array, clients: int) -> CallFactory:
    """Calls of OpenVINO for a fixed shape, as its own benchmark_app wants it."""
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

    def make_call() -> Call:
        """A request of its own: OpenVINO's are not shared by threads."""
        request = compiled.create_infer_request()
        return lambda: request.infer([inputs], share_inputs=True)

    return make_call


BARE = {"onnxruntime": bare_onnxruntime, "openvino": bare_openvino}


def time_calls(call: Call, seconds: float) -> list[int]:
    """Nanoseconds of each call, as a user would measure them."""
    nanoseconds = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        call()
        nanoseconds.append(time.perf_counter_ns() - began)
    return nanoseconds


def median_us(call: Call, seconds: float) -> float:
    """Median microseconds of a call."""
    return float(np.median(time_calls(call, seconds))) / 1000


def calls_per_second(calls: list[Call], seconds: float) -> float:
    """Calls per second of all `calls`, each in a thread of its own."""
    counts: list[int] = []

    def count(call: Call) -> None:
        """Call until the time is over."""
        counts.append(len(time_calls(call, seconds)))

    threads = [threading.Thread(target=count, args=(call,)) for call in calls]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def print_ratio(title: str, ratios: list[float]) -> None:
    """Print the median of `ratios`, with its interval over the openings of the sessions."""
    medians = []
    for start in range(0, len(ratios), ROUNDS_PER_OPENING):
        # NaN marks a round with too few queries for an estimate.
        of_opening = ratios[start : start + ROUNDS_PER_OPENING]
        medians.append(float(np.nanmedian(of_opening)))
    median = stats.median_interval(medians)
    print(
        f"{title}: {median.value:.3f} (95 % interval {median.low:.3f} .. {median.high:.3f}, "
        f"{OPENINGS} openings)",
        flush=True,
    )


def ratios_in_turns(
    ours: Callable[[], float], theirs: Callable[[], float]
) -> list[float]:
    """Ours over theirs in each round of one opening; the order changes from round to round."""
    ours()
    theirs()
    ratios = []
    for turn in range(ROUNDS_PER_OPENING):
        if turn % 2:
            own = ours()
            other = theirs()
        else:
            other = theirs()
            own = ours()
        ratios.append(own / other)
    return ratios


def time_one_round(case: latency.Case, seconds: float) -> Record[Latency]:
    """Time `case` by repzoo; it then holds this one round, and no other."""
    case.rounds_us.clear()
    case.rounds_fps.clear()
    case.rounds_of.clear()
    (record,) = latency.run([case], seconds, rounds=1)
    return record


class Opening:
    """Sessions by repzoo and by hand. Sessions differ by where they lie in memory."""

    def __init__(self, name: str, artifact: Artifact, seconds: float) -> None:
        self.seconds = seconds
        self.single = latency.case(artifact, engine(name))
        self.double = latency.case(artifact, engine(name), streams=2)
        inputs = self.single.inputs
        self.call = BARE[name](artifact, inputs, 1)()
        make_call = BARE[name](artifact, inputs, 2)
        self.calls = [make_call(), make_call()]

    def own_us(self) -> float:
        """Median latency by repzoo."""
        time_one_round(self.single, self.seconds)
        return self.single.medians_us()[0]

    def bare_us(self) -> float:
        """Median latency of the loop on its own session."""
        return median_us(self.call, self.seconds)

    def same_session_us(self) -> float:
        """Median latency of the loop on repzoo's session."""
        case = self.single
        return median_us(lambda: case.session.run(case.inputs), self.seconds)

    def own_rate(self) -> float:
        """Images per second of two clients by repzoo."""
        time_one_round(self.double, self.seconds)
        return self.double.rounds_fps[0]

    def bare_rate(self) -> float:
        """Images per second of two clients by the loops."""
        return calls_per_second(self.calls, self.seconds)


def compare(name: str, artifact: Artifact, seconds: float) -> None:
    """Latency of one client and rate of two, by repzoo over by hand."""
    over_bare: list[float] = []
    over_same: list[float] = []
    rates: list[float] = []
    for _ in range(OPENINGS):
        opening = Opening(name, artifact, seconds / ROUNDS / 2)
        over_bare += ratios_in_turns(opening.own_us, opening.bare_us)
        over_same += ratios_in_turns(opening.own_us, opening.same_session_us)
        rates += ratios_in_turns(opening.own_rate, opening.bare_rate)
    version = engine(name).version()
    microseconds = opening.bare_us()
    print(
        f"{name} {version}: {artifact.name}, {microseconds:.0f} us a call in the loop"
    )
    print_ratio("  median latency, repzoo over the bare loop", over_bare)
    print_ratio("  median latency, repzoo over a loop on repzoo's session", over_same)
    print_ratio("  two clients' images per second, repzoo over the bare loops", rates)


def compare_with_itself(name: str, artifact: Artifact, seconds: float) -> None:
    """How often the interval of a ratio that is 1 excludes 1, by openings of the sessions."""
    for openings in (1, latency.OPENINGS):
        wrong = 0
        widths = []
        for _ in range(SELF_COMPARISONS):
            pair = [latency.case(artifact, engine(name)) for _ in range(2)]
            latency.run(pair, seconds, openings=openings)
            ratio = latency.ratio(*pair).values
            wrong += ratio.faster is not None
            widths.append(ratio.ratio_high - ratio.ratio_low)
        print(
            f"  against itself, {openings} opening(s): {wrong} of {SELF_COMPARISONS} intervals "
            f"exclude 1, width {np.median(widths):.3f}",
            flush=True,
        )


def compare_streams(artifact: Artifact, seconds: float) -> None:
    """What a session of openvino that is opened for two clients costs a single one."""
    runner = engine("openvino")
    for_one = latency.case(artifact, runner)
    for_two = latency.case(artifact, runner)
    for_two.session = runner.open(artifact.model, streams=2)
    latency.run([for_one, for_two], seconds)
    ratio = latency.ratio(for_two, for_one).values
    print(
        f"  one client, session opened for two over for one: {ratio.ratio:.2f} "
        f"({ratio.ratio_low:.2f} .. {ratio.ratio_high:.2f})"
    )


def print_overhead(name: str) -> None:
    """What is added to each call, whatever the model: shown by a model that does nothing."""
    model = onnx.parser.parse_model(EMPTY_MODEL)
    artifact = Artifact(model, "flat", Preprocess(size=4))
    case = latency.case(artifact, engine(name))
    latency.run([case], 1.0)
    # The least of many calls, which other work on the machine cannot raise.
    ours = min(map(min, case.rounds_us))
    bare = min(time_calls(BARE[name](artifact, case.inputs, 1)(), 1.0)) / 1000
    share = (ours - bare) / 1000
    print(
        f"  an empty model: {ours:.1f} us by repzoo, {bare:.1f} us by the bare loop; "
        f"{share:.2%} of 1 ms (at most 2 %)"
    )


def compare_with_loadgen(name: str, artifact: Artifact, seconds: float) -> None:
    """Early-stopping p90 by repzoo over LoadGen's, each from queries of its own."""
    case = latency.case(artifact, engine(name), scenario="single-stream")
    call = BARE[name](artifact, case.inputs, 1)()

    def ours() -> float:
        """repzoo's estimate in milliseconds; NaN where there were too few queries."""
        record = time_one_round(case, 2 * seconds / ROUNDS)
        stopping = record.values.early_stopping
        return stopping.ms if stopping and stopping.ms else math.nan

    ratios = []
    for _ in range(OPENINGS):
        ratios += ratios_in_turns(ours, lambda: loadgen_p90_ms(call))
    print_ratio("  single-stream p90, repzoo over LoadGen", ratios)


def loadgen_p90_ms(call: Call) -> float:
    """LoadGen's early-stopping estimate of the p90 latency of `call`, in milliseconds."""
    import mlperf_loadgen as lg

    def issue(samples: list[Any]) -> None:
        """Answer LoadGen's query."""
        call()
        responses = [lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        lg.QuerySamplesComplete(responses)

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = LOADGEN_QUERIES
    settings.max_query_count = LOADGEN_QUERIES
    settings.min_duration_ms = 0
    with tempfile.TemporaryDirectory() as folder:
        output = lg.LogOutputSettings()
        output.outdir = folder
        logs = lg.LogSettings()
        logs.log_output = output
        logs.enable_trace = False
        system = lg.ConstructSUT(issue, lambda: None)
        library = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(system, library, settings, logs, "")
        lg.DestroyQSL(library)
        lg.DestroySUT(system)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    for line in summary.splitlines():
        if "percentile estimate" in line:
            return float(line.split(":")[1]) / 1e6
    raise ValueError("LoadGen's summary has no percentile estimate")


def main() -> None:
    """Compare on every engine that is installed and has a bare loop here."""
    model = sys.argv[1] if len(sys.argv) > 1 else "repghostnet_050.digits"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 6.0
    artifact = verbs.load(model)
    for name in BARE:
        if not importlib.util.find_spec(name):
            continue
        compare(name, artifact, seconds)
        print_overhead(name)
        compare_with_itself(name, artifact, seconds / 2)
        if name == "openvino":
            compare_streams(artifact, seconds)
        if importlib.util.find_spec("mlperf_loadgen"):
            compare_with_loadgen(name, artifact, seconds)


if __name__ == "__main__":
    main()
