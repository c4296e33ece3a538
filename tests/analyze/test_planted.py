"""Every claim is found to hold where it is planted, and not to hold on i.i.d. weights, where it is false."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import planted
import trueaxis
from trueaxis.analyze import alignment, damage, hessian, outliers, rank, tangent
from trueaxis.analyze import subject as subjects
from trueaxis.analyze.claim import Finding, judge
from trueaxis.analyze.subject import Subject
from trueaxis.evaluation import load_causal
from trueaxis.model.checkpoint import Checkpoint

CLAIMS = {
    claim.name: claim for module in (rank, tangent, damage, hessian, alignment, outliers) for claim in module.CLAIMS
}
TRUE = {
    planted.turned: ("tangent-holds-energy", "depth-shares-tangent", "alignment-saves-bits", "alignment-concentrates",
                     "axes-follow-tangent", "dead-zones-appear", "coded-uniform-suffices"),
    planted.narrow: ("low-effective-rank", "low-rank-suffices"),
    planted.curved: ("low-intrinsic-dimension",),
    planted.sparse: ("half-can-be-pruned",),
    planted.uneven: ("scales-predict",),
    planted.spiked: ("rotation-stabilizes", "outliers-vanish"),
    planted.peaked: ("alignment-suits-uniform",),
    planted.heavy_where_energetic: ("curvature-makes-outliers",),
    planted.large_where_silent: ("tangent-noise-is-cheap", "axes-follow-low-curvature"),
    planted.large_where_loud: ("error-avoids-tangent",),
}  # fmt: skip
UNEVEN_STREAM = (planted.heavy_where_energetic, planted.large_where_silent, planted.large_where_loud)


def subject_of(path: Path, ids: np.ndarray) -> Subject:
    return Subject(Checkpoint.open(path), load_causal(path), ids)


def found(subject: Subject, name: str) -> Finding:
    return judge(CLAIMS[name], CLAIMS[name].measure(subject))


@pytest.fixture(scope="module")
def unplanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    folder = tmp_path_factory.mktemp("iid")
    np.save(folder / "text.npy", planted.random_text())
    analysis = trueaxis.analyze(planted.plant(folder / "model", planted.iid), text=[folder / "text.npy"])
    assert analysis.aligned == "identity"
    return {finding.name: finding for finding in analysis.claims}


def test_every_claim_is_planted_once() -> None:
    names = [name for group in TRUE.values() for name in group]
    assert sorted([*names, "minimum"]) == sorted(CLAIMS)


@pytest.mark.parametrize("draw", TRUE, ids=lambda draw: draw.__name__)
def test_planted_claims_hold(draw: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "SPACES", 1)
    stream = planted.uneven_stream if draw in UNEVEN_STREAM else planted.even_stream
    subject = subject_of(planted.plant(tmp_path / "model", draw, stream), planted.random_text())
    findings = [found(subject, name) for name in TRUE[draw]]
    assert {finding.name: finding.verdict for finding in findings} == dict.fromkeys(TRUE[draw], "holds"), findings


def test_a_model_that_knows_its_text_is_at_a_minimum(tmp_path: Path) -> None:
    assert found(subject_of(*planted.plant_minimum(tmp_path / "model")), "minimum").verdict == "holds"


@pytest.mark.parametrize(
    "name", [name for name in CLAIMS if name not in ("low-intrinsic-dimension", "coded-uniform-suffices")]
)
def test_iid_weights_do_not_bear_a_claim_out(name: str, unplanted: dict[str, Finding]) -> None:
    assert unplanted[name].verdict == "does not hold", unplanted[name]


def test_dimensions_of_both_estimators_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "SPACES", 1)
    finding = found(
        subject_of(planted.plant(tmp_path / "model", planted.curved), planted.random_text()), "low-intrinsic-dimension"
    )
    clouds = [row for row in finding.details["clouds"].values() if "refused" not in row]
    assert clouds and finding.value is not None
    for row in (finding.details, *clouds):
        assert row["twonn"] != row["mle"]
        for one in (row["twonn"], row["mle"]):
            for key in ("dimension", "ratio"):
                low, high = one[f"{key}_interval"]
                assert low < one[key] < high
            assert one["ratio"] <= finding.value or row is not finding.details


def test_dimension_is_refused_where_points_are_few(unplanted: dict[str, Finding]) -> None:
    finding = unplanted["low-intrinsic-dimension"]
    assert finding.verdict == "undecided" and finding.value is None
    assert "10 rows or channels per dimension" in str(finding.reason)


def test_iid_rows_are_not_near_a_manifold(tmp_path: Path) -> None:
    path = planted.plant(tmp_path / "model", planted.iid, width=16, hidden=400)
    assert found(subject_of(path, planted.random_text()), "low-intrinsic-dimension").verdict == "does not hold"


def test_three_values_want_other_levels_than_a_uniform_quantizer_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "SPACES", 1)
    subject = subject_of(planted.plant(tmp_path / "model", planted.three_valued), planted.random_text())
    assert found(subject, "coded-uniform-suffices").verdict == "does not hold"
