"""GELU as one node, for engines that do not recognize it in several between Q/DQ pairs.

ONNX Runtime gives each reader of a quantized tensor a DequantizeLinear of its own, before it looks
for patterns. GELU reads its input twice, so it is found no longer, and five operators run in its
place. RepViT-m0.9 takes 16 % less time with single nodes and FasterNet-T0 15 % (all layers in INT8,
224 pixels, one thread, AVX2); in float nothing changes.
"""

from __future__ import annotations

import onnx

from repzoo.errors import InputError
from repzoo.graph.tools.onnx_edit import remove_unused_initializers
from repzoo.onnx_file import opset_of
from repzoo.quant.parameters.qdq_writer import prepare_for_qdq, upgrade_opset
from repzoo.remark import Remark

GELU_IR = 9  # of the release that brought the opset, onnx 1.15
KINDS = ("Gelu", "GeluTanh")


def with_single_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in opset 20 or newer, where GELU is one node. All other tensors keep their names.

    It stays as it is where it has no GELU in several nodes, or where onnx cannot convert it: it is
    only slower then.
    """
    # They bring onnx-ir, which `repzoo --help` does not need.
    from repzoo.graph.fold.spelling import GELU_OPSET, respell
    from repzoo.graph.tools.constant_folding import infer_shapes
    from repzoo.graph.tools.ir_model import to_ir, to_proto

    if not _has_several_nodes(model):
        return model
    try:
        upgraded = to_ir(upgrade_opset(model, GELU_OPSET))
    except InputError:
        return model
    infer_shapes(upgraded)
    respellings = respell(upgraded.graph)
    if not any(item.nodes[-1].op_type == "Gelu" for item in respellings):
        return model
    # Constants of the old spelling may be nodes, which become initializers here.
    result = prepare_for_qdq(to_proto(upgraded))
    remove_unused_initializers(result.graph)
    _forget_removed(result.graph)
    result.ir_version = max(result.ir_version, GELU_IR)
    return result


def single_node_remarks(model: onnx.ModelProto, single: onnx.ModelProto) -> list[str]:
    """What to know of `single`, which `with_single_nodes` returned for `model`."""
    before, after = opset_of(model), opset_of(single)
    if after > before:
        remark = Remark(
            "the file has opset {after} and not {before}, because GELU is one node from there on, "
            "which takes less time in INT8; ONNX Runtime reads it since 1.17, older runtimes may "
            "not",
            before=before,
            after=after,
        )
        return [remark]
    if not _has_several_nodes(model) or _can_have_single_nodes(model):
        return []
    remark = Remark(
        "GELU stays in several nodes, which takes longer in INT8 than one: onnx cannot convert the "
        "graph from opset {before} to one that has it; export the model with opset 20 or newer",
        before=before,
    )
    return [remark]


def _can_have_single_nodes(model: onnx.ModelProto) -> bool:
    """Whether onnx can convert `model` to an opset where GELU is one node."""
    from repzoo.graph.fold.spelling import GELU_OPSET

    try:
        upgrade_opset(model, GELU_OPSET)
    except InputError:
        return False
    return True


def _has_several_nodes(model: onnx.ModelProto) -> bool:
    """Whether `model` spells a GELU in several nodes."""
    from repzoo.graph.fold.fused import composites_with_nodes
    from repzoo.graph.tools.ir_model import to_ir

    composites = composites_with_nodes(to_ir(model).graph)
    return any(composite.kind in KINDS for composite, _ in composites)


def _forget_removed(graph: onnx.GraphProto) -> None:
    """Remove what `graph` says of the shapes of tensors that it no longer has."""
    present = {name for node in graph.node for name in node.output}
    kept = [item for item in graph.value_info if item.name in present]
    del graph.value_info[:]
    graph.value_info.extend(kept)
