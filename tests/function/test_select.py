"""Selection: planted functions are found and pay, noise gets none, files with f decode alike in both readers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from families import CASES, build, save_tokens
from oracle import Oracle
from trueaxis.function import select as selection
from trueaxis.function.member import Fit, Member
from trueaxis.function.products import products
from trueaxis.function.select import CANDIDATES, dependent, saved_bits, select
from trueaxis.function.shared import shared
from trueaxis.function.splines import means, splines
from trueaxis.recipe import Recipe, recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Gains, Gauge, Identity, Selected
from trueaxis.types import Array, TrueaxisError

M, N, LAYERS, STEP, NOISE = 192, 160, 8, 0.25, 0.3


def member(name: str, matrix: Array) -> Member:
    """A matrix under the identity metric."""
    return Member(name, matrix.astype(np.float32), np.ones(M), np.full(N, STEP), np.arange(N), None)


def noise(rng: np.random.Generator) -> Array:
    return NOISE * rng.normal(size=(M, N))


def low_rank(rng: np.random.Generator) -> list[Array]:
    return [rng.normal(size=(M, 3)) @ rng.normal(size=(3, N)) for _ in range(LAYERS)]


def smooth_channels(rng: np.random.Generator) -> list[Array]:
    place = np.linspace(0, 1, M)
    return [np.stack([place, 1 - place], 1) @ rng.normal(size=(2, N)) * 2 for _ in range(LAYERS)]


def offsets(rng: np.random.Generator) -> list[Array]:
    return [np.ones((M, 1)) * rng.normal(size=N) for _ in range(LAYERS)]


def quadratics(rows: Array) -> Array:
    """1, x_a and x_a x_b of coordinates [m, k]."""
    pairs = [rows[:, a] * rows[:, b] for a in range(rows.shape[1]) for b in range(a, rows.shape[1])]
    return np.column_stack([np.ones(len(rows)), rows, *pairs])


def curved_rows(rng: np.random.Generator) -> list[Array]:
    """Every row is a point of a 3-manifold, a quadratic of three coordinates; it spans ten directions."""
    return [quadratics(rng.normal(size=(M, 3))) @ rng.normal(size=(10, N)) for _ in range(LAYERS)]


def ideal_bits(numbers: int, energy: float, moved: int) -> float:
    """Of planted numbers, each of which moves `moved` entries: as good as their error stays below the noise."""
    return numbers * 0.5 * np.log2(1 + moved * energy / (NOISE**2 + STEP**2 / 12))


def planted_bits(members: Sequence[Member], means: Sequence[Array], numbers_bits: float) -> float:
    """What who knows the means saves, their numbers paid for."""
    return sum(one.bits - one.residual_bits(f) for one, f in zip(members, means, strict=True)) - numbers_bits


@pytest.mark.parametrize(
    ("rule", "candidate", "numbers_bits"),
    [
        (low_rank, "product", LAYERS * (ideal_bits(3 * M, 1.0, N) + ideal_bits(3 * N, 1.0, M))),
        (smooth_channels, "splines", LAYERS * ideal_bits(2 * N, 4.0, M // 3)),
        (offsets, "means", LAYERS * ideal_bits(N, 1.0, M)),
        (curved_rows, "product", LAYERS * (ideal_bits(3 * M, 7.0, N) + ideal_bits(10 * N, 1.0, M))),
    ],
)
def test_planted_functions_are_found(
    rule: Callable[[np.random.Generator], list[Array]], candidate: str, numbers_bits: float
) -> None:
    rng = np.random.default_rng(1)
    planted = rule(rng)
    members = [member(f"layers.{i}.up.weight", f + noise(rng)) for i, f in enumerate(planted)]
    chosen = select(members)
    assert {fit.candidate for fit in chosen.values()} == {candidate}
    assert sum(saved_bits(one, chosen[one.name]) for one in members) > 0.9 * planted_bits(
        members, planted, numbers_bits
    )


@pytest.mark.parametrize("drawn", [False, True])
def test_planted_families_over_depth_are_found(drawn: bool) -> None:
    """W̄ + J θ_l, θ smooth in depth or drawn: shared matrices hold at least 90 % of the planted bits."""
    rng = np.random.default_rng(2)
    mean, direction = 2 * rng.normal(size=(M, N)), rng.normal(size=(M, N))
    theta = 1.5 * rng.normal(size=LAYERS) if drawn else 1.5 * np.cos(np.pi * np.arange(LAYERS) / LAYERS)
    planted = [mean + one * direction for one in theta]
    members = [member(f"layers.{i}.up.weight", f + noise(rng)) for i, f in enumerate(planted)]
    chosen = select(members)
    assert {fit.candidate for fit in chosen.values()} == {"shared"}
    numbers_bits = ideal_bits(M * N, 4.0, LAYERS) + ideal_bits(M * N, 1.0, int(theta @ theta))
    assert sum(saved_bits(one, chosen[one.name]) for one in members) > 0.9 * planted_bits(
        members, planted, numbers_bits
    )


def test_noise_gets_nothing() -> None:
    """I.i.d. weights, and weights whose rows and columns merely differ in size."""
    rng = np.random.default_rng(3)
    plain = [member(f"layers.{i}.up.weight", noise(rng)) for i in range(LAYERS)]
    scales = 2.0 ** rng.normal(size=(M, 1)) * 2.0 ** rng.normal(size=N)
    scaled = [member(f"layers.{i}.down.weight", scales * noise(rng)) for i in range(LAYERS)]
    assert select(plain + scaled) == {}
    for candidate in (means, splines, products):
        assert all(saved_bits(one, fit) < 0 for one, fit in zip(plain, candidate(plain), strict=True))


def test_candidates_keep_one_signature() -> None:
    """A fit decodes to the mean it was judged by, and counts its record."""
    rng = np.random.default_rng(4)
    members = [member(f"layers.{i}.up.weight", f + noise(rng)) for i, f in enumerate(low_rank(rng)[:3])]
    for name, candidate in CANDIDATES.items():
        fits = candidate(members)
        assert [fit.candidate for fit in fits] == [name] * 3
        assert all(fit.mean.shape == (M, N) and fit.function_bits > 64 for fit in fits)


def test_files_are_ordinary_models(tmp_path: Path) -> None:
    """Rank-two layers next to noise: f is stored beside r, told, and both readers decode the same bits."""
    model = build(CASES["llama"])
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "proj" in name:
                factors = rng.normal(size=(value.shape[0], 2)), rng.normal(size=(2, value.shape[1]))
                value.copy_(torch.from_numpy(0.2 * factors[0] @ factors[1] + 0.01 * rng.normal(size=value.shape)))
    model.save_pretrained(tmp_path / "original")
    text, lost, sizes = save_tokens(tmp_path), {}, {}
    chosen = Recipe(align=Identity(), function=Selected())
    for name, one in (("identity", recipe("identity")), ("selected", chosen)):
        report = trueaxis.compress(tmp_path / "original", tmp_path / name, bits=5, calibration=[text], recipe=one)
        lost[name] = np.median([row.relative_distortion for row in report.tensors if "proj" in row.name])
        sizes[name] = report
    assert lost["selected"] < 0.5 * lost["identity"]
    functions = {row.name: row for row in sizes["selected"].functions}
    assert functions and not sizes["identity"].functions
    found = trueaxis.inspect(tmp_path / "selected")
    assert sum(found["spent_bytes"].values()) == found["file_bytes"] == sizes["selected"].file_bytes
    for row in found["tensors"]:
        told = functions.get(row["name"])
        assert (row["function_bits"] > 0) == (told is not None)
        assert row["estimated_saved_bits"] == (told.estimated_saved_bits if told else 0.0)
    decoder = Decoder(tmp_path / "selected")
    for tensor, bits in Oracle(tmp_path / "selected").tensors().items():
        assert decoder.tensor(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == bits
        torch.testing.assert_close(decoder.tensor(tensor), decoder.tensor(tensor), rtol=0, atol=0)
    trueaxis.unpack(tmp_path / "selected", tmp_path / "plain")


def everywhere(members: Sequence[Member]) -> dict[str, Fit]:
    """Choices that an estimate might have made of noise."""
    return {one.name: means([one])[0] for one in members}


def test_what_does_not_pay_when_it_is_coded_is_left_out(
    tiny_llama: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "select", everywhere)
    chosen = Recipe(align=Identity(), function=Selected())
    report = trueaxis.compress(tiny_llama, tmp_path / "out", bits=4, calibration=[tokens], recipe=chosen)
    assert not report.functions


def test_what_shares_matrices_stays_or_goes_together() -> None:
    rng = np.random.default_rng(7)
    members = [member(f"layers.{i}.up.weight", noise(rng)) for i in range(3)]
    alone, together = everywhere(members[:2]), dict(zip((one.name for one in members), shared(members), strict=True))
    names = [one.name for one in members]
    assert dependent(members, alone) == [[names[0]], [names[1]]]
    assert dependent(members, together) == [names]


def test_what_a_tied_head_is_multiplied_by_keeps_its_place(
    tied_llama: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a product has no place for a function, whatever would be chosen for it."""
    monkeypatch.setattr(selection, "select", everywhere)
    less = itertools.count(0, -(10**6))
    monkeypatch.setattr(selection, "coded_bits", lambda *_: next(less))
    chosen = Recipe(align=Gauge("random"), function=Selected())
    report = trueaxis.compress(tied_llama, tmp_path / "out", bits=8, calibration=[tokens], recipe=chosen)
    told = {row.name for row in report.functions}
    assert "model.embed_tokens.weight" in told and "lm_head.weight" not in told
    assert Decoder(tmp_path / "out").source("lm_head.weight") == "model.embed_tokens.weight"
    trueaxis.verify(tmp_path / "out")


def test_gains_do_not_go_with_functions() -> None:
    with pytest.raises(TrueaxisError, match="gains would scale f too"):
        Recipe(function=Selected(), tune=Gains())
