"""A sample of rows stands for all: its passes find nearly the c, tables and size that passes over all rows do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from trueaxis import _core
from trueaxis.entropy.model import Tables, pack_tables
from trueaxis.entropy.stream import pack_residual, segment
from trueaxis.passes import Job, Passes, first_tables
from trueaxis.pilot import Pilot, Trial, sample
from trueaxis.progress import silent
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.stages import EFFORTS, Feedback, Rans, WaterSic
from trueaxis.types import Aligned, Array, Metric, Quantized, Weight

FEEDBACK = Feedback(rate_weight=0.0)


@dataclass(frozen=True)
class File:
    file_bytes: int
    tables: Tables


def job(rows: int, columns: int, seed: int, stage: Feedback | WaterSic = FEEDBACK, spread: float = 0.0) -> Job:
    """Gaussian rows, of spread sizes if wanted, in a metric that decays."""
    rng = np.random.default_rng(seed)
    matrix = (rng.normal(size=(rows, columns)) * np.exp(spread * rng.normal(size=(rows, 1)))).astype(np.float32)
    mixed = rng.normal(size=(columns, columns)) * np.exp(-3 * np.arange(columns) / columns)
    metric = Metric(mixed @ mixed.T, np.exp(spread * rng.normal(size=rows)) if spread else None)
    weight = Weight(f"w{seed}", matrix.shape, "F32", "linear", f"s{seed}")
    return Job(weight, metric, Aligned("identity", matrix, metric), Planner(stage).plan(weight, matrix, metric), weight)


def write(matrices: list[tuple[Weight, Quantized]], tables: Tables) -> File:
    return File(sum(len(pack_residual(matrix, tables, 32, 1 << 20)) for _, matrix in matrices), tables)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.pilot.ENOUGH_WEIGHTS", 60_000)


@pytest.fixture
def jobs() -> list[Job]:
    return [job(1536, 96, 1), job(1030, 64, 2, spread=0.4), job(1280, 160, 3)]


def test_small_models_and_refitted_ones_have_no_pilot(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample(jobs) == []
    monkeypatch.setattr("trueaxis.pilot.ENOUGH_WEIGHTS", 10_000)
    assert len(sample(jobs)) == 3
    assert sample([job(300, 96, 1, WaterSic())]) == []


@pytest.mark.usefixtures("small")
def test_samples_are_spread_over_all_rows(jobs: list[Job]) -> None:
    for whole, part in zip(jobs, sample(jobs), strict=True):
        rows = part.plan.weight.shape[0]
        assert part.plan.all_rows == whole.coded.shape[0] and 128 <= rows < whole.coded.shape[0] // 4
        np.testing.assert_array_equal(part.plan.weight[-1], whole.plan.weight[(rows - 1) * 6])


@pytest.mark.parametrize("stride", [2, 5])
def test_a_row_is_rounded_as_if_it_were_alone(stride: int) -> None:
    """By the scalar quantizer, which at a rate of no weight ignores the rows' common scales."""
    plan = replace(job(1030, 64, 4, spread=0.5).plan, trellis=0, centroids=False)
    tables = first_tables([], EFFORTS["scalar"])
    whole, part = (quantize(found, 0.3, tables).quantized for found in (plan, plan.sampled(stride)))
    np.testing.assert_array_equal(part.indices, whole.indices[:, ::stride])
    np.testing.assert_array_equal(part.grid.row_codes, whole.grid.row_codes[::stride])
    np.testing.assert_array_equal(part.grid.column_codes, whole.grid.column_codes)
    assert part.contexts.shift == whole.contexts.shift


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("c", [0.1, 0.7])
def test_size_and_tables_are_close_to_those_of_all_rows(jobs: list[Job], c: float) -> None:
    tables, stage = first_tables(jobs, EFFORTS["default"]), Rans()
    pilot = Pilot(sample(jobs), tables, 2, stage, 0, 1, silent)
    passes = Passes(jobs, tables, 2, stage, write, 1, silent)
    for _ in range(2):
        trial, file = pilot(c), passes(c)
    assert trial.file_bytes == pytest.approx(file.file_bytes + len(pack_tables(file.tables)), rel=0.02)
    taught = Passes(jobs, trial.tables, 0, stage, write, 1, silent)(c)
    assert taught.file_bytes == pytest.approx(file.file_bytes, rel=0.003)
    assert _core.stream_bits(taught.tables.coder, [segment(quantize(jobs[0].plan, c, trial.tables).quantized)]) > 0


def test_a_trial_says_where_the_target_is() -> None:
    trial = Trial(0.5, first_tables([], EFFORTS["scalar"]), 1000)
    assert trial.closer(1000, 1000) > 0.5 > trial.closer(1100, 1000)


def test_the_result_does_not_depend_on_threads(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.pilot.ENOUGH_WEIGHTS", 60_000)

    def tables(threads: int) -> Array:
        pilot = Pilot(sample(jobs), first_tables(jobs, EFFORTS["fast"]), 2, Rans(), 0, threads, silent)
        return pilot(0.4).tables.frequencies

    np.testing.assert_array_equal(tables(1), tables(3))
