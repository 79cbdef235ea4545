"""Whether what a store's plan.json says of its tensors is of one model."""

from __future__ import annotations

from collections import Counter

from quantize.architecture.families import expected_shapes
from quantize.errors import shown
from quantize.model_config import ModelSizes, is_linear, weight_name
from quantize.store.record import TensorRecord
from quantize.store.schema import PlanJson


def disagreement(plan: PlanJson, records: list[TensorRecord], config: ModelSizes) -> str | None:
    """What does not agree in a store, or None; names that are not the model's are left to the writers."""
    twice = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if twice:
        return f"{twice[0]} is there twice"
    if config.num_layers > len(records):  # before anything is made for each of them
        return f"it has {len(records)} tensors, config.json says {config.num_layers} layers"
    expected = expected_shapes(config)
    for record in records:
        if record.whole_shape != expected.get(record.name, record.whole_shape):
            return f"{record.name} has shape {record.whole_shape}, config.json says {expected.get(record.name)}"
    for name, digits in plan.transforms.items():
        if len(digits) != config.num_layers:
            return f"transforms: {shown(name)} has {len(digits)} digits, config.json says {config.num_layers} layers"
    return _strange_part(records)


def _strange_part(records: list[TensorRecord]) -> str | None:
    """What is said of a part that no weight has, or of one of several that do not read all channels together."""
    shapes, read = {record.name: record.whole_shape for record in records}, Counter[str]()
    for record in records:
        whole = weight_name(record.name)
        held = record.inputs and is_linear(whole, record.shape) and shapes.get(whole) == record.whole_shape
        if not held and (record.inputs or whole != record.name):
            return f"{record.name} is a part of {record.inputs} input channels beside {whole} of shape {shapes.get(whole)}"
        if record.inputs:
            read[whole] += record.shape[1]
    for record in records:
        if record.inputs and weight_name(record.name) == record.name and read[record.name] != record.inputs:
            return f"{record.name} reads {read[record.name]} of {record.inputs} input channels, with its parts"
    return None
