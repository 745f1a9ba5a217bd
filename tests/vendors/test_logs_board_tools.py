"""Logs of boards and of vendors' tools besides hb_mapper: known values, odd forms, bad ones."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.vendors import board_logs
from tests.vendors.hb_mapper_log import hb_mapper_log

from repzoo.errors import InputError
from repzoo.vendors.logs import hb_reports, hrt_model_exec, rknn, sophgo, text, vastai
from repzoo.vendors.logs.hb_mapper import Estimate
from repzoo.vendors.logs.hb_reports import NodeQuantization
from repzoo.vendors.logs.hrt_model_exec import PerfRun
from repzoo.vendors.logs.reading import read_log
from repzoo.vendors.logs.rknn import LayerError, Performance
from repzoo.vendors.logs.sophgo import TensorSimilarity, Threshold
from repzoo.vendors.logs.vastai import Rates

SUBGRAPH = {
    "summary": {
        "model name": "main_graph_subgraph_0",
        "FPS": 3251.4,
        "latency (ms)": 0.31,
        "latency (us)": 307.6,
        "DDR bytes per frame": 1279296,
        "BPU OPs per frame (effective)": 28728192,
        "BPU march": "B25E",
        "HBDK version": "3.49.15",
    }
}
QUANT_INFO = {
    "HZ_PREPROCESS_FOR_data": {
        "type": "HzPreprocess",
        "inputs": ["data_calibrated"],
        "outputs": ["data"],
        "thresholds": [[127.0], [0.5, 0.25, 0.125], []],
        "cosine_similarity": "0.999977",
    },
    "/relu/Relu": {
        "type": "Relu",
        "inputs": ["x"],
        "outputs": ["y"],
        "thresholds": [[]],
        "cosine_similarity": "--",
    },
}
LOGS = {
    "hb_mapper": hb_mapper_log(),
    "hbdk": json.dumps(SUBGRAPH),
    "quant_info": json.dumps(QUANT_INFO),
    "hrt_model_exec": board_logs.PERF,
    "Vastai": board_logs.PROFILE,
    "rknn-toolkit2": board_logs.ACCURACY_ANALYSIS,
    "rknn-toolkit2 perf": board_logs.EVAL_PERF,
    "rknn-toolkit2 memory": board_logs.EVAL_MEMORY,
    "Sophgo": board_logs.MODEL_DEPLOY,
    "Sophgo table": board_logs.CALIBRATION_TABLE,
    "Sophgo time": board_logs.BMRT_TEST,
}


@pytest.mark.parametrize("tool", LOGS)
def test_the_tool_is_found_by_the_content(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(LOGS[tool], "utf-8")
    log = read_log(path)
    assert log.tool == ("hb_mapper" if tool == "quant_info" else tool.split()[0])
    assert len(log.sha256) == 64


@pytest.mark.parametrize("tool", LOGS)
def test_a_log_that_is_cut_anywhere_is_read_or_refused(
    tool: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.log"
    for length in range(0, len(LOGS[tool]), 1 + len(LOGS[tool]) // 40):
        path.write_text(LOGS[tool][:length], "utf-8")
        with contextlib.suppress(InputError):
            read_log(path)


def parse(module: Any, log: str) -> Any:
    return module.parse(log.encode(), "the.log")


# hrt_model_exec


def test_perf_is_read_as_it_is() -> None:
    log = parse(hrt_model_exec, board_logs.PERF)
    assert (log.model, log.runtime, log.builder) == (
        "tiny_nv12.bin",
        "1.24.5",
        "1.24.3",
    )
    assert log.runs == [PerfRun(4, 200, 4.25, 1.5, 5.5, 932.5)]


def test_several_runs_stand_in_one_log() -> None:
    single = (
        board_logs.PERF.replace("number is: 4", "number is: 1")
        .replace("4.25 ms\n", "1.5 ms\n")
        .replace("932.5 FPS", "640.25 FPS")
        .replace("5.5 ms,", "2500 us,")
    )
    runs = parse(hrt_model_exec, single + board_logs.PERF).runs
    assert [run.threads for run in runs] == [1, 4]
    assert (runs[0].average_ms, runs[0].max_ms, runs[0].fps) == (1.5, 2.5, 640.25)
    assert runs[1].max_ms == 5.5


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.replace("  ", " ").replace("\n", "\r\n"),
        lambda log: log.replace("4.25", "4,25").replace("932.5", "932,5"),
        lambda log: log.replace("is: 4.25 ms", "is：４．２５ ms"),
        lambda log: "性能测试\n\x1b[32m" + log.replace("\n", "\x1b[0m\n"),
        # A notebook keeps each line as a string.
        lambda log: log.replace("\n", '\\n",\n"'),
    ],
)
def test_other_forms_of_perf_say_the_same(change: Any) -> None:
    assert parse(hrt_model_exec, change(board_logs.PERF)).runs == [
        PerfRun(4, 200, 4.25, 1.5, 5.5, 932.5)
    ]


def test_model_info_has_shapes_and_no_run() -> None:
    log = parse(hrt_model_exec, board_logs.MODEL_INFO)
    assert not log.runs
    assert [(item.name, item.shape) for item in log.inputs] == [
        ("data", (1, 3, 32, 32))
    ]
    assert [(item.name, item.shape) for item in log.outputs] == [
        ("logits", (1, 10, 1, 1))
    ]
    assert log.inputs[0].type == "HB_DNN_IMG_TYPE_NV12"


# Vastai


def test_rates_of_both_precisions() -> None:
    log = parse(vastai, board_logs.RATES)
    assert log.rates == [Rates("fp16", 70.5, 89.75), Rates("int8", 0.6, 2.5)]
    tight = parse(vastai, "top1_rate:70,5 top5_rate：89,75")
    assert tight.rates == [Rates("", 70.5, 89.75)]


def test_a_profile_keeps_the_percentiles_that_are_printed() -> None:
    profile = parse(vastai, board_logs.PROFILE).profiles[0]
    assert (profile.instances, profile.batch, profile.throughput) == (8, 2, 1234.5)
    assert profile.latencies_ms == {
        "avg": 6.4,
        "min": 3.2,
        "max": 12.8,
        "p50": 6.3,
        "p99": 12.0,
    }


def test_the_model_alone_is_told_from_the_whole_call() -> None:
    whole = board_logs.PROFILE.replace("  latency (us)", "  e2e latency (us)")
    whole = whole.replace("instances:", "instances in each device:")
    alone = "  model latency (us):\n    avg latency: 1500\n    p50 latency: 1400\n"
    profile = parse(
        vastai, whole.replace("  queue size", "  samples: 1024\n  queue size") + alone
    )
    (read,) = profile.profiles
    assert (read.instances, read.samples) == (8, 1024)
    assert read.latencies_ms["avg"] == 6.4
    assert read.model_ms == {"avg": 1.5, "p50": 1.4}
    (only,) = parse(vastai, "throughput (qps): 5\n" + alone).profiles
    assert only.latencies_ms["avg"] == 1.5


# rknn-toolkit2


def test_accuracy_analysis_with_a_board() -> None:
    layers = parse(rknn, board_logs.ACCURACY_ANALYSIS).layers
    assert [layer.name for layer in layers] == [
        "data",
        "data_int8",
        "conv/scale",
        "relu",
        "logits",
    ]
    assert layers[2] == LayerError("Conv", "conv/scale")  # fused
    assert layers[3] == LayerError(
        "Relu", "relu", 0.9975, 4.75, 0.9999, 1.25, 0.997, 5.25
    )
    assert (layers[4].cosine, layers[4].board_cosine) == (0.995, None)


def test_eval_perf_and_eval_memory() -> None:
    log = parse(rknn, board_logs.EVAL_PERF + board_logs.EVAL_MEMORY)
    assert log.version == "2.3.2"
    assert log.performance == [Performance(0.75, None, 12800, 1, 2)]
    assert log.memory_bytes == 2 * 2**20
    short = parse(rknn, "Total Time(us): 5,000.0\nFPS: 200.0\n")
    assert short.performance == [Performance(5.0, 200.0)]


def test_each_run_of_eval_perf_has_its_own_operators() -> None:
    second = board_logs.EVAL_PERF.replace("Time(us): 750", "Time(us): 800")
    log = parse(rknn, board_logs.EVAL_PERF + second)
    assert log.performance == [
        Performance(0.75, None, 12800, 1, 2),
        Performance(0.8, None, 12800, 1, 2),
    ]


# Sophgo


def test_the_quantized_model_is_compared_with_the_float_model() -> None:
    log = parse(sophgo, board_logs.MODEL_DEPLOY)
    assert len(log.comparisons) == 2
    assert log.quantized is log.comparisons[0]
    assert log.quantized.reference == "tiny_top_outputs.npz"
    assert log.quantized.tensors == [
        TensorSimilarity("relu_Relu", True, 1.0),
        TensorSimilarity("logits_Gemm", True, 0.99975, 0.985, 32.5),
    ]


def test_a_calibration_table() -> None:
    log = parse(sophgo, board_logs.CALIBRATION_TABLE)
    assert (log.version, log.method, log.samples) == ("v1.30.2-20260831", "kl", 100)
    assert log.thresholds == [
        Threshold("data", 1.000008, 0.0, 1.000008),
        Threshold("relu_Relu", 56.5, -102.5830231, 97.6811752),
    ]


def test_bmrt_test_gives_every_launch() -> None:
    log = parse(sophgo, board_logs.BMRT_TEST)
    assert [launch.latency_ms for launch in log.launches] == [1.0, 2.0]
    alone = parse(sophgo, "INFO:calculate  time(s): 0.007")
    assert [launch.latency_ms for launch in alone.launches] == [7.0]


# Reports of hb_mapper


@pytest.mark.parametrize("form", ["json", "html"])
def test_a_subgraphs_report(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"main_graph_subgraph_0.{form}"
    content = json.dumps(SUBGRAPH)
    if form == "html":
        inner = json.dumps(SUBGRAPH["summary"])
        content = f"<html>this.state = {{\n jsonObject: {inner},\n}}</html>"
    path.write_text(content)
    report = read_log(path).content
    assert report.estimate == Estimate(3251.4, 0.3076, 1279296)
    assert (report.march, report.version) == ("B25E", "3.49.15")


def test_quant_info() -> None:
    info = hb_reports.parse_quant_info(QUANT_INFO, "q.json")
    assert info.nodes == (
        NodeQuantization(
            "HZ_PREPROCESS_FOR_data",
            "HzPreprocess",
            ((127.0,), (0.5, 0.25, 0.125), ()),
            0.999977,
        ),
        NodeQuantization("/relu/Relu", "Relu", ((),), None),
    )


# Numbers and bad logs


@pytest.mark.parametrize(
    ("shown", "value"),
    [
        ("1234.5", 1234.5),
        ("1234,5", 1234.5),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1,234,567", 1234567.0),
        ("1.234.567", 1234567.0),
        ("-1e-3", -0.001),
        ("--", None),
        ("nan", None),
    ],
)
def test_numbers_of_every_locale(shown: str, value: float | None) -> None:
    assert text.number_of(shown) == value


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "is no log that repzoo reads"),
        ("{}", "is no log that repzoo reads"),
        ("\x00\xff" * 50, "is no log that repzoo reads"),
        (board_logs.PERF[:-20], "ends before the frame rate"),
        (board_logs.PERF.replace("932.5", "fast"), "expected numbers as hrt_model_exec"),
        (board_logs.PERF.replace("is: 4.25 ms", "is: -4.25 ms"), "expected numbers"),
        (board_logs.RATES.replace("70.5", "170.5"), "expected a rate in percent"),
        (board_logs.RATES.replace("89.75", "9.75"), "expected a rate in percent"),
        (board_logs.RATES[: board_logs.RATES.index("89.75")], "expected a rate"),
        (board_logs.PROFILE[: board_logs.PROFILE.index("avg")], "copy the whole log"),
        (board_logs.ACCURACY_ANALYSIS.replace("4.75  ", "  "), "expected figures as rknn"),
        (board_logs.ACCURACY_ANALYSIS.replace("0.99750", "9.99750"), "expected figures"),
        (board_logs.ACCURACY_ANALYSIS.split("[")[0], "table without rows"),
        (board_logs.EVAL_PERF.replace(": 750", ": quick"), "expected figures as rknn"),
        (board_logs.MODEL_DEPLOY[:500], "ends before the result of a comparison"),
        (board_logs.MODEL_DEPLOY.replace("0.999750", "good"), "expected figures as model"),
        (board_logs.CALIBRATION_TABLE.replace("56.5", "wide"), "expected figures"),
        (board_logs.BMRT_TEST.replace("1000 us", "soon"), "expected figures as model"),
        (board_logs.BMRT_TEST.replace("tiny", "big", 1), "of several networks, 'big' and 'tiny'"),
        (board_logs.PERF.replace("tiny_nv12", "big") + board_logs.PERF, "is of two models"),
        (json.dumps(SUBGRAPH).replace("307.6", '"soon"'), "is not as hbdk writes it"),
        (json.dumps(SUBGRAPH).replace("3251.4", "-1"), "is not as hbdk writes it"),
        (json.dumps(QUANT_INFO).replace("[127.0]", "7"), "what hb_mapper does not write"),
        (json.dumps(SUBGRAPH)[:-20], "is no log that repzoo reads"),
        ('{"a":' * 100_000, "is no log that repzoo reads"),
    ],
)  # fmt: skip
def test_logs_that_are_no_good(log: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(
        log.encode("latin-1", "replace") if "\xff" in log else log.encode()
    )
    with pytest.raises(InputError, match=message):
        read_log(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("wb") as file:
        file.truncate(text.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="at most"):
        read_log(path)
    with path.open("r+b") as file:
        file.truncate(text.MAX_LOG_BYTES + 1)
    with pytest.raises(InputError, match="give the part with the result"):
        read_log(path)
