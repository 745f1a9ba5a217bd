"""hb_mapper's log: known values, odd forms of the same text, and logs that are no good."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.vendors.hb_mapper_log import NODES, hb_mapper_log

from repzoo.errors import InputError
from repzoo.vendors.logs import hb_mapper
from repzoo.vendors.logs.hb_mapper import Estimate, Node, OutputSimilarity, Tensor

LOG = hb_mapper_log()


def parse(text: str, encoding: str = "utf-8") -> hb_mapper.HbMapperLog:
    return hb_mapper.parse(text.encode(encoding), "the.log")


def test_all_that_the_log_says_is_read() -> None:
    log = parse(LOG)
    assert (log.command, log.march, log.model) == ("makertbin", "bayes-e", "tiny.onnx")
    assert log.versions == {
        "hbdk": "3.49.15",
        "horizon_nn": "1.1.0",
        "hb_mapper": "1.24.3",
    }
    assert log.prefix == "tiny_nv12"
    assert log.calibration == "max-percentile:percentile=0.99995"
    assert log.inputs == [Tensor("data", (1, 3, 32, 32), "FLOAT32")]
    assert log.outputs == [Tensor("logits", (1, 10), "FLOAT32")]
    assert [node.name for node in log.nodes] == [row[0] for row in NODES]
    assert log.nodes[1] == Node(
        "/stem/Conv", "BPU", "id(0)", "HzSQuantizedConv", 0.998979, 2.70176, "int8", "int8"
    )  # fmt: skip
    assert log.nodes_on("CPU") == [
        Node("/fc/Gemm_reshape", "CPU", "", "Reshape", 0.999855, None, "float", "float")
    ]
    assert log.similarities == [
        OutputSimilarity("logits", 0.999855, 0.021164, 0.008179, 0.053581)
    ]
    assert log.total == Estimate(3251.4, 0.3076, 1279296)
    assert log.finished
    assert not log.warnings


def _squeezed(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))


def _with_progress_bars(text: str) -> str:
    bar = "\n 45%|####      | 9/20 [00:01<00:02]\r100%|##########| 20/20 [00:03]\r"
    return text.replace("\n/fc/Gemm ", f"{bar}\n/fc/Gemm ")


def _with_commas(text: str) -> str:
    for number in ("3251.4", "307.6", "0.998979", "2.70176", "0.021164", "12.5"):
        text = text.replace(number, number.replace(".", ","))
    return text


def _full_width(text: str) -> str:
    fps = "FPS=3251.4, latency = 307.6 us"
    return text.replace(
        fps, "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in fps)
    )


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text.replace("\n", "\r\n"), "utf-8"),
        (lambda text: text.replace("  ", "\t"), "utf-16"),
        (_with_progress_bars, "utf-8"),
        (_with_commas, "utf-8"),
        (_full_width, "gb18030"),
        (lambda text: "开始转换模型\n" + text + "完成\n", "gb18030"),
        # An earlier run in the same file.
        (lambda text: hb_mapper_log("other.onnx", fps="1.0") + text, "utf-8"),
    ],
)
def test_other_forms_of_the_same_log_say_the_same(
    change: Callable[[str], str], encoding: str
) -> None:
    assert parse(change(LOG), encoding) == parse(LOG)


def test_squeezed_columns_are_read() -> None:
    squeezed = parse(_squeezed(LOG))
    assert [node.cosine for node in squeezed.nodes] == [
        node.cosine for node in parse(LOG).nodes
    ]


def test_the_terminals_log_has_colors_and_levels() -> None:
    text = hb_mapper_log(terminal=True)
    warning = "2026-03-04 05:06:07,890 \x1b[93mWARNING\x1b[0m input_source not set\n"
    log = parse(text + warning)
    assert log.warnings == ["input_source not set"]
    log.warnings.clear()
    assert log == parse(LOG)


def test_columns_are_found_by_name() -> None:
    old = (
        LOG.replace("DataType", "In/Out DataType")
        .replace(" int8 ", " int8/int32 ")
        .replace(" float ", " float/float ")
    )
    assert parse(old).nodes[1].in_dtype == "int8"
    assert parse(old).nodes[1].out_dtype == "int32"
    plain = [
        "2026-03-04 05:06:07,890 INFO Start hb_mapper....",
        "2026-03-04 05:06:07,890 INFO The converted quantized node information:",
        "Node   ON   Subgraph  Type",
        "conv1  BPU  id(0)     HzSQuantizedConv",
        "2026-03-04 05:06:07,890 INFO End to Horizon NN Model Convert.",
    ]
    assert parse("\n".join(plain)).nodes == [
        Node("conv1", "BPU", "id(0)", "HzSQuantizedConv", None, None, "", "")
    ]


def test_several_subgraphs_run_one_after_the_other() -> None:
    line = next(line for line in LOG.split("\n") if "FPS=" in line)
    second = line.replace("3251.4", "1000.0").replace("307.6 us", "1 ms")
    log = parse(LOG.replace(line, f"{line}\n{second}"))
    assert log.total is not None
    assert log.total.latency_ms == pytest.approx(1.3076)
    assert log.total.fps == pytest.approx(1000 / 1.3076)
    assert log.total.ddr_bytes == 2 * 1279296


def test_a_run_that_failed_says_so() -> None:
    text = LOG[: LOG.index("The main quantized")]
    error = "2026-03-04 05:06:07,890 ERROR Cannot compile: no memory\n"
    log = parse(text + "\n" + error)
    assert not log.finished
    assert log.errors == ["Cannot compile: no memory"]
    assert not log.nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "is not a log of hb_mapper"),
        ("", "is not a log of hb_mapper"),
        (LOG[: LOG.index("/fc/Gemm ")], "ends within its table of nodes, after 2 of them"),
        (LOG[: LOG.rindex("0.053581") + 4], "ends within its table of outputs"),
        (LOG.replace("2.70176", "many"), "a number instead of 'many'"),
        (LOG.replace("0.998979", "1.998979"), "cosine similarity within -1 .. 1"),
        (LOG.replace("0.998979", ""), "line 21 is '/stem/Conv BPU id"),
        (LOG.replace("FPS=3251.4", "FPS=0"), "expected FPS=…"),
        (LOG.replace("307.6 us", "soon"), "expected FPS=…"),
    ],
)  # fmt: skip
def test_logs_that_are_no_good(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.parametrize("length", range(0, len(LOG), 97))
def test_a_log_that_is_cut_anywhere_is_read_or_refused(length: int) -> None:
    try:
        log = parse(LOG[:length])
    except InputError:
        return
    assert not log.finished
