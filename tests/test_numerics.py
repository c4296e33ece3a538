"""Numbers at the ends of what floats hold: what is compressed is finite and close, or refused by name, never NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis.metric.metric import blind_spots, damped_cholesky, metric_for
from trueaxis.metric.statistics import Chunk, Statistics, load_statistics
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Feedback
from trueaxis.types import Array, CalibrationError, CheckpointError, Metric, Weight

ROWS, COLUMNS = 48, 32


def values(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def constant_columns() -> torch.Tensor:
    found = values(3)
    found[:, ::3] = 2.5
    found[:, 1::3] = 0
    return found


def mixed_ranges() -> torch.Tensor:
    return values(4) * torch.logspace(-30, 30, COLUMNS)


MATRICES: dict[str, Callable[[], torch.Tensor]] = {
    "ordinary": lambda: values(0),
    "tiny": lambda: 1e-30 * values(1),
    "huge": lambda: 1e30 * values(2),
    "subnormal": lambda: 1e-40 * values(5),
    "constant columns": constant_columns,
    "zeros": lambda: torch.zeros(ROWS, COLUMNS),
    "one number": lambda: torch.zeros(ROWS, COLUMNS).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(7.0)),
}


def save_matrices(folder: Path, matrices: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of no known model: every metric is the identity."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "none"}))
    save_file({f"{name}.weight": value for name, value in matrices.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", MATRICES)
def test_a_file_of_one_kind_of_matrix(name: str, tmp_path: Path) -> None:
    """Subnormals may become zeros: their error is below the smallest normal float."""
    matrix = MATRICES[name]()
    model = save_matrices(tmp_path / "model", {"a": matrix, "b": values(9)})
    report = trueaxis.compress(model, tmp_path / "out", bits=10, calibration=[save_tokens(tmp_path / "t.npy", 37)])
    assert all(np.isfinite(row.relative_distortion) for row in report.tensors)
    found = Decoder(tmp_path / "out").tensor("a.weight")
    assert torch.isfinite(found).all()
    scale = float(matrix.double().abs().max())
    assert float((found.double() - matrix.double()).abs().max()) <= max(0.05 * scale, 1.2e-38)


def test_ranges_mixed_in_one_matrix(tmp_path: Path) -> None:
    model = save_matrices(tmp_path / "model", {"a": mixed_ranges(), "b": values(9)})
    trueaxis.compress(model, tmp_path / "out", bits=10, calibration=[save_tokens(tmp_path / "t.npy", 37)])
    assert torch.isfinite(Decoder(tmp_path / "out").tensor("a.weight")).all()


def moments() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, COLUMNS))
    dead = inputs * (np.arange(COLUMNS) % 3 > 0)
    spread = inputs * np.logspace(-15, 15, COLUMNS)
    return {
        "zero": np.zeros((COLUMNS, COLUMNS)),
        "rank one": np.outer(inputs[0], inputs[0]),
        "fewer tokens than inputs": inputs[:5].T @ inputs[:5],
        "constant inputs": np.ones((COLUMNS, COLUMNS)),
        "dead inputs": dead.T @ dead,
        "1e-30": 1e-30 * np.eye(COLUMNS),
        "1e30": 1e30 * inputs.T @ inputs,
        "1e-30 to 1e30": spread.T @ spread,
        "subnormal": 1e-310 * np.eye(COLUMNS),
    }


@pytest.mark.parametrize("name", moments())
def test_singular_and_extreme_metrics(name: str) -> None:
    """The factor, the plan and what is quantized by it are finite; a zero metric costs nothing and harms nothing."""
    moment, matrix = moments()[name], values(0).numpy()
    factor, damping = damped_cholesky(moment)
    assert np.isfinite(factor).all() and damping > 0 and (np.diag(factor) > 0).all()
    plan = Planner(Feedback()).plan(Weight("w", matrix.shape, "F32", "linear", "s"), matrix, Metric(moment))
    assert np.isfinite(plan.column_steps).all() and (plan.column_steps > 0).all()
    step = float(np.exp(np.mean(np.log(plan.column_steps))))
    outcome = quantize(plan, 0.05 / step, settled_tables(5, plan.rate_weight))
    assert np.isfinite(outcome.quantized.indices).all()


def statistics_of(sums: Array, tokens: int) -> Statistics:
    spaces = {"e.0.in": np.zeros_like(sums), "e.1.in": sums, "e.in": sums}
    return Statistics(
        spaces, {space: np.zeros(len(sums)) for space in spaces}, {"e.0.in": 0, "e.1.in": tokens, "e.in": tokens},
        np.ones(4, np.int64), "f", (Chunk("t", 0, 0, 10),), np.empty(0, np.uint64),
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [0, 1, 100])
def test_experts_that_saw_little(tokens: int) -> None:
    """An expert of no tokens takes the layer's mean; where the whole layer saw none, zeros, not NaN. Both are told."""
    sums = tokens * np.eye(COLUMNS)
    found = statistics_of(sums, tokens)
    experts = [Weight(f"e.{i}", (ROWS, COLUMNS), "F32", "linear", f"e.{i}.in", pool="e.in") for i in (0, 1)]
    for expert in experts:
        moment = metric_for(expert, found).second_moment
        assert moment is not None and np.isfinite(moment).all()
        assert np.allclose(moment, np.diag(np.diag(moment)))
    few = [expert.name for expert in experts if found.tokens[f"{expert.name}.in"] < COLUMNS]
    assert [note.partition(".in")[0] for note in blind_spots(experts, found)] == few


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    sums = np.eye(COLUMNS)
    sums[1, 1] = value
    statistics_of(sums, 10).save(tmp_path / "statistics.safetensors")
    with pytest.raises(CalibrationError, match=r"statistics.safetensors: sum/e.1.in holds NaN or Inf; calibrate again"):
        load_statistics(tmp_path / "statistics.safetensors")
    good = statistics_of(np.eye(COLUMNS), 10)
    replace(good, sensitivities={"e.0": value}).save(tmp_path / "statistics.safetensors")
    with pytest.raises(CalibrationError, match=r"sensitivity of e.0 is (nan|inf)"):
        load_statistics(tmp_path / "statistics.safetensors")


def save_scaled(folder: Path, factors: dict[str, float]) -> Path:
    """A Llama whose tensors with such parts in their names are multiplied."""
    model = save_small_llama(folder, "float32")
    tensors = load_file(model / "model.safetensors")
    for part, factor in factors.items():
        tensors |= {name: factor * value for name, value in tensors.items() if part in name}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_a_model_of_tiny_weights(tmp_path: Path) -> None:
    """Errors of what is read matter as they would without the factor; what its own squares vanish of takes no bits."""
    model, tokens = save_scaled(tmp_path / "model", {"": 1e-9}), save_tokens(tmp_path / "tokens.npy", 37)
    report = trueaxis.compress(model, tmp_path / "out", bits=9, calibration=[tokens])
    lost = {row.name: row.relative_distortion for row in report.tensors}
    assert 0 < lost["model.layers.0.mlp.up_proj.weight"] < 0.01
    assert all(torch.isfinite(found).all() for found in Decoder(tmp_path / "out").tensors().values())


EXTREMES = {
    "activations that overflow": ({"up_proj": 1e30}, r"activations of .* are not finite in float32"),
    "huge weights": ({"": 1e9}, r"self_attn.out: activations of .* are not finite in float32"),
    "gradients that overflow": ({"v_proj": 1e-20, "o_proj": 1e20}, r"v_proj.weight: gradients of .* are not finite"),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_models_beyond_floats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """Before anything else warns of it: warnings are errors here."""
    factors, message = EXTREMES[name]
    model, tokens = save_scaled(tmp_path / "model", factors), save_tokens(tmp_path / "tokens.npy", 37)
    with pytest.raises(CheckpointError, match=message):
        trueaxis.compress(model, tmp_path / "out", bits=9, calibration=[tokens])
    assert not (tmp_path / "out").exists()
