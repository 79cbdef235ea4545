"""A plan for a file's size: the allocation that leaves the least predicted loss, in a file that is never larger than asked.

The file is more than its tensors: metadata, padding, graph. How much more depends on the plan only a little, so: allocate
what the rest of the smallest file leaves, plan that file exactly, correct by what its rest takes, and repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from exporter.file_size import at_least
from exporter.onnx_cost import COLUMNS_NODES, SECONDS_PER_BYTE, columns_bytes, gather_bytes
from exporter.targets import GgufTarget, OnnxTarget
from quantize.activations import IN_BLOCKS
from quantize.checkpoint import Checkpoint
from quantize.config import GridSpec, QuantizeConfig
from quantize.errors import ConfigError, asked
from quantize.gguf.container import padded
from quantize.methods import read_word
from quantize.model_config import EMBEDDING, HEAD
from quantize.planning.allocation import Cost, allocate, allocate_in_time, smallest
from quantize.planning.columns import may_keep
from quantize.planning.options import TABLES, quick_enough
from quantize.planning.plan import ModelPlan, as_floats, build_plan, table_method
from quantize.planning.sensitivity import Sensitivity
from quantize.store.record import TensorRecord
from quantize.types import Axis, TensorPlan

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ALIGNMENT = 32  # of tensors in a GGUF; an ONNX file's is what the correction is for
NODE_BYTES = 300  # of a node with its names and initializers' entries, roughly

SENSITIVITY_FILE = "sensitivity.json"  # in the store's assets

FileSize = Callable[[ModelPlan], int]


def check_free(config: QuantizeConfig) -> None:
    """Raises ConfigError for options that say already what the linears become."""
    free = GridSpec()
    said = [f"grid.{item.name}" for item in fields(GridSpec) if getattr(config.grid, item.name) != getattr(free, item.name)]
    said += ["recipe"] if config.recipe is not None else []
    said += ["float_columns"] if config.around.float_columns else []
    method = read_word(config.method).method
    if method.plans or method.grids or method.divides is not None:
        raise ConfigError(
            f"{asked('method', config.method)}: chooses the grid of every linear, as a target size does; drop one of the two"
        )
    if method.turn_blocks:
        raise ConfigError(
            f"{asked('method', config.method)}: turns inputs, which a target size does not weigh; drop one of the two"
        )
    if said:
        raise ConfigError(f"{asked(said[0])}: a target size chooses the grid of every tensor; drop one of the two")


@dataclass(frozen=True)
class Allocator:
    """Chooses the options of ``sensitivity``; ``file_size`` is the exact size of the file that a plan ends in.

    ``config.embedding`` and ``config.head``, where given, are not chosen. Raises ConfigError for a method without options.
    """

    source: Checkpoint
    config: QuantizeConfig
    target: GgufTarget | OnnxTarget
    sensitivity: Sensitivity
    file_size: FileSize

    def __post_init__(self) -> None:
        if not any(
            record.grid is not None for name, records in self._options().items() for record in records if name not in TABLES
        ):
            where = f"{self.source.path}: no linear fits a grid of target {self.target.name} on the axis of"
            raise ConfigError(f"{where} {asked('method', self.config.method)}; choose another of the two")

    def plan(self, goal: int) -> ModelPlan:
        """The plan of least predicted loss whose file takes at most ``goal`` bytes. Raises ConfigError if there is none."""
        options = list(self._options().values())
        costs = [[Cost(self._bytes(record), record.loss[record.axis]) for record in records] for records in options]

        def attempt(allowed: int) -> _Attempt:
            choice = self._choice(options, costs, max(allowed, smallest(costs)))
            picked = [costs[tensor][i] for tensor, i in enumerate(choice)]
            plan = self._model_plan([options[tensor][i] for tensor, i in enumerate(choice)])
            return _Attempt(plan, self.file_size(plan), sum(cost.bytes for cost in picked), sum(cost.loss for cost in picked))

        least = attempt(0)
        if least.size > goal:
            raise ConfigError(
                f"{self.source.path}: no {self.target.name} file of {goal:,} bytes; the smallest takes {least.size:,}: "
                f"ask for at least {at_least(least.size)}"
            )
        allowed = goal - least.rest
        found = attempt(allowed)
        if found.rest != least.rest:
            allowed = goal - found.rest
            found = attempt(allowed)
        while found.size > goal:
            allowed -= found.size - goal
            found = attempt(allowed)
        budget = {
            "target_bytes": goal,
            "bytes": found.size,
            "predicted_kl": found.loss,
            "measured_on": self.sensitivity.calibration,
        }
        return replace(found.plan, budget=budget, assets={SENSITIVITY_FILE: self.sensitivity.to_json()})

    def _options(self) -> dict[str, list[TensorRecord]]:
        """What each tensor may become, floats of the source among them."""
        given = {EMBEDDING: self.config.embedding, HEAD: self.config.head}
        axes, columns, out = read_word(self.config.method).axes, may_keep(self.config), {}
        for name, spec in self.source.specs.items():
            if len(spec.shape) == 2 and given.get(name) is None:
                known = self.sensitivity.options.get(name, [])  # none where no grid fits
                held = [
                    record
                    for record in known
                    if (name in TABLES or record.axis in axes)
                    and (columns or not record.float_columns)
                    and quick_enough(record, self.target, self.config.max_slowdown)
                ]
                out[name] = [*held, TensorRecord(name, spec.shape, dtype=as_floats(spec).dtype, loss={Axis.PER_OC: 0.0})]
        return out

    def _choice(self, options: list[list[TensorRecord]], costs: list[list[Cost]], budget: int) -> list[int]:
        """Where a scale of the input is quicker than what the runtime does, seconds count too."""
        if not self.target.activations:
            return allocate(costs, budget)
        seconds = [[self._seconds(record) for record in records] for records in options]
        return allocate_in_time(costs, seconds, budget, self.config.max_slowdown)

    def _seconds(self, record: TensorRecord) -> float:
        """Estimated, of a linear and one row decoded and one of a prompt; embedding and head are left out."""
        if record.name in TABLES:
            return 0.0
        if record.grid is None:
            return SECONDS_PER_BYTE * FLOAT_BYTES["F32"] * record.shape[0] * record.shape[1]
        word = IN_BLOCKS if record.activation is None else record.activation.name
        decoded = self.target.decode_cost(record.grid, record.axis, record.shape)
        return decoded + self.target.rounding_cost(word, record.shape)

    def _bytes(self, record: TensorRecord) -> int:
        """In the file, padding and graph included as far as they are the tensor's own."""
        shape = (record.shape[0], record.shape[1])
        if record.grid is None:
            return padded(shape[0] * shape[1] * FLOAT_BYTES[record.dtype], ALIGNMENT)
        stored = self.target.stored_bytes(record.grid, record.axis, shape)
        if isinstance(self.target, OnnxTarget):
            stored += NODE_BYTES * self.target.nodes(record.grid, record.axis, shape)
            if record.float_columns:
                stored += columns_bytes(record.float_columns, shape) + NODE_BYTES * COLUMNS_NODES
            if record.name == EMBEDDING:
                stored += gather_bytes(record.grid, shape, tied=HEAD not in self.source.specs)
        return padded(stored, ALIGNMENT)

    def _model_plan(self, chosen: list[TensorRecord]) -> ModelPlan:
        """The chosen ones, what ``config`` says of embedding and head, and everything else as floats."""
        specs, method = self.source.specs, read_word(self.config.method).method.name
        plans = {name: TensorPlan(name, spec.shape) for name, spec in specs.items()}
        if self.config.embedding is not None or self.config.head is not None:
            tables = build_plan({name: specs[name] for name in TABLES if name in specs}, self.config, self.target)
            plans |= {plan.name: plan for plan in tables}
        for record in chosen:
            grids = {} if record.grid is None else {record.axis: record.grid}
            own = table_method(record.grid, self.config) if record.name in TABLES and record.grid is not None else method
            words = () if record.activation is None else (record.activation.name,)
            plan = TensorPlan(record.name, record.shape, grids, own, record.dtype, float_columns=record.float_columns)
            plans[record.name] = replace(plan, turn=record.turn, activations=words)
        return ModelPlan(self.config, self.target, list(plans.values()))


@dataclass(frozen=True)
class _Attempt:
    """A plan, its file's size, and what the allocation knew: bytes of the tensors it chose for, predicted loss."""

    plan: ModelPlan
    size: int
    chosen: int
    loss: float

    @property
    def rest(self) -> int:
        return self.size - self.chosen
