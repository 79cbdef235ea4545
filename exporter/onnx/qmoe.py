"""Two stacks of experts as one ``com.microsoft::QMoE``: each token is computed by the experts that it is sent to alone.

::

    x, scores ─ QMoE ─ y        codes U8[experts, OC, IC * bits / 8], scales F32[experts, OC, IC / block],
                                zero points U8[experts, OC, ceil(blocks * bits / 8)]

One node has one width and one block for both stacks. By itself it weighs experts by the softmax of the best scores; where these
weights are not 1 together, the softmax of all goes in as an input of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto

from exporter.onnx.floats import cast, kept
from exporter.onnx.matmul_nbits import CONTRIB, Layout
from exporter.onnx.tensors import Form, Planned, node, planned_scale, site, wide_scale
from exporter.onnx_cost import packed_size, stack_bits, stack_block
from quantize.onnx.moe import Experts, normalizes
from quantize.store.record import TensorRecord

ROUTER_WEIGHTS = 14  # the place of that input


class _Stack(Layout):
    """The rows of all experts, one below the other, are those of a matrix."""

    def codes(self) -> Planned:
        return Planned(super().codes().name, TensorProto.UINT8, (*self.record.shape[:-1], self.blocks * self.block_bytes))

    def scale(self) -> Planned:
        return planned_scale(self.record, (*self.record.shape[:-1], self.blocks))

    def zeros_of(self) -> tuple[Planned, ...]:
        shape = (*self.record.shape[:-1], packed_size(self.blocks, self.bits))
        return (Planned(f"{self.record.name}.zero_point", TensorProto.UINT8, shape),) if self.zeros else ()

    def form(self) -> Form:
        widths = {zero.name: self.bits for zero in self.zeros_of()}
        planned = (self.codes(), self.scale(), *self.zeros_of())
        return Form("qmoe", self.widening(), planned, lambda first, chunk: self.pieces(first, chunk, widths))

    def inputs(self) -> list[str]:
        return [self.codes().name, wide_scale(self.scale())[0]]


def qmoe(
    moe: NodeProto, experts: Experts, records: Mapping[str, TensorRecord], accuracy_level: int
) -> tuple[list[NodeProto], dict[str, Form]]:
    """In place of ``moe``: nodes, and of each of its stacks its form. ``records``: of both, PER_OC."""
    grids = [grid for name in experts.stacks if (grid := records[name].grid) is not None]
    size = stack_block(min(grid.group_size for grid in grids), *(records[name].shape[-1] for name in experts.stacks))
    bits = max(map(stack_bits, grids))
    up, down = (_Stack(records[name], sizes=(bits, size)) for name in experts.stacks)
    forms = {stack.record.name: stack.form() for stack in (up, down)}
    inputs = [experts.x, experts.scores, *up.inputs(), experts.up_bias, *down.inputs(), experts.down_bias, "", "", ""]
    inputs += [stack.zeros_of()[0].name if stack.zeros else "" for stack in (up, down)]
    nodes, prefix = [one for form in forms.values() for one in form.nodes], site(experts.up)
    if not normalizes(moe):
        inputs += [""] * (ROUTER_WEIGHTS - len(inputs)) + [f"{prefix}.shares"]
        nodes.append(node("Softmax", [experts.scores], [inputs[-1]], f"{prefix}/Softmax", axis=-1))
    while not inputs[-1]:
        inputs.pop()
    sizes = {"expert_weight_bits": bits, "block_size": size, "accuracy_level": accuracy_level}
    made = node("QMoE", inputs, list(moe.output), f"{prefix}/QMoE", CONTRIB, **sizes)
    made.attribute.extend(sorted(moe.attribute, key=lambda item: item.name))
    return [*nodes, made], forms


def float_moe(moe: NodeProto, experts: Experts, records: Mapping[str, TensorRecord]) -> tuple[list[NodeProto], dict[str, Form]]:
    """``moe`` as it is, over stacks that may be of 16 bits."""
    out, nodes = NodeProto(), list[NodeProto]()
    out.CopyFrom(moe)
    for record in (records[name] for name in experts.stacks if records[name].dtype != "F32"):
        wide = f"{site(record.name)}.wide"
        nodes.append(cast(record.name, wide, site(record.name), TensorProto.FLOAT))
        out.input[:] = [wide if value == record.name else value for value in out.input]
    return [*nodes, out], {name: kept(records[name]) for name in experts.stacks}
