"""All that one store takes: tensor by tensor, decoder layer by decoder layer where data is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from quantize.blocks import dequantize
from quantize.checkpoint import Checkpoint
from quantize.checkpoint.floats import from_f32
from quantize.checkpoint.row_order import RowOrders
from quantize.config import QuantizeConfig
from quantize.kinds import readable
from quantize.model_config import EMBEDDING, HEAD, layer_index
from quantize.planning.plan import ModelPlan, plan_notes
from quantize.progress import track
from quantize.statistics.calibration import Coverage, calibration_data
from quantize.statistics.imatrix import Imatrix, read_imatrix
from quantize.steps.layer_rounding import Linear, Rounded, round_layer, round_layer_by_scope
from quantize.steps.learn_codes import BlockRounder
from quantize.steps.learn_floats import tune_pieces, tuning_tokens, whole_pieces
from quantize.store.tensors import Piece, TensorRecord
from quantize.transforms import correct, transform
from quantize.transforms.layer import DecoderLayer
from quantize.types import F32, Axis, Curvature, InputStats, PlainTensor, Target, TensorPlan

if TYPE_CHECKING:
    from quantize.source import LayerRun

LAYERS = 1  # their place in model order
TABLES = 3  # parts beside the layers, at most: embedding, final norm, head
SCOPE_SEQUENCES = 4  # 2,048 tokens judge a scope loss; the paper uses all, at 14 more passes through the layer


def make_job(source: Checkpoint, plan: ModelPlan) -> Job:
    """Raises CalibrationError for an importance matrix that is not this model's, ConfigError for a plan that needs more."""
    job = Job(source, plan.config, plan.target, plan.layers, {**source.assets(), **plan.assets}, plan.budget)
    if plan.config.imatrix is not None:
        job.imatrix = read_imatrix(plan.config.imatrix)
        job.known = job.imatrix.for_model(source.specs, plan.layers)
    return job


@dataclass
class Job:
    """One model on its way into one store."""

    source: Checkpoint
    config: QuantizeConfig
    target: Target
    plans: list[TensorPlan]
    assets: Mapping[str, bytes]
    budget: Mapping[str, Any] | None
    imatrix: Imatrix | None = None
    known: Mapping[str, InputStats] = field(default_factory=dict)  # what the importance matrix says, by weight name
    coverage: Coverage | None = None
    walk: Iterator[LayerRun] | None = None  # one that is shared
    taken_back: list[str] = field(default_factory=list)  # per-IC choices that --max-slowdown undid
    tuning: Mapping[str, Any] | None = None
    transformed: set[tuple[str, int]] = field(default_factory=set)  # a transform and a layer in which it was applied

    @property
    def orders(self) -> RowOrders:
        """Between the source's rows and the target's."""
        return RowOrders(self.source.config, self.target.row_order)

    @cached_property
    def blocks(self) -> BlockRounder:
        """Those of every decoder layer so far."""
        return BlockRounder(self.orders, self.config)

    @property
    def runs_source(self) -> bool:
        """Whether statistics are needed that no importance matrix gives."""
        asked = bool(self.config.transforms) or self.config.block_steps > 0
        return self.imatrix is None and (asked or any(_needs_data(plan) for plan in self.plans))

    def parts(self) -> Iterator[Iterable[Piece]]:
        """Every tensor, or chunk of its rows, in model order: of the embedding, of each decoder layer, and the rest.

        If they are tuned, all at once: every tensor whole, its floats tuned on more of the text that it was calibrated on.
        """
        if not self.config.tune_steps:
            yield from self._parts()
            return
        from quantize.source import ModelStudent

        tokens = tuning_tokens(self.config, self.assets, str(self.source.path))  # a bad text is refused before any work
        pieces = whole_pieces(chain.from_iterable(track(self._parts(), "rounding", self.source.config.num_layers + TABLES)))
        pieces, self.tuning = tune_pieces(pieces, ModelStudent(self.source, tokens), self.orders, self.config)
        yield pieces

    def _parts(self) -> Iterator[Iterable[Piece]]:
        walk = self.walk or (self.start_walk() if self.runs_source else None)
        for (place, _), group in groupby(sorted(self.plans, key=place_of), place_of):
            plans = list(group)
            if place == LAYERS:
                yield self._layer(plans, None if walk is None else next(walk))
            else:
                yield chain.from_iterable(map(self._table, plans))

    def header(self) -> dict[str, Any]:
        """What plan.json says of the whole."""
        budget = {} if self.budget is None else {"budget": self.budget}
        return budget | {
            "version": version("adadim-edge"),
            "target": self.target.name,
            "row_order": str(self.target.row_order),
            "source": {"name": readable(self.source.path.name), "sha256": self.source.sha256},
            "config": self.config.to_json(),
            "calibration": None if self.coverage is None else self.coverage.to_json(),
            "imatrix": None if self.imatrix is None else self.imatrix.to_json(),
            "blocks": self.blocks.report(),
            "tuning": self.tuning,
            "transforms": {name: self._layer_digits(name) for name in self.config.transforms},
            "notes": plan_notes(self.plans, self.config, self.target) + self._slowdown_note() + self._window_note(),
        }

    def _layer_digits(self, name: str) -> str:
        """A digit for each layer, 1 where the transform was applied: as long before quantizing as after it."""
        return "".join(str(int((name, index) in self.transformed)) for index in range(self.source.config.num_layers))

    def _window_note(self) -> list[str]:
        model = self.source.config
        if model.context == model.max_position:
            return []
        return [f"context cut from {model.max_position} to the sliding window of {model.context}: no runtime here slides one"]

    def _slowdown_note(self) -> list[str]:
        bound, count = self.config.max_slowdown, len(self.taken_back)
        return [f"--max-slowdown {bound:g} keeps {count} tensors per_oc whose per_ic loss is lower"] if count else []

    def start_walk(self) -> Iterator[LayerRun]:
        """The source in torch, imported only here: RTN without calibration never needs it."""
        from quantize.source import measure_curvature, walk_layers

        tokens, self.coverage = calibration_data(self.config, self.assets, str(self.source.path))
        scoped = self.config.selection == "scope" and any(len(plan.candidates) > 1 for plan in self.plans)
        token_weight: str | Curvature = self.config.token_weight
        if token_weight == "gradient":
            token_weight = curvature = measure_curvature(self.source, tokens, self.config.seed)
            self.known = curvature.tables
        return walk_layers(self.source, tokens, token_weight, SCOPE_SEQUENCES if scoped else 0, self.config.block_steps > 0)

    def _table(self, plan: TensorPlan) -> Iterator[Piece]:
        """Embedding, head, final norm: in chunks of rows no larger than a decoder layer."""
        name = plan.name if plan.name in self.source.specs else EMBEDDING  # a head split off a tied embedding
        if len(plan.shape) == 1:
            yield self._plain(plan, self._rows(plan.name))
            return
        config = self.source.config
        step = max(1, 4 * config.hidden_size * (config.hidden_size + config.intermediate_size) // plan.shape[1])
        for start in range(0, plan.shape[0], step):
            rows = self.source.read_rows(name, start, min(start + step, plan.shape[0]))
            stats = self.known.get(plan.name, self.known.get(name))
            if stats is not None and stats.row_weight is not None:
                stats = replace(stats, row_weight=stats.row_weight[start : start + step])
            if plan.candidates:
                tensor, record = Linear(plan, rows, stats).rounded(Axis.PER_OC)
                yield tensor, replace(record, loss={})  # of a chunk
            else:
                yield self._plain(plan, rows)

    def _layer(self, plans: list[TensorPlan], run: LayerRun | None) -> Iterator[Piece]:
        """One decoder layer: choose its basis, then the axes of all its linears, round them, and tune what remains."""
        stats = self.known if run is None else run.stats
        if self.coverage is not None:
            self.coverage.add(stats)
        quantized = [plan for plan in plans if plan.candidates]
        layer = DecoderLayer(
            self.source.config,
            {_inner(plan.name): plan for plan in quantized},
            {_inner(plan.name): self._rows(plan.name) for plan in plans},
            {_inner(plan.name): self._in_target_rows(plan.name, stats[plan.name]) for plan in quantized if plan.name in stats},
        )
        applied = transform(layer, self.config.transforms)
        rounded = self._rounded(quantized, layer, run)
        if self.config.transforms:
            applied += correct(
                layer, {_inner(name): dequantize(tensor) for name, (tensor, _) in rounded.items()}, self.config.transforms
            )
        self.transformed |= {(name, layer_index(plans[0].name) or 0) for name in applied}
        weights = {plan.name: layer.tensors[_inner(plan.name)] for plan in plans}
        pieces = [rounded[plan.name] if plan.candidates else self._plain(plan, weights[plan.name]) for plan in plans]
        yield from pieces if run is None or run.student is None else self.blocks.learn(pieces, weights, run.student)

    def _rounded(self, plans: list[TensorPlan], layer: DecoderLayer, run: LayerRun | None) -> dict[str, Rounded]:
        """AdaDim: each on its better axis, within the slowdown."""
        linears = [Linear(plan, layer.tensors[_inner(plan.name)], layer.stats.get(_inner(plan.name))) for plan in plans]
        cost = {
            plan.name: {
                axis: self.target.decode_cost(grid, axis, (plan.shape[0], plan.shape[1]))
                for axis, grid in plan.candidates.items()
            }
            for plan in plans
        }
        if run is None or self.config.selection == "hessian":
            rounded = round_layer(linears, cost, self.config.max_slowdown)
        else:

            def in_source(name: str, values: F32) -> F32:
                return self.orders.to_source(name, layer.in_source_basis(_inner(name), values))

            rounded = round_layer_by_scope(linears, cost, self.config.max_slowdown, run, in_source)
        for name, (_, record) in rounded.items():
            if record.loss and min(record.loss.values()) < record.loss[str(record.axis)]:
                self.taken_back.append(name)
        return rounded

    def _plain(self, plan: TensorPlan, values: F32) -> Piece:
        record = TensorRecord(plan.name, plan.shape, dtype=plan.dtype, note=plan.note)
        return PlainTensor(plan.name, from_f32(values, plan.dtype), plan.dtype), record

    def _rows(self, name: str) -> F32:
        """The whole tensor in the target's row order."""
        return self.orders.to_target(name, self.source.read(name))

    def _in_target_rows(self, name: str, stats: InputStats) -> InputStats:
        if stats.row_weight is None:
            return stats
        return replace(stats, row_weight=self.orders.to_target(name, stats.row_weight))


def place_of(plan: TensorPlan) -> tuple[int, int]:
    """Where a tensor comes in model order: embedding, decoder layers, final norm, head."""
    index = layer_index(plan.name)
    if index is not None:
        return LAYERS, index
    return (0, 0) if plan.name == EMBEDDING else (2, int(plan.name == HEAD))


def _inner(name: str) -> str:
    """Without ``model.layers.N.``."""
    return name.split(".", 3)[3]


def _needs_data(plan: TensorPlan) -> bool:
    return bool(plan.candidates) and (plan.rounder != "rtn" or len(plan.candidates) > 1)
