"""WaterSIC as a baseline: the core against an oracle, gains and rescalers against what they promise, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from trueaxis.entropy.model import first_tables
from trueaxis.metric.metric import damped_cholesky, distance
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.grid import steps
from trueaxis.quantize.outcome import Outcome
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.quantize.rescale import gain_code, rescaled
from trueaxis.recipe import Recipe, recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Feedback, Quantizer, RansPooled, WaterSic, WaterSicCore
from trueaxis.types import Array, Metric, TrueaxisError, Weight

ROWS, COLUMNS = 48, 80


@pytest.fixture(scope="module")
def layer() -> tuple[Array, Metric]:
    """A matrix and a metric with correlations and unequal energies."""
    generator = np.random.default_rng(5)
    mixing = generator.standard_normal((COLUMNS, COLUMNS)) * np.exp(0.5 * generator.standard_normal(COLUMNS))
    weight = generator.standard_normal((ROWS, COLUMNS)) * np.exp(0.3 * generator.standard_normal(ROWS))[:, None]
    return weight.astype(np.float32), Metric(mixing @ mixing.T / COLUMNS)


def plan_of(stage: Quantizer, layer: tuple[Array, Metric]) -> Plan:
    weight, metric = layer
    return Planner(stage).plan(Weight("layer", weight.shape, "F32", "linear", "space"), weight, metric)


def rebuilt(outcome: Outcome) -> Array:
    """Ŵ from integers and step codes alone."""
    grid = outcome.quantized.grid
    step = steps(grid.column_codes, grid.resolution) * steps(grid.row_codes, grid.resolution)
    return 2 * outcome.quantized.indices.T * step


def test_core_is_successive_cancellation_in_the_checkpoints_order(layer: tuple[Array, Metric]) -> None:
    weight, metric = layer
    assert metric.second_moment is not None
    outcome = quantize(plan_of(WaterSicCore(), layer), 0.5, first_tables())
    factor, _ = damped_cholesky(metric.second_moment, WaterSicCore().damping)
    grid = outcome.quantized.grid
    spacing = 2 * steps(grid.column_codes, grid.resolution).astype(np.float64)
    flat = spacing * np.diag(factor)
    assert flat.max() / flat.min() < 2 ** (1.01 / grid.resolution)  # c / C_jj, to the nearest code of the file
    remaining = weight.astype(np.float64) @ factor
    indices = np.zeros((ROWS, COLUMNS), int)
    for j in reversed(range(COLUMNS)):
        indices[:, j] = np.rint(remaining[:, j] / (spacing[j] * factor[j, j]))
        remaining -= np.outer(spacing[j] * indices[:, j], factor[j])
    assert np.mean(indices != outcome.quantized.indices.T) < 0.002  # float32 ties may fall the other way
    damped = Metric(factor @ factor.T)
    assert distance(outcome.errors, damped) == pytest.approx(np.square(remaining).sum(), rel=0.01)


def test_gains_reduce_distortion(layer: tuple[Array, Metric]) -> None:
    _, metric = layer
    plain = replace(plan_of(WaterSic(), layer), rounding="plain", refit="none")
    for c in (1.0, 2.0, 4.0):
        without, gained = (quantize(plan, c, first_tables()) for plan in (plain, replace(plain, rounding="gains")))
        assert distance(gained.errors, metric) < distance(without.errors, metric)


def test_a_gain_is_the_least_squares_one_to_the_nearest_code() -> None:
    target, column = np.array([1.0, 2.0, -3.0]), np.array([2.0, 2.0, -2.0])
    assert gain_code(target, column) == 0
    assert gain_code(0.5 * target, column) == gain_code(column, 2 * column) == -32
    assert gain_code(target, np.zeros(3)) == 0


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0, 4.0, 1e6])
def test_rescalers_never_raise_distortion(layer: tuple[Array, Metric], c: float) -> None:
    _, metric = layer
    plan = plan_of(WaterSic(), layer)
    before = quantize(replace(plan, refit="none"), c, first_tables())
    after = quantize(plan, c, first_tables())
    assert np.array_equal(before.quantized.indices, after.quantized.indices)
    assert distance(after.errors, metric) <= distance(before.errors, metric)
    if 1 <= c <= 4:
        assert distance(after.errors, metric) < 0.999 * distance(before.errors, metric)


def test_rescalers_find_planted_scales(layer: tuple[Array, Metric]) -> None:
    _, metric = layer
    plan = plan_of(WaterSic(), layer)
    outcome = quantize(replace(plan, refit="none"), 0.5, first_tables())
    generator = np.random.default_rng(6)
    rows, columns = generator.integers(-8, 9, (ROWS, 1)), generator.integers(-8, 9, COLUMNS)
    weight = (rebuilt(outcome) * 2.0 ** ((rows + columns) / 32)).astype(np.float32)
    planted = replace(plan, weight=weight)
    found = rescaled(planted, replace(outcome, visited_errors=(rebuilt(outcome) - weight).T[outcome.order]))
    assert distance(found.errors, metric) < 0.01 * distance(rebuilt(outcome) - weight, metric)


@pytest.mark.parametrize("stage", [WaterSic(), WaterSicCore()])
def test_errors_are_those_of_the_decoded_steps(layer: tuple[Array, Metric], stage: Quantizer) -> None:
    weight, _ = layer
    outcome = quantize(plan_of(stage, layer).scaled(1.3), 2.0, first_tables())
    np.testing.assert_allclose(outcome.errors, rebuilt(outcome) - weight, atol=1e-5)


@pytest.mark.parametrize("name", ["watersic", "watersic-classed", "watersic-at-once", "watersic-core"])
def test_files_round_trip(name: str, tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    statistics = tmp_path / "statistics.safetensors"
    report = trueaxis.compress(
        tiny_llama, tmp_path / "out", bits=5, calibration=[tokens], statistics=statistics, recipe=name
    )
    assert 4.9 < report.bits_per_param <= 5
    for row in report.tensors:
        assert row.relative_distortion < 0.05, row.name  # measured on the decoded file
    codes = {
        tensor: np.unique(found.contexts.column_codes).size
        for tensor in Decoder(tmp_path / "out").names()
        if "proj" in tensor
        for found in Decoder(tmp_path / "out").residuals(tensor)
    }
    assert all((number == 1) == (recipe(name).entropy == RansPooled()) for number in codes.values())
    assert torch.isfinite(trueaxis.load(tmp_path / "out")(torch.arange(16)[None]).logits).all()


def test_unknown_recipes_are_answered_with_the_known_ones() -> None:
    with pytest.raises(TrueaxisError, match=r"gptq.*identity.*rtn.*watersic, watersic-at-once, watersic-classed"):
        recipe("watersick")


def test_pooled_tables_are_refused_where_rounding_needs_classes() -> None:
    with pytest.raises(TrueaxisError, match="rans-pooled"):
        Recipe(quantize=Feedback(), entropy=RansPooled())
    for name in ("watersic", "watersic-core-classed"):
        assert Recipe.from_json(recipe(name).to_json()) == recipe(name)
