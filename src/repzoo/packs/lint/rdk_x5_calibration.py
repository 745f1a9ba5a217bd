"""Rules for hb_mapper's calibration: its method, and the files that it reads."""

from __future__ import annotations

from collections.abc import Iterator

from repzoo.packs.lint import calibration
from repzoo.packs.lint.common import beside
from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import Workspace
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.rdk_x5_values import CALIBRATION, color_of, input_sides


def method(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """calibration_type against the keys and the model that go with it."""
    kind = document.text(CALIBRATION, "calibration_type")
    folder = document.text(CALIBRATION, "cal_data_dir")
    if kind in ("load", "skip") and folder:
        yield document.finding(
            "load-with-data",
            f"calibration_type is {kind}, which reads no images; cal_data_dir is not used",
            CALIBRATION,
            "cal_data_dir",
            fix="delete cal_data_dir",
        )
    if kind not in ("load", "skip") and not folder:
        yield document.finding(
            "missing-key",
            f"calibration_type is {kind or 'default'}, which needs images: cal_data_dir is "
            "missing",
            CALIBRATION,
            "cal_data_dir",
            fix="cal_data_dir: './calibration_data_rgb_f32'",
        )
    if document.text(CALIBRATION, "max_percentile") and kind not in ("max", ""):
        yield document.finding(
            "unused-value",
            f"max_percentile is for calibration_type max; it is {kind}",
            CALIBRATION,
            "max_percentile",
            fix="calibration_type: 'max', or delete max_percentile",
        )
    yield from _scales(document, workspace, kind)


def _scales(document: Document, workspace: Workspace, kind: str) -> Iterator[Finding]:
    """calibration_type load belongs to a model with QuantizeLinear, and to no other."""
    if workspace.model is None:
        return
    if kind == "load" and not workspace.model.is_quantized:
        yield document.finding(
            "load-without-scales",
            "calibration_type is load, but the model holds no QuantizeLinear to load scales from",
            CALIBRATION,
            "calibration_type",
            fix="calibration_type: 'default', or pack the model with its scales",
        )
    if kind != "load" and workspace.model.is_quantized:
        yield document.finding(
            "scales-not-loaded",
            f"the model holds QuantizeLinear, but calibration_type is {kind or 'default'}, which "
            "computes scales anew",
            CALIBRATION,
            "calibration_type",
            fix="calibration_type: 'load'",
        )


def stated_type(document: Document, _: Workspace) -> Iterator[Finding]:
    """cal_data_type against the name of the folder, which decides where the key is missing."""
    folder = document.text(CALIBRATION, "cal_data_dir").rstrip("/")
    stated = document.text(CALIBRATION, "cal_data_type")
    if not folder or ";" in folder:
        return
    implied = calibration.dtype_by_name(folder)
    # Only the ending states a type; without it the folder contradicts nothing.
    if stated == "uint8" and implied == "float32":
        yield document.finding(
            "calibration-type",
            f"cal_data_type is {stated}, but the folder {folder} ends in _f32, which stands for "
            "float32",
            CALIBRATION,
            "cal_data_type",
            fix=f"cal_data_type: '{implied}'",
        )
    elif not stated and beside(document, folder) is None:
        yield document.finding(
            "calibration-type-implied",
            f"cal_data_type is missing, so the tool takes {implied} from the name of the folder "
            f"{folder} (_f32 is float32, any other uint8)",
            CALIBRATION,
            "cal_data_type",
            fix=f"cal_data_type: '{implied}'",
        )


def _data_type(document: Document) -> str:
    """The type of calibration files, as the tool would read them."""
    stated = document.text(CALIBRATION, "cal_data_type")
    if stated in calibration.ITEM_BYTES:
        return stated
    return calibration.dtype_by_name(document.text(CALIBRATION, "cal_data_dir"))


def calibration_files(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """The files that cal_data_dir names."""
    name = document.text(CALIBRATION, "cal_data_dir")
    folder = beside(document, name) if name and ";" not in name else None
    is_raw = document.get(CALIBRATION, "preprocess_on") is not True
    if folder is None or not folder.is_dir() or not is_raw:
        return
    if document.text(CALIBRATION, "cal_data_type") not in ("", *calibration.ITEM_BYTES):
        return  # feature maps of integers
    sides = input_sides(document, workspace.model)
    source = (
        f"from the input of {workspace.model.shown}"
        if workspace.model
        else "from input_shape"
    )
    expected = calibration.Expected(
        (sides[0], sides[1], sides[2]) if sides else None,
        _data_type(document),
        color_of(document),
        source,
    )
    yield from calibration.check(
        folder, workspace.shown(folder), expected, workspace.images
    )
