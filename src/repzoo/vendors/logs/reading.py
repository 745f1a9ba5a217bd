"""Read a log of any tool that is known here: which tool wrote it is found by its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.storage import read_bounded, sha256_of
from repzoo.vendors.logs import (
    hb_mapper,
    hb_reports,
    hrt_model_exec,
    rknn,
    sophgo,
    vastai,
)
from repzoo.vendors.logs.text import MAX_FILE_BYTES, MAX_LOG_BYTES, lines_of


@dataclass(frozen=True)
class TextLog:
    """A tool whose output is text.

    Attributes:
        tool: its name.
        target: that its models run on, as repzoo names it.
        is_log: whether lines are its own.
        parse: content and name of a file to a dataclass.
    """

    tool: str
    target: str
    is_log: Callable[[Sequence[str]], bool]
    parse: Callable[[bytes, str], Any]


TEXT_LOGS = (
    TextLog("hb_mapper", "rdk-x5", hb_mapper.is_log, hb_mapper.parse),
    TextLog("hrt_model_exec", "rdk-x5", hrt_model_exec.is_log, hrt_model_exec.parse),
    TextLog("Vastai", "vastai", vastai.is_log, vastai.parse),
    TextLog("rknn-toolkit2", "rknn", rknn.is_log, rknn.parse),
    TextLog("Sophgo", "sophgo", sophgo.is_log, sophgo.parse),
)
KNOWN = (
    "hb_mapper, quant_info.json, main_graph_subgraph_0.json or .html, hrt_model_exec perf, "
    "Vastai's eval_topk and profiles, rknn-toolkit2 and Sophgo's tools"
)


@dataclass(frozen=True)
class VendorLog:
    """A log with what it says.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        tool: that wrote it.
        target: that its models run on, as repzoo names it.
        content: dataclass of the tool's module in this folder.
    """

    path: Path
    sha256: str
    tool: str
    target: str
    content: Any


def read_log(path: Path) -> VendorLog:
    """The log in a file.

    Raises:
        InputError: no such file, one that is too large, of no tool that is known here, cut or
            damaged.
    """
    data = read_bounded(path, MAX_FILE_BYTES)
    name = path.name
    document = hb_reports.json_of(data)
    if hb_reports.is_subgraph(document):
        report = hb_reports.parse_subgraph(document, name)
        return VendorLog(path, sha256_of(data), "hbdk", "rdk-x5", report)
    if hb_reports.is_quant_info(document):
        info = hb_reports.parse_quant_info(document, name)
        return VendorLog(path, sha256_of(data), "hb_mapper", "rdk-x5", info)
    if len(data) > MAX_LOG_BYTES:
        raise InputError(
            f"{path} has {len(data):,} bytes; logs of at most {MAX_LOG_BYTES:,} are read: give the "
            "part with the result"
        )
    lines = lines_of(data)
    for kind in TEXT_LOGS:
        if kind.is_log(lines):
            content = kind.parse(data, name)
            return VendorLog(path, sha256_of(data), kind.tool, kind.target, content)
    raise InputError(f"{path} is no log that repzoo reads; it reads {KNOWN}")
