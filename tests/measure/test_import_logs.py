"""`repzoo import`: Records from logs, marked with their source, and logs of another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from tests.vendors import board_logs
from tests.vendors.hb_mapper_log import NODES, hb_mapper_log

import repzoo
from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.measure.board import BoardAccuracy, BoardLatency, BoardSimilarity
from repzoo.measure.record import select
from repzoo.measure.stats import wilson

Run = Callable[..., Any]
LOG = hb_mapper_log()


@pytest.fixture(scope="module")
def tiny() -> onnx.ModelProto:
    """The model that the logs are of: data 1x3x32x32 to logits 1x10."""
    kinds = {"/stem/Conv": "Identity", "/gate/HardSigmoid": "HardSigmoid"}
    nodes = []
    last = "data"
    for name, kind in kinds.items():
        nodes.append(helper.make_node(kind, [last], [name + "_out"], name=name))
        last = name + "_out"
    nodes.append(helper.make_node("Flatten", [last], ["flat"], name="/flat"))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["logits"], name="/fc/Gemm"))
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3072, 10], [0.0] * 30720)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(text: str, name: str = "a.log") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return written


def test_hb_mappers_log_gives_an_estimate_and_similarities(
    write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    path = write(LOG.replace("...long name", "...ng_long_name"))
    imported = repzoo.import_logs(path, tiny)
    (latency,) = select(imported.records, BoardLatency)
    assert latency.values == BoardLatency(
        target="rdk-x5",
        source="compiler estimate",
        latency_ms=0.3076,
        fps=3251.4,
        ddr_bytes=1279296,
        accelerator_nodes=4,
        cpu_nodes=1,
    )
    assert latency.host == {"kind": "compiler"}
    assert latency.engine == {"name": "hb_mapper", "version": "1.24.3"}
    assert latency.data == {"log": "a.log", "sha256": imported.logs[0].sha256}
    assert latency.artifact["classes"] == 10
    (similarity,) = select(imported.records, BoardSimilarity)
    assert similarity.values.cpu_nodes == 1
    assert len(similarity.values.nodes) == len(NODES)
    assert similarity.values.outputs[0].cosine == 0.999855


def test_the_checkers_estimate_is_left_out(write: Callable[..., Path]) -> None:
    imported = repzoo.import_logs(write(hb_mapper_log(command="checker")))
    assert not select(imported.records, BoardLatency)
    assert "without optimizing" in imported.remarks[0]


def test_perf_keeps_average_fastest_and_slowest(write: Callable[..., Path]) -> None:
    (found,) = repzoo.import_logs(write(board_logs.PERF)).records
    assert found.values == BoardLatency(
        target="rdk-x5",
        source="board log",
        threads=4,
        latency_ms=4.25,
        min_ms=1.5,
        max_ms=5.5,
        fps=932.5,
        frames=200,
    )
    assert found.host == {"kind": "board"}
    # Nothing but the log says which model it was.
    assert found.artifact["name"] == "tiny_nv12"


def test_a_printed_accuracy_gets_an_interval_with_its_images(
    write: Callable[..., Path],
) -> None:
    path = write(board_logs.RATES)
    fp16, int8 = select(repzoo.import_logs(path).records, BoardAccuracy)
    assert (fp16.values.precision, int8.values.precision) == ("fp16", "int8")
    assert fp16.values.top1_low is None
    with_images = repzoo.import_logs(path, images=1000).records[0].values
    interval = wilson(705, 1000)
    assert with_images.top1_low == pytest.approx(100 * interval.low)
    assert with_images.n == 1000


def test_vastai_rknn_and_sophgo(
    write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    profile = repzoo.import_logs(write(board_logs.PROFILE, "p")).records[0].values
    assert (profile.threads, profile.batch, profile.fps) == (8, 2, 1234.5)
    assert profile.percentiles_ms == {"p50": 6.3, "p99": 12.0}
    rknn = write(board_logs.EVAL_PERF + board_logs.EVAL_MEMORY, "r")
    perf = repzoo.import_logs(rknn).records[0].values
    assert (perf.latency_ms, perf.cpu_nodes, perf.memory_bytes) == (0.75, 2, 2**21)
    layers = write(board_logs.ACCURACY_ANALYSIS, "e")
    simulator, board = repzoo.import_logs(layers).records
    assert (simulator.values.source, board.values.source) == (
        "vendor tool",
        "board log",
    )
    assert board.values.nodes[0].cosine == 0.997
    deploy = write(board_logs.MODEL_DEPLOY.replace("relu_Relu", "flat_Reshape"), "d")
    compared = repzoo.import_logs(deploy, tiny).records[0].values
    assert [node.snr_db for node in compared.outputs] == [32.5]
    times = repzoo.import_logs(write(board_logs.BMRT_TEST, "b")).records[0].values
    assert (times.latency_ms, times.min_ms, times.max_ms) == (1.5, 1.0, 2.0)
    assert times.fps is None  # the log states none


def test_a_log_of_another_board_is_refused(write: Callable[..., Path]) -> None:
    x3 = write(LOG.replace("bayes-e", "bernoulli2"))
    assert repzoo.import_logs(x3).records[0].values.target == "rdk-x3"
    with pytest.raises(InputError, match="is of rdk-x3"):
        repzoo.import_logs(x3, target="rdk-x5")
    unknown = write(LOG.replace("bayes-e", "nash-e"))
    with pytest.raises(InputError, match="is of march nash-e, and repzoo knows bayes"):
        repzoo.import_logs(unknown)
    (first, *_) = repzoo.import_logs(unknown, target="rdk-s100").records
    assert first.values.target == "rdk-s100"


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (hb_mapper_log(size=224), "its input is 'data' 1x3x224x224"),
        (hb_mapper_log(classes=1000), "its output is 'logits' 1x1000"),
        (hb_mapper_log(input_name="images"), "its input is 'images'"),
        (board_logs.MODEL_INFO.replace("1,10,1,1", "1,1000,1,1"), "its output is"),
        (
            board_logs.ACCURACY_ANALYSIS,
            "of its 2 nodes tiny has 0; 'conv/scale' is not",
        ),
        (
            board_logs.CALIBRATION_TABLE.replace("data ", "x "),
            "of its 2 nodes tiny has 0",
        ),
    ],
)
def test_a_log_of_another_model_is_refused(
    log: str, message: str, write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    with pytest.raises(InputError, match="is of another model") as caught:
        repzoo.import_logs(write(log), tiny)
    assert message in str(caught.value)


def test_a_log_of_the_right_model_is_taken(
    write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    assert not repzoo.import_logs(write(board_logs.MODEL_INFO), tiny).records
    assert repzoo.import_logs(write(LOG), tiny).records


def test_a_log_without_names_is_taken_for_the_model_with_a_remark(
    write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    model = repzoo.Artifact.wrap(replace(repzoo.load(tiny), name="other"))
    perf = write(board_logs.PERF)
    (remark,) = repzoo.import_logs(perf, model).remarks
    assert remark == "a.log does not say that it is of other; it was taken for it"
    called_so = repzoo.Artifact.wrap(replace(model, name="Tiny"))
    assert not repzoo.import_logs(perf, called_so).remarks


def test_where_no_names_can_be_compared_a_remark_says_so(
    write: Callable[..., Path], tiny: onnx.ModelProto
) -> None:
    unnamed = onnx.ModelProto()
    unnamed.CopyFrom(tiny)
    for node in unnamed.graph.node:
        node.name = ""
    table = write(board_logs.CALIBRATION_TABLE)
    (remark,) = repzoo.import_logs(table, unnamed).remarks
    assert "does not say that it is of" in remark


# The command


def test_the_command_appends_records(run: Run, write: Callable[..., Path]) -> None:
    path = write(LOG)
    out = path.with_name("r.jsonl")
    ran = run(
        "import", path, write(board_logs.PERF, "perf.txt"), "--append", out, "--json"
    )
    assert ran.code == 0
    assert [item["tool"] for item in ran.document["logs"]] == [
        "hb_mapper",
        "hrt_model_exec",
    ]
    assert [item.to_json() for item in record.read(out)] == ran.document["records"]
    kinds = [item["kind"] for item in ran.document["records"]]
    assert kinds == ["board_similarity", "board_latency", "board_latency"]


def test_the_command_says_what_is_an_estimate(
    run: Run, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run("import", write(LOG), write(board_logs.PERF, "perf.txt"))
    shown = " ".join(ran.out.split())
    assert "rdk-x5, compiler estimate: 0.308 ms on average; 3250 FPS" in shown
    assert "rdk-x5, board log: 4 threads; 4.25 ms on average; 1.50 to 5.50 ms" in shown
    assert "no interval: the log has one number" in shown
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("log", "options", "message"),
    [
        (LOG[:2000], (), "ends within its table"),
        (LOG.replace("End Model Convert", ""), (), "did not finish"),
        ("hello", (), "is no log that repzoo reads"),
        (board_logs.RATES, ("--images", "-1"), "--images"),
        (board_logs.PERF, ("--images", "500"), "no log has one"),
        (LOG, ("--target", "rdk-x3"), "is of rdk-x5 (march bayes-e), not of rdk-x3"),
        (board_logs.MODEL_INFO, ("--append", "{out}"), "holds no figures to append"),
        (
            board_logs.RUN_CALIBRATION,
            ("--append", "{out}"),
            "into its calibration table",
        ),
        (LOG, ("--model", "absent.onnx"), "absent.onnx"),
    ],
)
def test_bad_logs_end_with_one_sentence(
    log: str,
    options: tuple[str, ...],
    message: str,
    run: Run,
    write: Callable[..., Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "records.jsonl"
    ran = run("import", write(log), *(item.format(out=out) for item in options))
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert "Traceback" not in ran.err
    assert not out.exists()


def test_model_info_is_shown(run: Run, write: Callable[..., Path]) -> None:
    path = write(board_logs.MODEL_INFO)
    shown = " ".join(run("import", path).out.split())
    assert "tiny_nv12.bin: input data 1x3x32x32 HB_DNN_IMG_TYPE_NV12;" in shown
    (log,) = run("import", path, "--json").document["logs"]
    assert log["outputs"][0]["shape"] == [1, 10, 1, 1]


def test_names_from_a_log_do_not_steer_the_terminal(
    run: Run, write: Callable[..., Path]
) -> None:
    evil = LOG.replace("/stem/Conv", "/st\u202eem/Conv")
    ran = run("import", write(evil, "a\u202eb.log"))
    assert ran.code == 0
    assert "\u202e" not in ran.out


def test_a_file_that_is_there_twice_is_refused(write: Callable[..., Path]) -> None:
    path = write(LOG)
    with pytest.raises(InputError, match="is there twice"):
        repzoo.import_logs([path, path])


def test_records_of_a_board_are_no_measurements_of_this_machine(
    write: Callable[..., Path],
) -> None:
    for item in repzoo.import_logs(write(LOG)).records:
        assert "cpu" not in item.host
        assert replace(item, job="x").kind.startswith("board_")
