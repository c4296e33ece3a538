"""Axes: orthogonal for every size, planted ones are found, and nothing is gained where nothing was planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from trueaxis.align import basis
from trueaxis.align.basis import AXES, best, chance_bits, identity, joint, pca_metric, random_orthogonal
from trueaxis.align.estimate import Term, estimated_bits, saved_bits


def term(rows: np.ndarray, moment: np.ndarray | None = None, level: float = 1.0) -> Term:
    return Term(rows.T @ rows / rows.shape[0], rows.shape[0], moment, level)


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("size", [1, 2, 3, 12, 40])
def test_axes_are_orthogonal_for_every_size(name: str, size: int) -> None:
    rng = np.random.default_rng(size)
    terms = [term(rng.normal(size=(50, size)), np.cov(rng.normal(size=(size, 90))).reshape(size, size)) for _ in "ab"]
    axes = AXES[name]([*terms, term(rng.normal(size=(9, size)))], 0.1, 5, 1)
    np.testing.assert_allclose(axes @ axes.T, np.eye(size), atol=1e-12)


def test_planted_axes_are_found_from_many_matrices() -> None:
    """Matrices with different scales along the same hidden axes: joint comes within 2 % of what they save."""
    rng, size = np.random.default_rng(0), 32
    hidden = ortho_group.rvs(size, random_state=1)
    terms = [term(rng.normal(size=(4000, size)) * 2.0 ** rng.normal(0, 1.5, size) @ hidden) for _ in range(6)]
    bits = {name: estimated_bits(axes, terms, 0.05) for name, axes in (
        ("own", np.eye(size)), ("hidden", hidden), ("found", joint(terms, 0.05, 0)))}  # fmt: skip
    planted = bits["own"] - bits["hidden"]
    assert planted > 0.2
    assert bits["own"] - bits["found"] > 0.98 * planted


def test_a_dead_subspace_is_found_through_the_metric() -> None:
    """White weights that read a low-dimensional input: only the metric tells the axes."""
    rng, size = np.random.default_rng(2), 48
    basis = ortho_group.rvs(size, random_state=3)
    moment = basis[:12].T @ basis[:12] + 1e-6 * np.eye(size)
    terms = [term(rng.normal(size=(5000, size)), moment) for _ in range(2)]
    own, found = (estimated_bits(axes(terms, 0.05, 0), terms, 0.05) for axes in (identity, pca_metric))
    assert found < own - 0.1
    assert estimated_bits(joint(terms, 0.05, 0), terms, 0.05) <= found + 1e-3


def test_white_weights_save_nothing() -> None:
    terms = [term(np.random.default_rng(4).normal(size=(40000, 16)))]
    own, found = (estimated_bits(axes(terms, 0.1, 0), terms, 0.1) for axes in (identity, joint))
    assert own - found < 1e-3
    assert estimated_bits(random_orthogonal(terms, 0.1, 0), terms, 0.1) == pytest.approx(own, abs=1e-3)


def test_axes_that_save_nothing_are_not_taken() -> None:
    name, axes, saved = best([Term(np.eye(4), 10, None, 1.0)], 0.1)
    assert (name, saved) == ("identity", 0.0)
    np.testing.assert_array_equal(axes, np.eye(4))


@pytest.mark.parametrize("octaves, searches, name", [(0.0, 0, "identity"), (1.0, 1, "joint")])
def test_a_wide_space_is_searched_where_principal_axes_save_something(
    octaves: float, searches: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, size, followed = np.random.default_rng(7), basis.WIDE, []
    hidden = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrices = rng.normal(size=(4, 2 * size, size)) * 2.0 ** rng.normal(0, octaves, size) @ hidden
    search = basis._followed
    monkeypatch.setattr(basis, "_followed", lambda *given: followed.append(1) or search(*given))
    assert best([term(rows) for rows in matrices], 0.05)[0] == name
    assert len(followed) == searches


def test_own_axes_cost_what_turning_by_nothing_costs() -> None:
    rng = np.random.default_rng(8)
    terms = [term(rng.normal(size=(50, 12)), np.cov(rng.normal(size=(12, 90)))), term(rng.normal(size=(20, 12)))]
    assert saved_bits(np.eye(12), terms, 0.1) == 0.0


@pytest.mark.parametrize("size", [2, 16, 48])
def test_chance_is_what_principal_axes_save_on_white_weights(size: int) -> None:
    rng = np.random.default_rng(size)
    found = []
    for _ in range(8000 // size):
        covariance = term(rng.normal(size=(20 * size, size))).covariance
        values = np.linalg.eigvalsh(covariance)
        found.append(0.5 * float(np.log2(np.diag(covariance)).mean() - np.log2(values).mean()))
    assert chance_bits([Term(np.eye(size), 20 * size, None, 1.0)]) == pytest.approx(np.mean(found), rel=0.1)


@pytest.mark.parametrize("weights, inputs", [(-80, 0), (80, 0), (-60, -90), (60, 90)])
def test_axes_do_not_depend_on_units(weights: int, inputs: int) -> None:
    """Weights and inputs times powers of two, the water with them: float32 need not hold their squares."""
    rng, size = np.random.default_rng(6), 12
    spread, moment = 2.0 ** rng.normal(0, 1.5, size), np.cov(rng.normal(size=(size, 90)))
    rows, columns = rng.normal(size=(300, size)) * spread, rng.normal(size=(300, size))
    reader, writer = term(rows, moment), term(columns, None, 3.0)
    scale, read = 4.0**weights, 4.0**inputs
    scaled = [
        Term(reader.covariance * scale, reader.count, moment * read, 1.0),
        Term(writer.covariance * scale, writer.count, None, writer.level * read),
    ]
    axes, other = joint([reader, writer], 0.05, 0), joint(scaled, 0.05 * scale * read, 0)
    np.testing.assert_allclose(axes, other, atol=1e-5)
    assert estimated_bits(other, scaled, 0.05 * scale * read) == pytest.approx(
        estimated_bits(axes, [reader, writer], 0.05), abs=1e-6
    )
