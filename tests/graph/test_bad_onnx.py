# ruff: noqa: PT017  a graph is a row; what is raised is what is judged
"""Any file folds to a valid graph with a certificate, or is refused in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from repzoo import verbs
from repzoo.artifact import Artifact
from repzoo.errors import InputError, RepzooError
from repzoo.graph.certificate.certify import Certificate

Array = npt.NDArray[Any]
Verdict = tuple[Artifact, Certificate]

RANDOM = np.random.default_rng(5)
BN = ("gamma", "beta", "mean", "var")
HEAD = "z = GlobalAveragePool(u)\noutput = Flatten(z)"
SIMPLE = f"c = Conv(data, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\nu = Relu(t)\n{HEAD}"


def weights(kind: Any = np.float32, **more: tuple[int, ...]) -> list[onnx.TensorProto]:
    shapes: dict[str, tuple[int, ...]] = (
        {"w": (4, 3, 3, 3)} | dict.fromkeys(BN, (4,)) | more
    )
    return [
        numpy_helper.from_array(RANDOM.uniform(0.2, 1, shape).astype(kind), name)
        for name, shape in shapes.items()
    ]


def model(
    body: str = SIMPLE, stored: Sequence[onnx.TensorProto] | None = None, **more: Any
) -> onnx.ModelProto:
    kind, inputs, after = (
        more.get("kind", "float"),
        more.get("inputs", ""),
        more.get("after", ""),
    )
    opsets = f'"": {more.get("opset", 17)}{more.get("domains", "")}'
    header = f"<ir_version: {more.get('ir', 8)}, opset_import: [{opsets}]>"
    parsed = parser.parse_model(
        f"{header}\n"
        f"main ({kind}[N, 3, 8, 9] data{inputs}) => ({kind}[N, 4] output) {{\n"
        f"{body}\n"
        f"}}\n"
        f"{after}"
    )
    parsed.graph.initializer.extend(weights() if stored is None else stored)
    return parsed


def fold_file(source: onnx.ModelProto | bytes, tmp_path: Path) -> Verdict | str:
    """Fold a file, as a user would: the result and its certificate, or the error message."""
    path = tmp_path / "model.onnx"
    path.write_bytes(
        source if isinstance(source, bytes) else source.SerializeToString()
    )
    try:
        folded = verbs.fold(Artifact.read(path))
    except RepzooError as error:
        assert isinstance(error, InputError), f"{type(error).__name__}: {error}"
        assert "\n" not in str(error)
        assert "Traceback" not in str(error)
        return str(error)
    onnx.checker.check_model(folded.model, full_check=True)
    certificate = folded.certificate
    assert certificate is not None
    assert certificate.equal
    return folded, certificate


def kinds(verdict: Verdict | str) -> Counter[str]:
    assert not isinstance(verdict, str), verdict
    return Counter(node.op_type for node in verdict[0].model.graph.node)


FOLDED = {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1}


# --- files ----------------------------------------------------------------------------------------


def test_a_truncated_file(tmp_path: Path) -> None:
    data = model().SerializeToString()
    for end in range(0, len(data) - 1, max(len(data) // 150, 1)):
        verdict = fold_file(data[:end], tmp_path)
        assert isinstance(verdict, str) or kinds(verdict)


def test_a_file_with_any_byte_changed(tmp_path: Path) -> None:
    data = model().SerializeToString()
    for place in RANDOM.integers(0, len(data), 100):
        changed = bytearray(data)
        changed[place] ^= int(RANDOM.integers(1, 256))
        try:
            fold_file(bytes(changed), tmp_path)
        except (
            AssertionError
        ) as error:  # a changed weight may overflow: that is the certificate's sentence
            assert "CertificateError" in str(error)


def test_weights_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(
        model(),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert not isinstance(fold_file(path.read_bytes(), tmp_path), str)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in str(fold_file(path.read_bytes(), tmp_path))


# --- graphs ---------------------------------------------------------------------------------------


def test_a_cycle(tmp_path: Path) -> None:
    network = model()
    network.graph.node[0].input[0] = "u"
    assert "not valid ONNX" in str(fold_file(network, tmp_path))


def test_nodes_out_of_order(tmp_path: Path) -> None:
    network = model()
    nodes = list(network.graph.node)[::-1]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    assert not isinstance(fold_file(network, tmp_path), str)


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.float16])
def test_weights_of_another_type_than_the_input(kind: Any, tmp_path: Path) -> None:
    assert "contradict each other" in str(
        fold_file(model(stored=weights(kind)), tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("w", (4, 2, 3, 3)),
        ("w", (4, 3, 3)),
        ("w", (0, 3, 3, 3)),
        ("w", ()),
        ("gamma", (3,)),
        ("var", (4, 1)),
        ("mean", ()),
    ],
)
def test_weights_of_a_shape_that_does_not_fit(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    assert isinstance(fold_file(model(stored=weights(**{name: shape})), tmp_path), str)


@pytest.mark.parametrize(
    "settings",
    [
        "group = 2",
        "group = 0",
        "group = -1",
        "strides = [0, 0]",
        "pads = [-1, -1, -1, -1]",
        "dilations = [0, 1]",
        "pads = [1, 1]",
    ],
)
def test_attributes_without_meaning(settings: str, tmp_path: Path) -> None:
    verdict = fold_file(model(SIMPLE.replace("Conv(", f"Conv<{settings}>(")), tmp_path)
    assert isinstance(verdict, str) or "pads = [-1" in settings


@pytest.mark.parametrize("opset", range(7, 24))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    verdict = fold_file(model(opset=opset, ir=11 if opset > 21 else 10), tmp_path)
    assert kinds(verdict) == FOLDED


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_an_opset_that_is_too_old(opset: int, tmp_path: Path) -> None:
    assert isinstance(fold_file(model(opset=opset), tmp_path), str)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18])
def test_pad_split_and_slice_of_every_opset(opset: int, tmp_path: Path) -> None:
    """What is an attribute in one version and an input in the next."""
    frame, parts, starts, ends, axes = [0, 0, 1, 1, 0, 0, 1, 1], [1, 2], [0], [3], [1]
    nodes, stored = [], weights(wa=(4, 1, 3, 3), wb=(4, 2, 3, 3))
    old = {"Pad": opset < 11, "Slice": opset < 10, "Split": opset < 13}

    def add(
        kind: str,
        inputs: list[str],
        outputs: list[str],
        settings: dict[str, Any],
        **more: Any,
    ) -> None:
        if old[kind]:
            nodes.append(helper.make_node(kind, inputs, outputs, **settings, **more))
        else:
            stored.extend(
                numpy_helper.from_array(np.array(value), kind + name)
                for name, value in settings.items()
            )
            nodes.append(
                helper.make_node(
                    kind,
                    [*inputs, *(kind + name for name in settings)],
                    outputs,
                    **more,
                )
            )

    add("Slice", ["data"], ["s"], {"starts": starts, "ends": ends, "axes": axes})
    add("Pad", ["s"], ["p"], {"pads": frame})
    add("Split", ["p"], ["a", "b"], {"split": parts}, axis=1)
    nodes += [
        helper.make_node("Conv", ["a", "wa"], ["ca"]),
        helper.make_node("Conv", ["b", "wb"], ["cb"]),
    ]
    nodes += [
        helper.make_node("Add", ["ca", "cb"], ["u"]),
        helper.make_node("GlobalAveragePool", ["u"], ["z"]),
    ]
    nodes += [helper.make_node("Flatten", ["z"], ["output"])]
    network = model(opset=opset, stored=stored)
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    assert kinds(fold_file(network, tmp_path)) == {
        "Conv": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
    }


def test_float16(tmp_path: Path) -> None:
    network = model(stored=weights(np.float16), kind="float16")
    verdict = fold_file(network, tmp_path)
    assert isinstance(verdict, str) or kinds(verdict) == FOLDED


def test_float16_weights_behind_a_cast(tmp_path: Path) -> None:
    stored = weights(np.float16)
    network = model(
        "w32 = Cast<to = 1>(w)\n"
        + "".join(f"{name}32 = Cast<to = 1>({name})\n" for name in BN)
        + SIMPLE.replace("w)", "w32)").replace(
            "gamma, beta, mean, var", "gamma32, beta32, mean32, var32"
        ),
        stored,
    )
    assert kinds(fold_file(network, tmp_path)) == FOLDED


def test_a_weight_that_is_an_input(tmp_path: Path) -> None:
    """Older exporters list weights as inputs with a default, which a caller may replace."""
    network = model(inputs=", float[4, 3, 3, 3] w")
    verdict = fold_file(network, tmp_path)
    assert kinds(verdict)["Conv"] == 2
    assert not isinstance(verdict, str)
    assert any(
        "not constant (a graph input or computed)" in item.reason
        for item in verdict[1].refusals
    )


@pytest.mark.parametrize("output", ["data", "w"])
def test_outputs_that_need_no_node(output: str, tmp_path: Path) -> None:
    """What would be written has no node, and no program reads such a file."""
    source = model()
    source.graph.output[0].name = output
    shape = source.graph.output[0].type.tensor_type.shape
    shape.ClearField("dim")
    for side in {"data": (0, 3, 8, 9), "w": (4, 3, 3, 3)}[output]:
        dim = shape.dim.add()
        if side:
            dim.dim_value = side
    message = fold_file(source, tmp_path)
    assert message == (
        f"nothing is computed for the outputs ({output}): each is an input of the graph or a "
        "stored constant; export the graph with the outputs that its nodes compute"
    )
