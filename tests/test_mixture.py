"""Mixtures: experts aim at what the original's put out for the original's tokens, whatever either router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trueaxis
from families import CASES, VOCABULARY, build, save_tokens
from trueaxis import turns as turns_module
from trueaxis.journal import Journal
from trueaxis.metric.listening import expert_hidden
from trueaxis.metric.walking import shares_of
from trueaxis.mixture import Mixture
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import Recipe
from trueaxis.stages import Feedback, InTurn
from trueaxis.turns import Turns

TURNS = Recipe(drift=InTurn(tokens=4096), quantize=Feedback(effort="scalar"))
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
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
def test_targets_are_the_least_squares_ones(expert: int) -> None:
    """Of what the expert of the original puts out, on what the compressed one reads at the tokens of the original."""
    rng = np.random.default_rng(9)
    mixture, weight = _mixture(rng), rng.standard_normal((4, WIDTH))
    share = _joined(mixture, 0, shares_of("experts"))[:, expert, None].numpy()
    x, other = (_joined(mixture, side, "experts") for side in (0, 1))
    expected = np.linalg.lstsq(share * other.numpy(), share * x.numpy() @ weight.T, rcond=None)[0].T
    shift = mixture.states(expert)
    assert np.allclose(weight + weight @ shift.inputs, expected, atol=1e-6) and shift.stream is None

    down = rng.standard_normal((WIDTH, CHANNELS))
    h, own = (
        expert_hidden(model, expert, read).detach().numpy()
        for model, read in zip(mixture._models, (x, other), strict=True)
    )
    lost = (_joined(mixture, 0, "norm") - _joined(mixture, 1, "norm")).numpy()
    expected = np.linalg.lstsq(share * own, share * (h @ down.T + 0.5 * lost), rcond=None)[0].T
    shift = mixture.hidden(expert)
    assert np.allclose(down + down @ shift.inputs + shift.stream, expected, atol=1e-6)


def test_an_expert_without_tokens_aims_at_itself() -> None:
    mixture = _mixture(np.random.default_rng(9), damping=0.01)
    for shift in (mixture.states(EXPERTS - 1), mixture.hidden(EXPERTS - 1)):
        assert not shift.inputs.any() and (shift.stream is None or not shift.stream.any())


def _prepared(case: str, folder: Path, target_bits: float, threads: int = 1) -> tuple[Prepared, int]:
    build(CASES[case]).save_pretrained(folder / case)
    checkpoint = Checkpoint.open(folder / case)
    target = checkpoint.bytes_at(target_bits)
    tokens = save_tokens(folder)
    prepared = prepare(
        checkpoint, TURNS, target, [tokens], None, seed=0, threads=threads, device="cpu", progress=silent
    )
    return prepared, target


@pytest.mark.parametrize("case", MIXTURES)
def test_every_expert_has_its_turn(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the checkpoint has a tensor per matrix or fused ones, and the running model transposed ones."""
    moved: dict[str, bool] = {}
    change = turns_module._change

    def noted(job: Any, shift: Any) -> Any:
        found = change(job, shift)
        moved[job.weight.name] = bool(np.isfinite(found).all() and found.any())
        return found

    monkeypatch.setattr(turns_module, "_change", noted)
    prepared, target = _prepared(case, tmp_path, 8.0)
    prepared.fit(target)
    experts = {job.weight.name for job in prepared.jobs if job.weight.pool is not None}
    assert experts and all(moved[name] for name in experts)


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
        one.save(files, tmp_path / name, overwrite=False, begun=0.0)
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
