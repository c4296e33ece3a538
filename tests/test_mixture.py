"""Mixtures: experts aim at what the original's put out for the original's tokens, whatever either router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import trueaxis
from families import CASES, VOCABULARY, build, save_tokens
from trueaxis import turns as turns_module
from trueaxis.journal import Journal
from trueaxis.metric.listening import expert_hidden
from trueaxis.metric.walking import shares_of
from trueaxis.mixture import Half, Mixture, foretold
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import Recipe
from trueaxis.stages import Feedback, InTurn
from trueaxis.turns import Turns

TURNS = Recipe(drift=InTurn(tokens=4096), quantize=Feedback(effort="scalar"))
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")  # whose blocks are known
WIDTH, CHANNELS, EXPERTS = 6, 5, 3


def _experts(rng: np.random.Generator) -> torch.nn.Module:
    module: Any = torch.nn.Module()
    module.gate_up_proj = torch.nn.Parameter(torch.from_numpy(rng.standard_normal((EXPERTS, 2 * CHANNELS, WIDTH))))
    module.act_fn = torch.nn.functional.silu
    return module


def _heard(rng: np.random.Generator, spread: float, near: Sequence[Any] | None = None) -> list[dict[str, torch.Tensor]]:
    """Two batches of states, shares of experts (the last one gets nothing), and a norm's input."""
    found = []
    for number in range(2):
        shares = rng.random((200, EXPERTS)) * (rng.random((200, EXPERTS)) < 0.6)
        shares[:, -1] = 0
        made = {"experts": rng.standard_normal((200, WIDTH)), "norm": rng.standard_normal((200, WIDTH))}
        tensors = {name: torch.from_numpy(spread * value) for name, value in made.items()}
        if near is not None:
            tensors = {name: near[number][name] + value for name, value in tensors.items()}
        found.append({**tensors, shares_of("experts"): torch.from_numpy(shares)})
    return found


def _mixture(rng: np.random.Generator, damping: float = 1e-12) -> Mixture:
    heard = _heard(rng, 1.0)
    models = [torch.nn.Module() for _ in range(2)]
    for model in models:
        model.experts = _experts(rng)
    return Mixture(models[0], models[1], "experts", heard, _heard(rng, 0.1, heard), damping, "norm", 0.5)


def _joined(mixture: Mixture, side: int, name: str) -> torch.Tensor:
    return torch.cat([one[name] for one in mixture._heard[side]])


@pytest.mark.parametrize("expert", range(EXPERTS - 1))
def test_sums_are_those_of_the_tokens_of_the_original(expert: int) -> None:
    """Weighed as there; and what the stream lost at these tokens."""
    mixture = _mixture(np.random.default_rng(9))
    share = _joined(mixture, 0, shares_of("experts"))[:, expert, None]
    reads = [_joined(mixture, side, "experts") for side in (0, 1)]
    hidden = [expert_hidden(model, expert, read) for model, read in zip(mixture._models, reads, strict=True)]
    left = 0.5 * share * (_joined(mixture, 0, "norm") - _joined(mixture, 1, "norm"))
    for (x, own), halves, stream in (
        (reads, mixture._halves(expert, lambda model, states: states), None),
        (hidden, mixture._halves(expert, lambda model, states: expert_hidden(model, expert, states), "norm"), left),
    ):
        lost = share * (x - own) if stream is None else torch.cat([share * (x - own), stream], dim=1)
        assert torch.allclose(halves[0].cross + halves[1].cross, lost.T @ (share * own))
        assert torch.allclose(halves[0].own + halves[1].own, (share * own).T @ (share * own))
        assert all(bool(half.own.any()) for half in halves)


def _halves_of(truth: np.ndarray, noise: float, tokens: int, seed: int = 1) -> list[Half]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(2):
        x = rng.standard_normal((tokens, truth.shape[1]))
        lost = x @ truth.T + noise * rng.standard_normal((tokens, len(truth)))
        found.append(Half(torch.from_numpy(lost.T @ x), torch.from_numpy(x.T @ x)))
    return found


def test_what_halves_agree_on_is_believed() -> None:
    truth = 0.1 * np.random.default_rng(0).standard_normal((30, 20))
    assert np.allclose(foretold(_halves_of(truth, 0.0, 50), 1e-12), truth)
    assert np.abs(foretold(_halves_of(0 * truth, 1.0, 30), 1e-12)).max() < 0.1
    halves = _halves_of(truth, 1.0, 100)  # noise in the estimate is as large as what is true
    cross, own = ((one + other).numpy() for one, other in zip(*halves, strict=True))
    plain, found = np.linalg.solve(own, cross.T).T, foretold(halves, 1e-12)
    assert np.linalg.norm(found - truth) < min(0.9 * np.linalg.norm(truth), 0.9 * np.linalg.norm(plain - truth))


def test_an_expert_without_tokens_moves_as_its_layer_does() -> None:
    mixture = _mixture(np.random.default_rng(9), damping=0.01)
    assert mixture.pooled.any()
    assert np.array_equal(mixture.states(EXPERTS - 1).inputs, mixture.pooled.numpy())
    shift = mixture.hidden(EXPERTS - 1)
    assert shift.stream is not None
    assert not shift.inputs.any() and not shift.stream.any()


def _prepared(case: str, folder: Path, target_bits: float, fused: bool = False) -> tuple[Prepared, int]:
    """At a rate; from a checkpoint with a tensor per matrix, or with those of all experts of a layer in one."""
    model = build(CASES[case])
    model.save_pretrained(folder / case)
    if fused:
        (file,) = (folder / case).glob("*.safetensors")
        save_file({name: one.contiguous() for name, one in model.state_dict().items()}, file, {"format": "pt"})
    checkpoint = Checkpoint.open(folder / case)
    target = checkpoint.bytes_at(target_bits)
    tokens = save_tokens(folder)
    prepared = prepare(checkpoint, TURNS, target, [tokens], None, seed=0, threads=1, device="cpu", progress=silent)
    return prepared, target


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", MIXTURES)
def test_every_expert_has_its_turn(case: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: dict[str, bool] = {}
    change = turns_module._change

    def noted(job: Any, shift: Any) -> Any:
        found = change(job, shift)
        assert np.isfinite(found).all()
        moved[job.weight.name] = bool(found.any())
        return found

    monkeypatch.setattr(turns_module, "_change", noted)
    prepared, target = _prepared(case, tmp_path, 8.0, fused)
    prepared.fit(target)
    experts = [job.weight for job in prepared.jobs if job.weight.pool is not None]
    assert experts and {weight.slice is not None for weight in experts} == {fused}
    assert all(moved[weight.name] for weight in experts if weight.writes != "residual")
    assert any(moved[weight.name] for weight in experts if weight.writes == "residual")  # halves may disagree of some


def test_the_model_comes_closer_on_other_text(tmp_path: Path) -> None:
    """Than with experts that aim at themselves."""
    prepared, target = _prepared("mixtral", tmp_path, 4.0)
    jobs = [
        job if job.weight.pool is None else replace(job, weight=replace(job.weight, pool=None, space=None))
        for job in prepared.jobs
    ]
    unseen, found = np.random.default_rng(4).integers(0, VOCABULARY, (64, 32)), []
    for name, one in (("corrected", prepared), ("plain", replace(prepared, jobs=jobs))):
        files = one.fit(target)
        prepared.save(files, tmp_path / name, overwrite=False, begun=0.0)
        found.append(trueaxis.evaluate(tmp_path / name, tokens=unseen, reference=tmp_path / "mixtral").kl_nats)
    assert found[0] < found[1]


def test_same_matrices_for_any_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Turns] = []
    call = Turns.__call__

    def noted(turns: Turns, aim: float) -> Any:
        made.append(turns)
        return call(turns, aim)

    monkeypatch.setattr(Turns, "__call__", noted)
    prepared, target = _prepared("mixtral", tmp_path, 6.0)
    found = []
    for threads in (1, 3):
        replace(prepared, threads=threads).fit(target)
        found.append(made[-1]._found)
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(one.indices, found[1][name].indices) for name, one in found[0].items())


def test_killed_among_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal knows of a layer's experts is not made again, and the rest comes out the same."""
    build(CASES["mixtral"]).save_pretrained(tmp_path / "model")
    tokens, keep, kept = save_tokens(tmp_path), Journal.keep, []

    def compress(out: str) -> None:
        trueaxis.compress(tmp_path / "model", tmp_path / out, bits=6, calibration=[tokens], recipe=TURNS, resume=True)

    def noted(journal: Journal, key: str, *rest: Any) -> None:
        keep(journal, key, *rest)
        if key.startswith("turn") and ".experts.2." in key:
            kept.append(key)
            if len(kept) in (1, 4):
                raise KeyboardInterrupt

    compress("expected")
    monkeypatch.setattr(Journal, "keep", noted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compress("out")
    compress("out")
    assert len(set(kept)) == len(kept)
    expected, found = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.name != "trueaxis.json"}
        for name in ("expected", "out")
    )
    assert expected == found
