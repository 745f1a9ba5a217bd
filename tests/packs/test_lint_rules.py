"""Each rule of the lint: one thing broken, one finding; what is right stays clean."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.packs import lint_samples as samples

import repzoo
from repzoo.artifact import Artifact
from repzoo.packs.lint.finding import SEVERITIES, codes

KINDS = {
    "net.yaml": samples.X5,
    "vamc.yaml": samples.VAMC,
    "vdsp.json": samples.VDSP,
    "convert.py": samples.RKNN,
    "steps.sh": samples.SOPHGO,
    "net.alls": samples.ALLS,
    "hailo.yaml": samples.HAILO,
}
HARMLESS = {"squash"}  # the card can do nothing else


def check(folder: Path, name: str, text: str, model: Artifact | None = None) -> Any:
    (folder / name).write_text(text)
    return repzoo.check_pack(folder / name, model or samples.artifact())


def serious(report: Any) -> set[str]:
    """Codes of errors and warnings."""
    found = {item.code for item in report.findings if item.severity != "note"}
    return found - HARMLESS


@pytest.mark.parametrize("name", KINDS)
def test_what_is_right_stays_clean(tmp_path: Path, name: str) -> None:
    report = check(tmp_path, name, KINDS[name])
    assert not serious(report), report.findings
    assert report.files == (name,)


BROKEN = [
    # name, what is replaced, by what, code, words of the message or the fix
    ("net.yaml", "'123.675 116.28 103.53'", "'0.485 0.456 0.406'", "wrong-mean", "0..1"),
    ("net.yaml", "'123.675 116.28 103.53'", "'103.53 116.28 123.675'", "wrong-mean", "BGR for RGB"),
    ("net.yaml", "'123.675 116.28 103.53'", "'127.5 127.5 127.5'", "wrong-mean", "mean and std 0.5"),
    ("net.yaml", "'123.675 116.28 103.53'", "'103.53 123.675 116.28'", "wrong-mean", "neither RGB"),
    ("net.yaml", "'123.675 116.28 103.53'", "'123.675 116.28'", "value-count", "2 means"),
    ("net.yaml", "'123.675 116.28 103.53'", "'a b c'", "wrong-type", "numbers with blanks"),
    ("net.yaml", "'0.01712475 0.017507 0.01742919'", "'58.395 57.12 57.375'", "wrong-scale", "reciprocal"),
    ("net.yaml", "'0.01712475 0.017507 0.01742919'", "'0.229 0.224 0.225'", "wrong-scale", "std in units of 0..1"),
    ("net.yaml", "'0.01712475 0.017507 0.01742919'", "0.003921568627451", "wrong-scale", "only divided by 255"),
    ("net.yaml", "'0.01712475 0.017507 0.01742919'", "'0.01742919 0.017507 0.01712475'", "wrong-scale", "reverse order"),
    ("net.yaml", "'0.01712475 0.017507 0.01742919'", "'0 1 1'", "wrong-scale", "erases a channel"),
    ("net.yaml", "data_mean_and_scale", "data_scale", "unused-value", "mean_value is given"),
    ("net.yaml", "data_mean_and_scale", "no_preprocess", "wrong-scale", "not scaled at all"),
    ("net.yaml", "data_mean_and_scale", "mean_and_scale", "unknown-value", "data_mean_and_scale"),
    ("net.yaml", "  mean_value: '123.675 116.28 103.53'\n", "", "missing-key", "needs mean_value"),
    ("net.yaml", "input_type_train: 'rgb'", "input_type_train: 'bgr'", "color-order", "takes RGB"),
    ("net.yaml", "input_type_train: 'rgb'", "input_type_train: 'RGB'", "unknown-value", "did you mean rgb"),
    ("net.yaml", "'NCHW'", "'NHWC'", "layout", "1x3x8x8"),
    ("net.yaml", "1x3x8x8", "1x3x16x16", "input-shape", "1x3x8x8"),
    ("net.yaml", "input_name: ''", "input_name: 'image'", "input-name", "data"),
    ("net.yaml", "input_type_rt: 'nv12'", "input_type_rt: 'featuremap'", "input-type", "featuremap"),
    ("net.yaml", "input_type_rt: 'nv12'", "input_type_rt: 'rgb'\n  input_space_and_range: 'bt601_video'", "space-and-range", "nv12 only"),
    ("net.yaml", "input_type_rt: 'nv12'", "input_type_rt: 'nv12'\n  input_space_and_range: 'bt601_video'", "limited-range", "16..235"),
    ("net.yaml", "'bayes-e'", "'bernoulli2'", "march", "RDK X3"),
    ("net.yaml", "'bayes-e'", "'bayes_e'", "unknown-value", "did you mean bayes-e"),
    ("net.yaml", "  march: 'bayes-e'\n", "", "missing-key", "march"),
    ("net.yaml", "compiler_parameters", "compiler_parameter", "unknown-key", "compiler_parameters"),
    ("net.yaml", "calibration_parameters:", "calibration_params:", "missing-group", "calibration_parameters"),
    ("net.yaml", "mean_value:", "mean_values:", "unknown-key", "did you mean mean_value"),
    ("net.yaml", "layout_train: 'NCHW'", "layout_train: 'NCHW'\n  input_layout_train: 'NHWC'", "duplicate-key", "occurs twice"),
    ("net.yaml", "layer_out_dump: False", "layer_out_dump: 'no'", "wrong-type", "True or False"),
    ("net.yaml", "'O3'", "'O0'", "optimize-level", "slower"),
    ("net.yaml", "'O3'", "'O4'", "unknown-value", "O0, O1, O2, O3"),
    ("net.yaml", "'latency'", "'balance'", "missing-key", "balance_factor"),
    ("net.yaml", "optimize_level", "core_num: 4\n  optimize_level", "wrong-type", "1 to 2"),
    ("net.yaml", "calibration_type: 'default'", "calibration_type: 'load'", "load-without-scales", "QuantizeLinear"),
    ("net.yaml", "calibration_type: 'default'", "calibration_type: 'load'", "load-with-data", "cal_data_dir"),
    ("net.yaml", "calibration_type: 'default'", "calibration_type: 'kl'\n  max_percentile: 0.999", "unused-value", "max_percentile"),
    ("net.yaml", "  cal_data_dir: './calibration_data_rgb_f32'\n", "", "missing-key", "cal_data_dir"),
    ("net.yaml", "'float32'", "'uint8'", "calibration-type", "ends in _f32"),
    ("net.yaml", "march:", "node_info: {'firts': {'ON': 'BPU', 'OutputType': 'int16'}}\n  march:", "unknown-node", "did you mean first"),
    ("net.yaml", "march:", "node_info: {'first': {ON: 'BPU'}}\n  march:", "key-not-text", "'ON'"),
    ("net.yaml", "march:", "node_info: {'first': {'OutputType': 'int12'}}\n  march:", "node-info", "int8 or int16"),
    ("net.yaml", "march:", "node_info: {'first': 'int16'}\n  march:", "node-info", "expected keys"),
    ("net.yaml", "march:", "node_info: 'first=int16'\n  march:", "node-info", "NODE:int16"),
    ("net.yaml", "march:", "remove_node_name: 'end'\n  march:", "unknown-node", "end"),
    ("net.yaml", "march:", "remove_node_type: 'Quantize;Reshape;Dequantize'\n  march:", "remove-order", "Quantize;Dequantize;Reshape"),
    ("net.yaml", "march:", "remove_node_type: 'Conv'\n  march:", "unknown-value", "Quantize"),
    ("net.yaml", "'123.675 116.28 103.53'", "'123.675;116.28;103.53'", "value-count", "between inputs"),
    ("net.yaml", "  norm_type: 'data_mean_and_scale'\n", "", "wrong-scale", "not scaled at all"),
    ("net.yaml", "1x3x8x8", "1,3,8,8", "wrong-type", "with x between"),
    ("net.yaml", "'nv12'", "'rgb'", "missing-key", "input_layout_rt"),
    ("net.yaml", "optimize_level", "jobs: '4'\n  optimize_level", "wrong-type", "without quotes"),
    ("net.yaml", "optimize_level", "balance_factor: 5\n  optimize_level", "unused-value", "compile_mode balance"),
    ("net.yaml", "  optimize_level: 'O3'\n", "", "optimize-level", "stands for O0"),
    ("vamc.yaml", "0.485, 0.456, 0.406", "123.675, 116.28, 103.53", "wrong-mean", "multiplied by 255 twice"),
    ("vamc.yaml", "0.406]", "0.406], div255: False", "wrong-mean", "0..1"),
    ("vamc.yaml", "{type: ToTensor}", "{type: ToTensor}\n  - {type: CvtColor, code: COLOR_RGB2BGR}", "color-order", "delete the step CvtColor"),
    ("vamc.yaml", "[1, 3, 8, 8]", "[1, 3, 9, 9]", "input-shape", "[1, 3, 8, 8]"),
    ("vamc.yaml", "{data:", "{input:", "input-name", "data"),
    ("vamc.yaml", "calibrate_mode:", "alibrate_mode:", "misspelled-key", "calibrate_mode"),
    ("vamc.yaml", "percentile", "kl", "unknown-value", "kl_divergence"),
    ("vamc.yaml", "per_channel: True", "per_channel: False", "per-tensor", "one scale"),
    ("vamc.yaml", "get_data_num: 50", "get_data_num: 4", "calibration-few", "at least 20"),
    ("vamc.yaml", "dtype: int8", "dtype: int4", "unknown-value", "int8, fp16"),
    ("vamc.yaml", "name: net_int8\n", "", "missing-key", "name"),
    ("vamc.yaml", "[16, 16]", "[20, 20]", "resize", "16x16"),
    ("vamc.yaml", "crop_size: [8, 8]", "crop_size: [10, 10]", "input-shape", "8x8"),
    ("vamc.yaml", "crop_size: [8, 8]", "crop_size: [18, 18]", "crop", "larger than"),
    ("vamc.yaml", "DecodeImage", "decodeImage", "unknown-value", "DecodeImage"),
    ("vdsp.json", "DIV255_MINUSMEAN_DIVSTD", "MINUSMEAN_DIVSTD", "wrong-mean", "0..1"),
    ("vdsp.json", "DIV255_MINUSMEAN_DIVSTD", "DIV255", "wrong-scale", "std is missing"),
    ("vdsp.json", "DIV255_MINUSMEAN_DIVSTD", "DIV255_MINUSMEAN", "unknown-value", "DIV255_MINUSMEAN_DIVSTD"),
    ("vdsp.json", "NO_CHANGE", "RGB2BGR", "color-order", "takes RGB"),
    ("vdsp.json", "CVTCOLOR_CROP", "CVTCOLR_CROP", "unknown-value", "CVTCOLOR_CROP"),
    ("vdsp.json", '"CropX": 4', '"CropX": 8', "crop", "CropX: 4"),
    ("vdsp.json", '"CropY": 4', '"CropY": 9', "crop", "beyond"),
    ("vdsp.json", '"OimageWidth": 8', '"OimageWidth": 10', "input-shape", "8x8"),
    ("vdsp.json", '"ResizeWidth": 16', '"ResizeWidth": 12', "resize", "16x16"),
    ("vdsp.json", '"IimageWidthPitch": 16', '"IimageWidthPitch": 8', "pitch", "overlap"),
    ("vdsp.json", '"CropX": 4', '"CropX": 4, "CropX": 8', "duplicate-key", "CropX"),
    ("convert.py", "255*0.485", "0.485", "wrong-mean", ""),
    ("convert.py", "255*0.229, 255*0.224, 255*0.225", "0.229, 0.224, 0.225", "wrong-scale", "0..1"),
    ("convert.py", "'normal'", "'normal', quant_img_RGB2BGR=True", "color-order", "takes RGB"),
    ("convert.py", "'normal'", "'kl'", "unknown-value", "kl_divergence"),
    ("convert.py", "'channel'", "'layer'", "per-tensor", "one scale"),
    ("convert.py", "mean_values=", "mean_value=", "unknown-key", "mean_values"),
    ("convert.py", "['data']", "['input']", "input-name", "data"),
    ("convert.py", "[[1, 3, 8, 8]]", "[[1, 3, 9, 9]]", "input-shape", "[1, 3, 8, 8]"),
    ("steps.sh", "123.675,116.28,103.53", "0.485,0.456,0.406", "wrong-mean", "0..1"),
    ("steps.sh", "0.01712475,0.017507,0.01742919", "58.395,57.12,57.375", "wrong-scale", "reciprocal"),
    ("steps.sh", "pixel_format rgb", "pixel_format bgr", "color-order", "RGB"),
    ("steps.sh", "pixel_format rgb", "pixel_format yuv", "unknown-value", "rgb"),
    ("steps.sh", "[[1,3,8,8]]", "[[1,3,9,9]]", "input-shape", "[1, 3, 8, 8]"),
    ("steps.sh", "INT8", "INT7", "unknown-value", "INT8"),
    ("steps.sh", "bm1684x", "bm1685", "unknown-value", "bm1684x"),
    ("steps.sh", "--calibration_table net_cali_table", "", "missing-key", "calibration_table"),
    ("steps.sh", "input_num 100", "input_num 5", "calibration-few", "at least 20"),
    ("net.alls", "[123.675, 116.28, 103.53]", "[0.485, 0.456, 0.406]", "wrong-mean", "0..1"),
    ("net.alls", "57.375]", "0]", "wrong-type", "std of 0"),
    ("net.alls", "calibset_size=64", "calibset_size=8", "calibration-few", "at least"),
    ("hailo.yaml", "info:", "parser: {normalization_params: {mean_list: [a], std_list: [1]}}\ninfo:", "wrong-type", "mean_list"),
    ("hailo.yaml", "info:", "parser: {normalization_params: {mean_list: [0.5], std_list: [1]}}\ninfo:", "wrong-mean", "123.675"),
    ("hailo.yaml", "8x8x3", "9x9x3", "input-shape", "8x8x3"),
    ("hailo.yaml", "{network_name: net}", "{}", "missing-key", "network_name"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "code", "words"), BROKEN)
def test_one_thing_broken(
    tmp_path: Path, name: str, old: str, new: str, code: str, words: str
) -> None:
    text = KINDS[name]
    assert old in text
    report = check(tmp_path, name, text.replace(old, new))
    found = [item for item in report.findings if item.code == code]
    assert found, report.findings
    assert words in " ".join(f"{item.message} {item.fix}" for item in found)
    assert all(item.file == name for item in found)


def test_lines_are_those_of_the_keys(tmp_path: Path) -> None:
    text = samples.X5.replace("123.675", "0.485").replace("'O3'", "'O0'")
    report = check(tmp_path, "net.yaml", text)
    lines = text.splitlines()
    placed = [item for item in report.findings if item.key]
    assert placed
    for item in placed:
        assert item.key.split(".")[-1] in lines[item.line - 1]


def test_colors_reversed_everywhere_are_one_mistake(tmp_path: Path) -> None:
    """A file that is BGR throughout has the wrong order, and no wrong numbers besides."""
    text = (
        samples.X5.replace("123.675 116.28 103.53", "103.53 116.28 123.675")
        .replace("0.01712475 0.017507 0.01742919", "0.01742919 0.017507 0.01712475")
        .replace("_train: 'rgb'", "_train: 'bgr'")
    )
    assert serious(check(tmp_path, "net.yaml", text)) == {"color-order"}


def test_rounded_constants_are_none(tmp_path: Path) -> None:
    text = samples.X5.replace("123.675 116.28 103.53", "123.7 116.3 103.5")
    text = text.replace("0.01712475 0.017507 0.01742919", "0.01712 0.0175 0.01743")
    assert not serious(check(tmp_path, "net.yaml", text))


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        ("'116.779 123.68 103.939'", "neither RGB nor BGR"),
        ("'103.939 116.779 123.68'", "in BGR order"),
        ("'1 1 1'", "at most one level"),
    ],
)
def test_without_a_model_what_no_model_wants(
    tmp_path: Path, mean: str, words: str
) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(samples.X5.replace("'123.675 116.28 103.53'", mean))
    report = repzoo.check_pack(path)
    assert {item.code for item in report.findings} == {
        "unusual-normalization",
        "file-elsewhere",
    }
    assert any(words in item.message for item in report.findings)


def graph(body: str, **weights: Any) -> Artifact:
    head = '<ir_version: 7, opset_import: ["" : 11]> g (float[1, 3, 8, 8] data) => '
    text = f"{head}(float[1, 4, 8, 8] output) {{ {body} }}"
    random = np.random.default_rng(0)
    known = {
        "w": random.standard_normal((4, 3, 3, 3)),
        "u": random.standard_normal((4, 3, 1, 1)),
        "ones": np.ones(4),
        "mean": np.array([123.0, 116.0, 103.0]).reshape(1, 3, 1, 1),
        "std": np.array([58.0, 57.0, 57.0]).reshape(1, 3, 1, 1),
    }
    used = {key: value for key, value in known.items() if f" {key}" in body}
    model = samples.parse(text, **used, **weights)
    return Artifact(model, "net", samples.IMAGENET)


CONV = "[first] {} = Conv <pads = [1, 1, 1, 1]> ({}, w)"


def test_branches_that_a_fold_merges_are_named(tmp_path: Path) -> None:
    branches = graph(
        f"{CONV.format('a', 'data')} [second] b = Conv (data, u) [sum] output = Add (a, b)"
    )
    report = check(tmp_path, "net.yaml", samples.X5, branches)
    (found,) = [item for item in report.findings if item.code == "unmerged-branches"]
    assert (
        "1 sums of parallel branches and 0 BatchNormalizations are left, such as sum"
        in found.message
    )
    assert "repzoo fold" in found.fix
    assert "2 convolutions, 1 after it" in found.cost
    normalized = graph(
        f"{CONV.format('a', 'data')} [norm] output = BatchNormalization "
        "(a, ones, ones, ones, ones)"
    )
    report = check(tmp_path, "net.yaml", samples.X5, normalized)
    assert "unmerged-branches" in serious(report)


def test_a_residual_connection_is_no_branch(tmp_path: Path) -> None:
    residual = graph(
        f"{CONV.format('a', 'data')} b = Relu (a) [c] c = Conv (b, k) output = Add (b, c)",
        k=np.ones((4, 4, 1, 1)),
    )
    # b + conv(b) is linear in b, so a fold merges it; through a Relu it does not.
    through = graph(
        f"{CONV.format('a', 'data')} b = Relu (a) [c] c = Conv (b, k) d = Relu (c) "
        "output = Add (b, d)",
        k=np.ones((4, 4, 1, 1)),
    )
    assert "unmerged-branches" in serious(
        check(tmp_path, "net.yaml", samples.X5, residual)
    )
    assert "unmerged-branches" not in serious(
        check(tmp_path, "net.yaml", samples.X5, through)
    )


def test_normalization_in_the_graph_and_in_the_file(tmp_path: Path) -> None:
    body = f"[sub] m = Sub (data, mean) [div] n = Div (m, std) {CONV.format('output', 'n')}"
    report = check(tmp_path, "net.yaml", samples.X5, graph(body))
    (found,) = [item for item in report.findings if item.code == "normalized-twice"]
    assert "Sub sub, Div div" in found.message
    assert "no_preprocess" in found.fix


def test_operators_on_the_cpu(tmp_path: Path) -> None:
    body = f"{CONV.format('a', 'data')} [soft] b = Softmax <axis = 3> (a) [neg] c = Neg (b) output = Relu (c)"
    report = check(tmp_path, "net.yaml", samples.X5, graph(body))
    found = {item.message for item in report.findings if item.code == "cpu-operator"}
    assert found == {
        "Softmax runs on the CPU: soft",
        "Neg runs on the CPU: neg",
    }
    on_bpu = samples.X5.replace("'default'", "'default'\n  run_on_bpu: 'soft'")
    report = check(tmp_path, "net.yaml", on_bpu, graph(body))
    assert not any("Softmax" in item.message for item in report.findings)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('"" : 11', '"" : 17', "opset"),
        ("ir_version: 7", "ir_version: 10", "ir-version"),
        ("float[1, 3, 8, 8]", "float[1, 3, H, 8]", "dynamic-shape"),
        ("float[1, 3, 8, 8]", "float[N, 3, 8, 8]", "dynamic-shape"),
        ("float[1, 3, 8, 8]", "float[4, 3, 8, 8]", "batch"),
    ],
)
def test_models_that_the_tool_cannot_take(
    tmp_path: Path, old: str, new: str, code: str
) -> None:
    model = samples.parse(samples.TEXT.replace(old, new), **samples.weights())
    text = samples.X5.replace("1x3x8x8", "")
    report = check(tmp_path, "net.yaml", text, Artifact(model, "net", samples.IMAGENET))
    assert code in serious(report)


def test_odd_sides_and_nv12(tmp_path: Path) -> None:
    model = samples.parse(samples.TEXT.replace("8, 8", "9, 9"), **samples.weights())
    odd = Artifact(model, "net", replace(samples.IMAGENET, size=9))
    text = samples.X5.replace("1x3x8x8", "1x3x9x9")
    assert serious(check(tmp_path, "net.yaml", text, odd)) == {"odd-sides"}
    rgb = text.replace("'nv12'", "'rgb'\n  input_layout_rt: 'NHWC'")
    assert not serious(check(tmp_path, "net.yaml", rgb, odd))


def test_too_many_outputs_and_scales_that_are_not_loaded(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(samples.artifact().model)
    for number in range(33):
        node = model.graph.node.add(op_type="Relu", input=["b"], output=[f"o{number}"])
        node.name = node.output[0]
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(node.output[0], 1, [1, 4, 8, 8])
        )
    report = check(
        tmp_path, "net.yaml", samples.X5, replace(samples.artifact(), model=model)
    )
    assert "outputs" in serious(report)
    model.graph.node.add(op_type="QuantizeLinear", input=["b", "s"], output=["q"])
    report = check(
        tmp_path, "net.yaml", samples.X5, replace(samples.artifact(), model=model)
    )
    assert "scales-not-loaded" in serious(report)


def test_the_filter_of_the_card(tmp_path: Path) -> None:
    cubic = replace(samples.IMAGENET, interpolation="bicubic")
    model = replace(samples.artifact(), preprocess=cubic)
    report = check(tmp_path, "vdsp.json", samples.VDSP, model)
    assert "interpolation" in {item.code for item in report.findings}


def test_constants_that_half_precision_rounds(tmp_path: Path) -> None:
    text = samples.VDSP.replace("0.485107421875", "0.485")
    report = check(tmp_path, "vdsp.json", text)
    assert not serious(report)
    (found,) = [item for item in report.findings if item.code == "half-precision"]
    assert "0.485107421875" in found.fix


def test_calibration_and_run_time_that_differ(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(samples.VAMC)
    other = json.loads(samples.VDSP)
    other["OpConfig"].update(NormaType="DIV255", ResizeWidth=12, CropX=2)
    (tmp_path / "net-vdsp_params.json").write_text(json.dumps(other))
    report = repzoo.check_pack(tmp_path)
    found = [
        item.message for item in report.findings if item.code == "configurations-differ"
    ]
    assert len(found) == 3
    assert "[16, 12]" in " ".join(found)


def test_a_list_of_images(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    for name in names:
        (tmp_path / name).touch()
    listed = tmp_path / "dataset.txt"
    listed.write_text("\n".join(names))
    assert not repzoo.check_pack(listed).findings
    listed.write_text("\n".join([*names[:5], names[0], "gone.jpg"]))
    found = {item.code for item in repzoo.check_pack(listed).findings}
    assert found == {"missing-file", "calibration-few", "calibration-identical"}


def test_every_code_has_a_severity_and_a_word() -> None:
    for code, entry in codes().items():
        assert entry["severity"] in SEVERITIES, code
        assert entry["about"], code


DAMAGE = [
    "null",
    "[]",
    "{}",
    "-1",
    "1e400",
    "true",
    "[1, 2]",
    "{a: 1}",
    "0",
    ".inf",
    "- x",
]


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_end_in_findings_or_one_sentence(
    tmp_path: Path, name: str
) -> None:
    for seed in range(25):
        random = np.random.default_rng(seed)
        lines = KINDS[name].split("\n")
        line = int(random.integers(len(lines)))
        word = str(random.choice(DAMAGE))
        damaged = [
            f"{lines[line].split(':')[0]}: {word}",
            lines[line] * 2,
            lines[line][: len(lines[line]) // 2],
            re.sub(r"[\d.]+", word, lines[line], count=1),
        ]
        lines[line] = damaged[seed % len(damaged)]
        with contextlib.suppress(repzoo.InputError):
            check(tmp_path, name, "\n".join(lines))
