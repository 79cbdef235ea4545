"""What a report says: the front, the layers, the close-up of one layer, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from exporter.cli.main import main
from exporter.targets import TARGETS
from quantize import open_checkpoint, quantize_checkpoint
from quantize.blocks import dequantize
from quantize.errors import AdaDimError
from quantize.rounding.rtn import rtn
from quantize.types import Axis
from runtime_checks.report.charts import NARROW, WIDE
from runtime_checks.report.data import Paths
from runtime_checks.report.maps import layer_charts
from runtime_checks.report.outliers import find_outliers
from runtime_checks.report.pareto import Point, _spec, pareto_chart, pareto_front
from runtime_checks.report.slices import _edges, _runs, outlier_charts
from runtime_checks.report.tree import tree_chart
from runtime_checks.report.write import Closeup, write_report
from tests.cases import config_of
from tests.runtime_checks.reports import check, comparison, row, written
from tests.stores import rtn_store, stored_weight
from tests.tiny import make_tiny_model

POINTS = [
    Point("a", 80, 0.2),
    Point("b", 90, 0.1),
    Point("c", 91, 0.15),
    Point("d", 90, 0.1, True),
    Point("e", 120, 0.1),
    Point("f", 130, 0.01),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("report") / "model")


def test_the_front_has_what_nothing_beats():
    assert [point.name for point in pareto_front(POINTS)] == ["a", "b", "f"]
    chart = pareto_chart(POINTS)
    assert [(line[0], line[3]) for line in chart.table.rows] == [
        *(("a", "yes"), ("b", "yes"), ("d (reference)", "no"), ("c", "no"), ("e", "no"), ("f", "yes")),
    ]
    assert chart.pictures[0].svg.count("on the front") == 3 and chart.pictures == pareto_chart(POINTS).pictures
    assert "the 3 of 6 files that no other beats" in chart.summary


def test_the_chosen_file_has_a_ring_a_label_and_a_word_for_ears():
    chart = pareto_chart([replace(point, badge="ship <this>") if point.name == "b" else point for point in POINTS])
    for picture in chart.pictures:
        assert picture.svg.count(">ship: b<") == 1
        (said,) = re.findall(r'aria-label="b: [^"]*"', picture.svg)
        assert said == 'aria-label="b: 0.0 MB, KL divergence 0.1000 nats a token, on the front, ship &lt;this&gt;"'
        assert picture.svg.count('stroke="var(--good)" stroke-width="3"') == 1
    assert [line[0] for line in chart.table.rows][1] == "b (ship <this>)"
    assert "ship" not in str(pareto_chart(POINTS))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_names_lie_beside_their_points_and_apart(width):
    crowd = [Point(f"model {index}", 90_000_000 + 100_000 * index, 0.1 - 0.001 * index) for index in range(4)]
    values = _spec(crowd, pareto_front(crowd), width)["data"][0]["values"]
    labels = [(value["align"], value["dx"], value["dy"]) for value in values]
    assert len(set(labels)) > 1 and all(value["far"] or max(abs(value["dx"]), abs(value["dy"])) < 20 for value in values)
    assert all(value["limit"] < width for value in values)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("spread", [40.0, 8.0, 3.0])  # MB
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_up_to_twelve_names_can_be_read(width, spread, count):
    points = [
        Point(f"{index + 70}MB/model.gguf", int(90e6 + spread * 1e6 * index / count), 0.2 * 0.8 ** (index * spread / 20))
        for index in range(count)
    ]
    points[count // 2] = replace(points[count // 2], badge="ship this")
    values = _spec(points, pareto_front(points), width)["data"][0]["values"]
    boxes = [value["box"] for value in values]
    assert sum(overlap(one, other) for one, other in combinations(boxes, 2)) < 200  # px² in all; one name takes 1,500
    assert all(box[0] > -12 and box[2] <= width - 64 for box in boxes)


@pytest.mark.parametrize("kld", [[0.1], [0.0, 0.0], [0.0, 0.5], [1e-6, 9.0]])
def test_any_points_can_be_drawn(kld):
    chart = pareto_chart([Point(str(index), 5_000_000, value) for index, value in enumerate(kld)])
    assert all(picture.svg.count(" MB, KL divergence ") == len(kld) and "NaN" not in picture.svg for picture in chart.pictures)


def linear(name: str, axis: str, losses: tuple[float, ...], bits: int = 4) -> dict:
    loss = dict(zip(("per_oc", "per_ic"), losses, strict=False))
    item = {"name": f"model.layers.{name}.weight", "axis": axis, "grid": "int", "bits": bits, "group_size": 64, "shape": [64, 64]}
    return item | {"bytes": 2300, "loss": loss}


def test_layers_tell_which_axis_loses_less_and_what_is_lost():
    tensors = [linear("0.self_attn.q_proj", "per_oc", (1e-3, 4e-3)), linear("0.mlp.down_proj", "per_ic", (6e-2, 2e-2))]
    tensors += [linear("1.self_attn.q_proj", "per_oc", (1e-3, 0.98e-3)), linear("1.mlp.down_proj", "per_oc", (2e-3,), bits=8)]
    axes, losses = layer_charts({"tensors": tensors}, "store")
    assert axes.summary.startswith(
        "1 of 4 linears are stored per input channel. Of the 3 for which both axes were tried, 2 lose less"
    )
    assert "layer 0, down: 3.00 times" in axes.summary and "layer 0, down: 83.3 % of the sum of 0.024" in losses.summary
    wide = axes.pictures[0].svg
    colours = [
        wide.rpartition(f'aria-label="{place}')[2].split('fill="')[1].split('"')[0]
        for place in ("layer 0, q", "layer 0, down", "layer 1, q", "layer 1, down")
    ]
    assert colours == ["var(--div-0)", "var(--div-6)", "var(--div-3)", "var(--card)"]
    assert [line[1:] for line in losses.table.rows][1] == ["per IC", "int", "4", "64", "0.06", "0.02"]
    (bits,) = layer_charts({"tensors": [item | {"loss": {}} for item in tensors]}, "file")
    assert bits.summary.startswith("The bits of the codes of each of 4 linears: 3 at 4 bits, 1 at 8 bits.")


def test_a_type_of_another_tool_has_the_bits_that_its_bytes_come_to():
    item = {
        "name": "blk.0.attn_q.weight",
        "axis": None,
        "grid": "iq3_s",
        "bits": None,
        "group_size": None,
        "shape": [64, 256],
        "bytes": 7040,
    }
    (chart,) = layer_charts({"tensors": [item]}, "file")
    assert "1 at 3.44 bits" in chart.summary and "var(--seq-1)" in chart.pictures[0].svg
    tree = tree_chart({"tensors": [item, {**item, "name": "token_embd.weight", "bytes": 21120}]}, "file")
    assert "The largest is token_embd.weight with 75 % of it" in tree.summary and tree.pictures[0].svg.count("3.44 bits") == 1


@pytest.mark.parametrize(("target", "layer"), [("onnxruntime", None), ("llama.cpp", "model.layers.1.self_attn.q_proj")])
def test_the_closeup_is_of_the_largest_outlier(tmp_path, model, target, layer):
    store = rtn_store(model, tmp_path / "store", target)
    source = open_checkpoint(model)
    found = find_outliers(store, source, None, layer)
    weights = {name: np.abs(source.read(name)).max(0) for name in source.specs if name.endswith("_proj.weight")}
    loudest = f"{layer}.weight" if layer else max(weights, key=lambda name: weights[name].max() / np.median(weights[name]))
    assert (
        found.name == loudest and found.channel == weights[loudest].argmax() and found.inputs is None and found.output_mse is None
    )
    rows, cols = (slice(start, start + size) for start, size in zip(found.corner, found.before.shape, strict=True))
    assert cols.start <= found.channel < cols.stop
    np.testing.assert_array_equal(found.before, np.abs(source.read(loudest)[rows, cols]))
    np.testing.assert_array_equal(found.after, np.abs(stored_weight(store, loudest)[rows, cols]))
    for axis in Axis:
        error = source.read(loudest) - dequantize(rtn(loudest, source.read(loudest), found.grid, axis))
        np.testing.assert_array_equal(found.errors[axis], np.abs(error[rows, cols]))
        assert found.mse[axis] == pytest.approx(np.square(error).mean())


def test_the_closeup_knows_what_comes_in(tmp_path, model):
    text = tmp_path / "text.txt"
    text.write_text("The sea is wide and the sky is high. " * 400, encoding="utf-8")
    found = find_outliers(rtn_store(model, tmp_path / "store"), open_checkpoint(model), str(text), "model.layers.1.mlp.up_proj")
    assert found.name == "model.layers.1.mlp.up_proj.weight" and found.inputs is not None and found.inputs.shape == (64,)
    assert found.channel == found.inputs.argmax() and found.prominence == pytest.approx(
        found.inputs.max() / np.median(found.inputs)
    )
    titles = [chart.title for chart in outlier_charts(found)]
    assert len(titles) == 4 and titles[0] == "layers.1.mlp.up_proj: root mean square of each input channel"


def test_a_folded_layer_has_no_after(tmp_path, model):
    text = tmp_path / "text.txt"
    text.write_text("The sea is wide and the sky is high. " * 400, encoding="utf-8")
    config = config_of(
        method="search-oc", bits=3, transforms=("norm-gains",), calibration=str(text), calibration_tokens=512, token_weight="unit"
    )
    store = quantize_checkpoint(open_checkpoint(model), tmp_path / "store", config, TARGETS["onnxruntime"])
    assert "1" in store.header["transforms"]["norm-gains"]
    layer = store.header["transforms"]["norm-gains"].index("1")
    found = find_outliers(store, open_checkpoint(model), None, f"model.layers.{layer}.self_attn.q_proj")
    assert found.after is None and "another basis" in outlier_charts(found)[1].summary


def test_a_slice_is_drawn_as_runs_between_group_edges():
    panel = np.array([[0.0, 0.1, 0.9], [0.5, 0.5, 0.5]], np.float32)
    runs = [(run["x"], run["y"], run["width"], run["fill"]) for run in _runs(panel, np.array([0.2, 0.4, 0.6], np.float32))]
    assert runs == [(0, 0, 8, "var(--seq-0)"), (8, 0, 4, "var(--seq-3)"), (0, 5, 12, "var(--seq-2)")]
    assert list(_edges(32, 96, 32)) == [64, 96] and list(_edges(10, 60, 32)) == [32, 64] and not list(_edges(0, 16, 32))


def test_what_is_refused_leaves_nothing(tmp_path, model, capsys):
    store, out = rtn_store(model, tmp_path / "store").path, tmp_path / "report.html"
    other = make_tiny_model(tmp_path / "other", seed=1)
    compared = written(tmp_path / "c.json", comparison(row("a", 5, 0.1)))
    for paths, closeup, words in (
        (Paths(comparisons=[compared]), Closeup(model), "takes a store"),
        (Paths([store]), Closeup(other), "is not what .* was quantized from"),
        (
            Paths([store]),
            Closeup(model, layer="model.layers.9.mlp.up_proj"),
            "layer='model.layers.9.mlp.up_proj': is no quantized linear",
        ),
        (Paths([store]), Closeup(tmp_path / "none"), "none"),
        (Paths([store]), Closeup(model, text=str(tmp_path / "none.txt")), "none.txt: cannot be read"),
    ):
        with pytest.raises(AdaDimError, match=words):
            write_report(paths, closeup, out)
        assert not out.exists()
    for words in (["--layer", "x", str(store)], ["--eval", "x"], ["--calibration", "builtin", str(store)]):
        try:
            code = main(["report", *words, "--out", str(out)])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and not out.exists()
    out.write_text("mine")
    assert main(["report", "--compare", str(compared), "--out", str(out)]) == 2 and out.read_text() == "mine"


def test_sections_are_there_for_what_is_given(tmp_path):
    checks = written(tmp_path / "v.json", {"ok": False, "checks": [check(f"check {index}", False) for index in range(60)]})
    out = tmp_path / "report.html"
    assert write_report(Paths(verifications=[("a.gguf", checks)]), None, out) == ["What is known", "What failed", "Words"]
    text = out.read_text(encoding="utf-8")
    assert "60 of 60 checks missed" in text and "the first 50 of 60" in text and "check 49" in text and "check 50" not in text
    assert "Not known from what was given: quality (`adadim eval`) of a.gguf" in text
