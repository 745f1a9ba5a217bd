"""Bytes straight into the graph: equal to the float input within bounds that mutants break,
merged where exact, else in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data import nv12
from repzoo.data.preprocess import as_float, pixel_map
from repzoo.engines import engine
from repzoo.errors import CertificateError, InputError
from repzoo.graph.certificate.certify import InputCertificate, certify_input
from repzoo.graph.fold import engine as folding
from repzoo.graph.fold.camera_input import EmbeddedModel, embed

Graph = Callable[..., onnx.ModelProto]
TAIL = """
  live = Relu(stem)
  pooled = GlobalAveragePool(live)
  flat = Flatten(pooled)
  output = Gemm<transB = 1>(flat, w, b)"""
WEIGHTS = {"k": (6, 3, 3, 3), "c": (6,), "w": (5, 6), "b": (5,)}
SAID = {
    "none": "all of it merged",
    "padded": "the origin subtracted",
    "front": "in front of the graph",
}
STEMS: dict[
    str, tuple[str, dict[str, Any], str]
] = {  # first layer -> where the arithmetic must go
    "no padding": ("stem = Conv<strides = [2, 2]>(data, k, c)", {}, "none"),
    "padding": (
        "stem = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(data, k, c)",
        {},
        "padded",
    ),
    "asymmetric": (
        "stem = Conv<pads = [0, 0, 1, 1], strides = [2, 2]>(data, k, c)",
        {},
        "padded",
    ),
    "explicit pad": (
        "p = Pad(data, sides)\n  stem = Conv<strides = [2, 2]>(p, k, c)",
        {"sides": [0, 0, 0, 0, 0, 0, 1, 1]},
        "padded",
    ),
    "auto pad": (
        'stem = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(data, k, c)',
        {},
        "padded",
    ),
    "pool first": (
        "p = MaxPool<kernel_shape = [2, 2]>(data)\n  stem = Conv(p, k, c)",
        {},
        "front",
    ),
    "read twice": (
        "n = Neg(data)\n  x = Max(data, n)\n  stem = Conv<pads = [1, 1, 1, 1]>(x, k, c)",
        {},
        "front",
    ),
    "depthwise": (
        "stem = Conv<group = 3, pads = [1, 1, 1, 1]>(data, d, c)",
        {"d": (6, 1, 3, 3)},
        "either",
    ),
    "two branches": (
        "one = Conv<pads = [1, 1, 1, 1]>(data, k, c)\n  two = Conv(data, q)\n  stem = Add(one, two)",
        {"q": (6, 3, 1, 1)},
        "padded",
    ),
}
CONTRACTS = [
    {"input": "uint8"},
    {"input": "uint8", "color": "BGR"},
    {"input": "nv12", "yuv": "bt601-full"},
    {"input": "nv12", "yuv": "bt709-limited", "color": "BGR"},
]
IDS = ["uint8", "uint8-bgr", "nv12-601", "nv12-709-bgr"]


def make_artifact(graph: Graph, stem: str, opset: int = 17) -> Artifact:
    body, more, _ = STEMS[stem]
    weights = {
        key: np.array(what, np.int64) if key == "sides" else what
        for key, what in {**WEIGHTS, **more}.items()
    }
    read = {
        key: what
        for key, what in weights.items()
        if key in body + TAIL.replace("flat", "")
    }
    return Artifact(
        graph("  " + body + TAIL, read, "N, 3, 12, 12", "N, 5", opset=opset),
        "subject",
        Preprocess(size=12),
    )


def embed_bytes(
    artifact: Artifact, contract: dict[str, Any], **more: Any
) -> tuple[EmbeddedModel, Preprocess]:
    assert artifact.preprocess is not None
    wanted = Preprocess.from_mapping(
        {**dataclasses.asdict(artifact.preprocess), **contract}
    )
    return embed(
        artifact.model, wanted, *pixel_map(wanted, wanted.color), **more
    ), wanted


def certify_bytes(
    artifact: Artifact,
    model: onnx.ModelProto,
    wanted: Preprocess,
    sent: Preprocess | None = None,
) -> InputCertificate:
    """Random bytes, loud bytes and a smooth picture; `sent` decodes them for the float model."""
    random = np.random.default_rng(0)
    shape = (3, *wanted.input_shape)
    slope = np.broadcast_to(
        np.linspace(20, 230, shape[2])[None, None, :, None], shape
    ).astype(np.uint8)
    raws = [
        random.integers(0, 256, shape, np.uint8),
        255 * random.integers(0, 2, shape, np.uint8),
        slope,
    ]
    runner = engine("onnxruntime")
    pairs = [(as_float(raw, sent or wanted), raw) for raw in raws]
    return certify_input(
        artifact,
        model,
        lambda model, inputs: runner.open(model, 1, exact=True).run(inputs),
        pairs,
    )


@pytest.mark.parametrize("contract", CONTRACTS, ids=IDS)
@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_is_equal_and_merged_where_that_is_exact(
    graph: Graph, stem: str, contract: dict[str, Any]
) -> None:
    artifact = make_artifact(graph, stem)
    result, wanted = embed_bytes(artifact, contract)
    onnx.checker.check_model(result.model, full_check=True)
    where = STEMS[stem][2]
    assert where == "either" or SAID[where] in result.summary
    kinds = [node.op_type for node in result.model.graph.node]
    assert kinds[0] == "Cast"
    assert ("Sub" in kinds) == (where == "padded") or where in ("front", "either")
    assert certify_bytes(artifact, result.model, wanted).comparison.top1_agreement == 1
    assert certify_bytes(artifact, result.prepended, wanted).equal
    reference = engine("reference").open(
        result.model
    )  # a second runtime, for the operators' meaning
    raw = np.random.default_rng(1).integers(0, 256, (2, *wanted.input_shape), np.uint8)
    direct = engine("reference").open(artifact.model).run(as_float(raw, wanted))
    np.testing.assert_allclose(
        reference.run(raw), direct, rtol=0, atol=1e-4 * np.abs(direct).max()
    )


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("contract", CONTRACTS[::2], ids=IDS[::2])
def test_every_opset(graph: Graph, opset: int, contract: dict[str, Any]) -> None:
    artifact = make_artifact(graph, "padding", opset)
    result, wanted = embed_bytes(artifact, contract)
    assert certify_bytes(artifact, result.model, wanted).equal


@pytest.mark.parametrize(
    "name", ["repvgg_a0", "repghostnet_050", "repvit_m0_6", "fasternet_t0"]
)
def test_the_zoos_families(aged: Callable[[Any], Any], name: str) -> None:
    """Embedded before the fold or after it, the graph is the same, and the padded stem has kept
    its scale but no shift.
    """
    families = pytest.importorskip(
        "repzoo.zoo.families", reason="the torch extra is not installed"
    )
    from repzoo.graph.tools.export import export

    artifact = export(
        aged(families.seeded(name, 10, 0)),
        name,
        Preprocess(size=32),
        (),
        Step("build", "0"),
    )
    deploy = dataclasses.replace(artifact, model=folding.fold(artifact.model).model)
    for contract in CONTRACTS[1::2]:
        late, wanted = embed_bytes(deploy, contract)
        assert certify_bytes(deploy, late.model, wanted).equal
        assert SAID["none" if name == "fasternet_t0" else "padded"] in late.summary
        early, _ = embed_bytes(artifact, contract, merge=False)
        assert early.model is early.prepended
        folded = folding.fold(early.model).model
        assert [node.op_type for node in folded.graph.node] == [
            node.op_type for node in late.model.graph.node
        ]
        assert certify_bytes(artifact, folded, wanted).equal


# Mutants: each is a mistake that people make, and the certificate must name none of them equal


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {item.name: item for item in model.graph.initializer}


def set_values(item: onnx.TensorProto, values: np.ndarray[Any, Any]) -> None:
    item.CopyFrom(numpy_helper.from_array(values.astype(np.float32), item.name))


def shift_into_the_bias(model: onnx.ModelProto) -> None:
    """What every tutorial does, and wrong where the convolution pads."""
    nodes, held = model.graph.node, constants(model)
    shift = next(node for node in nodes if node.op_type == "Sub")
    first = next(node for node in nodes if node.op_type == "Conv")
    origin, kernel, bias = (
        numpy_helper.to_array(held[name])
        for name in (shift.input[1], first.input[1], first.input[2])
    )
    set_values(held[first.input[2]], bias - (kernel * origin).sum((1, 2, 3)))
    first.input[0] = shift.input[0]
    nodes.remove(shift)


def last_origin_off_by_one(model: onnx.ModelProto) -> None:
    held = constants(model)
    item = held[
        next(node for node in model.graph.node if node.op_type == "Sub").input[1]
    ]
    set_values(
        item, numpy_helper.to_array(item) + np.array([0, 0, 1]).reshape(1, 3, 1, 1)
    )


def chroma_shifted_by_half_a_pixel(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Resize")
    for item in node.attribute:
        item.s = {
            "mode": b"linear",
            "coordinate_transformation_mode": b"half_pixel",
        }.get(item.name, item.s)


def chroma_swapped(model: onnx.ModelProto) -> None:
    """NV21 for NV12."""
    node = next(node for node in model.graph.node if node.op_type == "Resize")
    source, name = node.input[0], "turned"
    place = list(model.graph.node).index(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "order"))
    model.graph.node.insert(
        place, onnx.helper.make_node("Gather", [source, "order"], [name], axis=1)
    )
    model.graph.node[place + 1].input[0] = name


MUTANTS = [
    shift_into_the_bias,
    last_origin_off_by_one,
    chroma_shifted_by_half_a_pixel,
    chroma_swapped,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("stem", ["padding", "asymmetric"])
def test_the_certificate_refuses_a_wrong_graph(
    graph: Graph, stem: str, mutate: Callable[[onnx.ModelProto], None]
) -> None:
    artifact = make_artifact(graph, stem)
    result, wanted = embed_bytes(artifact, {"input": "nv12"})
    mutate(result.model)
    onnx.checker.check_model(result.model, full_check=True)
    with pytest.raises(
        CertificateError, match=r"not proven equal, so it is not written\. NOT EQUAL"
    ):
        certify_bytes(artifact, result.model, wanted)


@pytest.mark.parametrize(
    ("built", "sent"),
    [
        ({"input": "uint8"}, {"input": "uint8", "mean": (0.485, 0.456, 0.4062)}),
        ({"input": "uint8"}, {"input": "uint8", "std": (0.2292, 0.224, 0.225)}),
        *[
            ({"input": "nv12"}, {"input": "nv12", "yuv": yuv})
            for yuv in ("bt601-limited", "bt709-full", "bt709-limited")
        ],
    ],
    ids=["mean", "std", "limited for full", "709 for 601", "both"],
)
def test_the_certificate_refuses_a_wrong_contract(
    graph: Graph, built: dict[str, Any], sent: dict[str, Any]
) -> None:
    artifact = make_artifact(graph, "padding")
    result, wanted = embed_bytes(artifact, built)
    assert certify_bytes(artifact, result.model, wanted).equal
    with pytest.raises(CertificateError, match="NOT EQUAL"):
        certify_bytes(
            artifact,
            result.model,
            wanted,
            Preprocess.from_mapping({**dataclasses.asdict(wanted), **sent}),
        )


@pytest.mark.parametrize("contract", CONTRACTS, ids=IDS)
def test_the_certificate_refuses_swapped_channels(
    graph: Graph, contract: dict[str, Any]
) -> None:
    artifact = make_artifact(graph, "padding")
    _, wanted = embed_bytes(artifact, contract)
    swapped = embed(
        artifact.model,
        wanted,
        *pixel_map(wanted, "RGB" if wanted.color == "BGR" else "BGR"),
    )
    with pytest.raises(CertificateError, match="NOT EQUAL"):
        certify_bytes(artifact, swapped.model, wanted)


# Names, and what is refused


def test_names_in_use_and_readers_in_subgraphs(graph: Graph) -> None:
    body = """  data_float = Relu(data)
  flag = Cast<to = 9>(number)
  stem = If(flag) <
    then_branch = yes () => (float[N, 3, H, W] a) { a = Add(data, data_float) },
    else_branch = no () => (float[N, 3, H, W] e) { e = Sub(data, data_float) }
  >
  pooled = GlobalAveragePool(stem)
  flat = Flatten(pooled)
  output = Gemm<transB = 1>(flat, v)"""
    model = graph(body, {"v": (5, 3), "number": [1.0]}, "N, 3, 12, 12", "N, 5")
    artifact = Artifact(model, "subject", Preprocess(size=12))
    result, wanted = embed_bytes(artifact, {"input": "uint8"})
    assert certify_bytes(artifact, result.model, wanted).equal


def test_a_fixed_batch_and_open_sides(graph: Graph) -> None:
    body, more, _ = STEMS["padding"]
    for shape, batch in (("2, 3, 12, 12", 2), ("N, 3, H, W", 0)):
        artifact = Artifact(
            graph("  " + body + TAIL, {**WEIGHTS, **more}, shape, "N, 5"),
            "subject",
            Preprocess(size=12),
        )
        result, wanted = embed_bytes(artifact, {"input": "nv12"})
        dims = result.model.graph.input[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [batch, 18, 12, 1]
        assert certify_bytes(artifact, result.model, wanted).equal


def test_what_cannot_be_embedded_is_refused_in_a_sentence(graph: Graph) -> None:
    old = make_artifact(graph, "padding", 10)
    with pytest.raises(InputError, match="opset 10; convert it to 11 or later"):
        embed_bytes(old, {"input": "uint8"})
    quantized = make_artifact(graph, "padding")
    quantized.model.graph.node.append(
        onnx.helper.make_node("QuantizeLinear", ["data", "s"], ["q"])
    )
    with pytest.raises(
        InputError, match="embed the input of the float model, then quantize"
    ):
        embed_bytes(quantized, {"input": "uint8"})


def test_an_input_that_is_also_the_output_is_refused_in_a_sentence(
    graph: Graph,
) -> None:
    artifact = make_artifact(graph, "padding")
    (source,) = artifact.model.graph.input
    source.type.tensor_type.ClearField("shape")
    (output,) = artifact.model.graph.output
    output.CopyFrom(source)
    with pytest.raises(InputError, match="gives its input back as its output"):
        embed_bytes(artifact, {"input": "uint8"})


def test_odd_sides_have_no_nv12() -> None:
    with pytest.raises(InputError, match="its sides must be even; got size 225"):
        Preprocess(size=225, input="nv12")
    with pytest.raises(InputError, match="yuv belongs to the input nv12"):
        Preprocess(input="uint8", yuv="bt709-full")


def test_the_decoder_is_not_the_graphs(graph: Graph) -> None:
    """The certificate's float side comes from nv12.to_rgb; a mistake there is convicted as well."""
    artifact = make_artifact(graph, "no padding")
    result, wanted = embed_bytes(artifact, {"input": "nv12"})
    raw = np.random.default_rng(0).integers(0, 256, (2, *wanted.input_shape), np.uint8)
    rounded = np.moveaxis(
        (nv12.to_rgb8(raw, wanted.yuv) / 255 - wanted.mean) / np.array(wanted.std),
        -1,
        1,
    ).astype(np.float32)
    runner = engine("onnxruntime")
    with pytest.raises(CertificateError, match="NOT EQUAL"):
        certify_input(
            artifact,
            result.model,
            lambda model, inputs: runner.open(model, 1, exact=True).run(inputs),
            [(rounded, raw)],
        )
