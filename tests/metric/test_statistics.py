"""Save and load bit for bit, merge exactly, refuse what is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trueaxis.metric.statistics import Chunk, Statistics, load_statistics, merge
from trueaxis.types import CalibrationError


def _statistics(seed: int, sensitivities: dict[str, float]) -> Statistics:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-9, 9, (10, 3)).astype(np.float64)
    return Statistics(
        {"s": rows.T @ rows},
        {"s": rows.sum(0)},
        {"s": 10},
        rng.integers(0, 9, 5),
        "fingerprint",
        (Chunk("text", 10 * seed, 10 * seed + 9, 1),),
        np.sort(rng.integers(0, 2**60, 7, dtype=np.uint64)),
        sensitivities,
        {"w": rows.T @ rows},
        10,
        predictions=rng.random(5),
    )


def test_save_and_load(tmp_path: Path) -> None:
    saved = _statistics(1, {"w": 0.1})
    saved.save(tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors")
    for name in ("sums", "totals"):
        assert np.array_equal(getattr(loaded, name)["s"], getattr(saved, name)["s"])
    assert np.array_equal(loaded.gradients["w"], saved.gradients["w"])
    assert loaded.gradient_tokens == saved.gradient_tokens
    assert np.array_equal(loaded.shingles, saved.shingles)
    assert loaded.shingles.dtype == np.uint64
    assert np.array_equal(loaded.token_counts, saved.token_counts)
    assert np.array_equal(loaded.predictions, saved.predictions)
    for name in ("tokens", "fingerprint", "chunks", "text_hashes", "sensitivities"):
        assert getattr(loaded, name) == getattr(saved, name)


def test_merge_adds() -> None:
    one, other = _statistics(1, {"a": 1.0, "b": 5.0}), _statistics(2, {"a": 3.0})
    merged = merge(one, other)
    assert np.array_equal(merged.sums["s"], one.sums["s"] + other.sums["s"])
    assert np.allclose(merged.second_moment("s"), (one.sums["s"] + other.sums["s"]) / 20)
    moment = merged.output_moment("w")
    assert moment is not None
    assert np.allclose(moment, (one.gradients["w"] + other.gradients["w"]) / 20)
    assert np.allclose(merged.mean("s"), (one.totals["s"] + other.totals["s"]) / 20)
    assert np.array_equal(merged.shingles, np.union1d(one.shingles, other.shingles))
    assert np.array_equal(merged.predictions, one.predictions + other.predictions)
    assert np.array_equal(merge(one, replace(other, predictions=np.zeros(0))).predictions, one.predictions)
    for half in (merge(one, replace(other, gradients={}, gradient_tokens=0)),
                 merge(replace(other, gradients={}, gradient_tokens=0), one)):  # fmt: skip
        moment = half.output_moment("w")
        assert moment is not None
        assert np.allclose(moment, one.gradients["w"] / 10), "known of one text alone"
    assert 1 < merged.sensitivities["a"] < 3
    assert merged.sensitivities["b"] == 5


def test_merge_refuses() -> None:
    one, other = _statistics(1, {}), _statistics(2, {})
    with pytest.raises(CalibrationError, match=r"different checkpoints: fingerprint and other"):
        merge(one, replace(other, fingerprint="other"))
    with pytest.raises(CalibrationError, match=r"different input spaces"):
        merge(one, replace(other, sums={"t": other.sums["s"]}))
    with pytest.raises(CalibrationError, match=r"sequences 19 to 19 of text are in both"):
        merge(one, replace(other, chunks=(Chunk("text", 19, 25, 1),)))
    assert merge(one, replace(other, chunks=(Chunk("other text", 19, 25, 1),))).text_hashes == ("other text", "text")


def test_unknown_space() -> None:
    for method in (_statistics(1, {}).second_moment, _statistics(1, {}).mean):
        with pytest.raises(CalibrationError, match=r"^t: the statistics hold no such input space"):
            method("t")


def test_files_that_are_no_statistics(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    with pytest.raises(CalibrationError, match=r"is missing or no readable statistics file"):
        load_statistics(file)
    save_file({"x": np.zeros(1)}, file)
    with pytest.raises(CalibrationError, match=r"expected statistics of version 3, found None"):
        load_statistics(file)
    save_file({"x": np.zeros(1)}, file, metadata={"trueaxis-statistics": '{"version": 4}'})
    with pytest.raises(CalibrationError, match=r"expected statistics of version 3, found 4; calibrate again"):
        load_statistics(file)
    save_file({"x": np.zeros(1)}, file, metadata={"trueaxis-statistics": '{"version": 3}'})
    with pytest.raises(CalibrationError, match=r"the statistics are incomplete"):
        load_statistics(file)
    _statistics(1, {}).save(file)
    assert load_file(file)["sum/s"].shape == (3, 3)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CalibrationError, match=r"is missing or no readable statistics file"):
        load_statistics(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"predictions": np.ones((5, 1))},
            r"predictions: expected numbers \[m\], none of them negative, found float64",
        ),
        ({"predictions": np.array([1, 1, 1, 1, -1.0])}, r"predictions: .* from -1\.0"),
        ({"predictions": np.zeros(5)}, r"Σ p is zero"),
        ({"token_counts": np.full(5, -1)}, r"token_counts: .* found int64 \[5\], from -1"),
        ({"token_counts": np.ones((5, 1), np.int64)}, r"token_counts: .* found int64 \[5, 1\]"),
        ({"gradients": {"w": -np.eye(3)}}, r"gradient/w: .* from -1\.0"),
        ({"gradients": {"w": np.ones((3, 2))}}, r"gradient/w: .* found float64 \[3, 2\]"),
        ({"gradient_tokens": -4}, r"gradients over -4 tokens"),
        ({"shingles": np.ones(4)}, r"shingles: expected uint64 \[n\], found float64 \[4\]"),
    ],
)
def test_sums_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    replace(_statistics(1, {}), **changes).save(tmp_path / "s.safetensors")
    with pytest.raises(CalibrationError, match=message):
        load_statistics(tmp_path / "s.safetensors")
