"""Every family, tiny and random: compress, verify, load, unpack, load; experts that see nothing; unknown models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trueaxis
from families import CASES, VOCABULARY, build, output_of, save_tokens
from trueaxis.header import TensorInfo
from trueaxis.inspection import inspect
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.metric import metric_for
from trueaxis.metric.running import forward
from trueaxis.metric.statistics import Statistics, load_statistics
from trueaxis.model.architecture import locate, submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.families import FAMILIES, family_of
from trueaxis.model.graph import route, trace
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.matrices import matrices as parse
from trueaxis.runtime.matrices import matrix_records
from trueaxis.types import CheckpointError, FormatError, Weight


def _compress(original: Path, directory: Path, bits: float = 8) -> tuple[trueaxis.CompressionReport, Statistics]:
    report = trueaxis.compress(
        original, directory / "out", bits=bits, calibration=[save_tokens(directory)],
        statistics=directory / "statistics.safetensors",
    )  # fmt: skip
    return report, load_statistics(directory / "statistics.safetensors")


def test_every_family_has_a_case() -> None:
    assert FAMILIES.keys() <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_compress_load_unpack(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = build(case)
    model.save_pretrained(tmp_path / "original")
    report, statistics = _compress(tmp_path / "original", tmp_path)
    trueaxis.verify(tmp_path / "out")
    loaded = trueaxis.load(tmp_path / "out")
    assert type(loaded) is type(model)
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    found, expected = output_of(loaded), output_of(model)
    assert torch.equal(found, output_of(type(model).from_pretrained(tmp_path / "plain")))
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    assert 0 < error < 0.05

    weights = trace(Checkpoint.open(tmp_path / "original"))
    storage = {row["name"]: row["storage"] for row in inspect(tmp_path / "out")["tensors"]}
    assert all(storage[tensor] == "exact" for tensor in case.exact)
    assert {tensor for tensor, kind in storage.items() if kind == "quantized"} == {
        weight.tensor for weight in weights if weight.role != "exact"
    }
    assert sum(math.prod(row.shape) for row in report.tensors) == report.parameters
    matrices = [weight for weight in weights if weight.role not in ("exact", "embedding")]
    blind = {weight.name for weight in matrices if weight.space is None or weight.space in statistics.unheard}
    assert all("dt_proj" in name or "seq_relationship" in name for name in blind)  # Mamba may multiply by it itself
    assert sum("cannot listen" in note for note in report.notes) == len(blind)
    measured = {key.partition("#")[0] for key in statistics.sensitivities}
    assert measured == {weight.group or weight.name for weight in weights if weight.role != "exact"}
    for tensor in ("bert.pooler.dense.weight", "cls.seq_relationship.weight"):  # no part of what is measured
        if tensor in storage:
            lost = {row.name: row.relative_distortion for row in report.tensors if row.name in measured}
            assert lost[tensor] < 10 * np.median(list(lost.values()))


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_a_plain_forward_pass(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    model.save_pretrained(tmp_path)
    checkpoint, ids = Checkpoint.open(tmp_path), np.load(save_tokens(tmp_path))
    statistics, places, weights = calibrate(checkpoint, ids, seed=0), route(checkpoint), trace(checkpoint)
    spaces = {space: module for heard in (*places.inside, places.outside) for space, module in heard.spaces.items()}
    experts = {name: module for heard in (*places.inside, places.outside) for name, module in heard.experts.items()}
    if places.head is not None:
        spaces["head"] = places.head
    read: dict[str, list[Any]] = {}
    for space, module in {**spaces, **experts}.items():
        submodule(model, module).register_forward_pre_hook(
            lambda _module, args, space=space: read.setdefault(space, []).append(args)
        )
    with torch.inference_mode():
        forward(model, torch.from_numpy(ids.astype(np.int64)))
    model.requires_grad_(False)
    for weight in weights:
        if weight.place is not None:
            assert torch.equal(locate(model, weight.place), checkpoint.matrix(weight)), weight.name
        if weight.space is None or weight.space in statistics.unheard:
            continue
        if weight.pool is None:
            rows = torch.cat([args[0].reshape(-1, weight.shape[1]) for args in read[weight.space]]).double()
        else:
            rows = _expert_rows(weight, weights, checkpoint, model, read[weight.pool.rpartition(".")[0]])
        assert statistics.tokens[weight.space] == len(rows)
        expected = (rows.T @ rows).numpy()
        assert np.allclose(statistics.sums[weight.space], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def _expert_rows(
    weight: Weight, weights: tuple[Weight, ...], checkpoint: Checkpoint, model: Any, calls: list[Any]
) -> torch.Tensor:
    """What an expert reads times the router's weight, token by token, from the checkpoint's own matrices."""
    assert weight.place is not None
    module, index = submodule(model, weight.place.module), weight.place.expert
    first = {
        other.writes: checkpoint.matrix(other)
        for other in weights
        if other.place and (other.place.module, other.place.expert) == (weight.place.module, index)
    }
    joined = torch.cat([first["gate"], first["up"]]) if "gate" in first else first["fused:gate,up"]
    bias = module.gate_up_proj_bias[index] if getattr(module, "has_bias", False) else 0
    rows = [torch.zeros(0, weight.shape[1], dtype=torch.float64)]
    for states, chosen, shares in calls:
        for token, rank in (chosen == index).nonzero().tolist():
            read = states[token : token + 1]
            if weight.writes == "residual":
                read = module._apply_gate(read @ joined.T + bias)
            rows.append(read.double() * shares[token, rank])
    return torch.cat(rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_what_the_tables_say(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    model.save_pretrained(tmp_path)
    checkpoint, places = Checkpoint.open(tmp_path), route(Checkpoint.open(tmp_path))
    family = family_of(checkpoint.config)
    assert family is not None
    modules = {space: module for heard in places.inside for space, module in heard.spaces.items()}
    modules["head"] = places.head or ""
    reads = [weight for weight in trace(checkpoint) if weight.norm and not weight.pool]
    assert bool(reads) == (family.norms.placement != "post")
    seen: dict[str, torch.Tensor] = {}

    def keep(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        seen[f"{names[module]}.in"], seen[names[module]] = args[0], output

    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: keep(m, args, output) if args else None)
    output_of(model)
    for weight in reads:
        norm = (weight.norm or "").removesuffix(".weight")
        read, output = seen[f"{names[submodule(model, norm)]}.in"], seen[names[submodule(model, norm)]]
        heard = seen[f"{names[submodule(model, modules[weight.space or ''])]}.in"]
        assert torch.equal(output, heard.reshape(output.shape))
        factor = checkpoint.tensor(weight.norm or "") + weight.norm_offset
        if family.norms.kind == "layer":
            expected = torch.nn.functional.layer_norm(
                read, factor.shape, factor, checkpoint.tensor(f"{norm}.bias"), 1e-5
            )
        else:
            expected = torch.nn.functional.rms_norm(read, factor.shape, factor, 1e-6)
        assert torch.allclose(output, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_an_expert_that_is_never_chosen(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    router = model.model.layers[1].mlp.gate.weight
    router.data[2:4] = -router.data[:2]  # of two opposite numbers one is positive: two such pairs beat a zero
    router.data[4] = 0
    model.save_pretrained(tmp_path / "original")
    report, statistics = _compress(tmp_path / "original", tmp_path)
    (experts,) = route(Checkpoint.open(tmp_path / "original")).inside[1].experts
    assert statistics.tokens[f"{experts}.4.in"] == 0 == statistics.sums[f"{experts}.4.hidden"].max()
    assert sum(statistics.tokens[f"{experts}.{index}.in"] for index in range(4)) == statistics.tokens[f"{experts}.in"]
    assert any(note.startswith(f"{experts}.4.in: 0 tokens for 48 inputs") for note in report.notes)
    pooled = statistics.second_moment(f"{experts}.in")
    for weight in trace(Checkpoint.open(tmp_path / "original")):
        if weight.space == f"{experts}.4.in":  # 48 inputs: as if it had seen 48 tokens of the pool
            found = metric_for(weight, statistics).second_moment
            assert np.allclose(found, 48 * pooled / (statistics.tokens[f"{experts}.in"] + 48))
    lost = {row.name: row.relative_distortion for row in report.tensors if f"{experts}.4." in row.name}
    assert len(lost) == 3
    assert all(0 < value < 0.01 for value in lost.values())
    assert torch.isfinite(output_of(trueaxis.load(tmp_path / "out"))).all()


def test_a_model_that_cannot_be_run(tmp_path: Path) -> None:
    build(CASES["mixtral"]).save_pretrained(tmp_path / "original")
    config = json.loads((tmp_path / "original/config.json").read_text())
    changes = {"model_type": "unheard-of", "architectures": ["UnheardOfForCausalLM"]}
    (tmp_path / "original/config.json").write_text(json.dumps({**config, **changes}))
    report, statistics = _compress(tmp_path / "original", tmp_path)
    assert "UnheardOfForCausalLM" in statistics.unrun
    assert sum("the model was not run" in note for note in report.notes) == 1
    assert "every metric is the identity" in report.notes[0]
    assert not statistics.sums
    with pytest.raises(FormatError, match=r"UnheardOfForCausalLM.* are no models of transformers.*unpack"):
        trueaxis.load(tmp_path / "out")
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    original, plain = (load_file(tmp_path / part / "model.safetensors") for part in ("original", "plain"))
    assert original.keys() == plain.keys()
    lost = {name: torch.linalg.vector_norm(plain[name] - value) for name, value in original.items() if value.ndim == 2}
    shares = torch.stack([value / torch.linalg.vector_norm(original[name]) for name, value in lost.items()])
    assert shares.max() < 0.05
    assert shares.max() < 2 * shares.min()  # all matrices alike


def test_a_missing_expert(tmp_path: Path) -> None:
    build(CASES["mixtral"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"^model\.layers\.1\..*\.experts\.3\.w2\.weight: the model"):
        trace(Checkpoint.open(tmp_path))


def test_names_of_old_files(tmp_path: Path) -> None:
    """GPT-2 without the prefix and with its masks; BERT whose norms have a gamma."""
    model = build(CASES["gpt2"])
    model.save_pretrained(tmp_path / "gpt2")
    tensors = load_file(tmp_path / "gpt2/model.safetensors")
    old = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    save_file(old, tmp_path / "gpt2/model.safetensors", metadata={"format": "pt"})
    report, _ = _compress(tmp_path / "gpt2", tmp_path)
    assert report.parameters == sum(value.numel() for value in tensors.values())
    found, expected = output_of(trueaxis.load(tmp_path / "out")), output_of(model)
    assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)

    build(CASES["bert"]).save_pretrained(tmp_path / "bert")
    tensors = load_file(tmp_path / "bert/model.safetensors")
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in tensors.items()}
    save_file(old, tmp_path / "bert/model.safetensors", metadata={"format": "pt"})
    weights = trace(Checkpoint.open(tmp_path / "bert"))
    assert sum(weight.role == "linear" for weight in weights) == 13


def _fused(directory: Path, **changes: Any) -> Path:
    """A compressed checkpoint with a transposed matrix and one of three slices."""
    generator = torch.Generator().manual_seed(1)
    directory.mkdir()
    tensors = {"mlp.experts.down_proj": torch.randn(3, 40, 24, generator=generator)}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY, **changes}))
    return directory


def test_slices_decode_to_their_places(tmp_path: Path) -> None:
    original = _fused(tmp_path / "original")
    _compress(original, tmp_path, bits=10)
    found = Decoder(tmp_path / "out").tensor("mlp.experts.down_proj")
    expected = load_file(original / "model.safetensors")["mlp.experts.down_proj"]
    for index in range(3):
        assert torch.linalg.vector_norm(found[index] - expected[index]) < 0.02 * torch.linalg.vector_norm(
            expected[index]
        )


RESIDUAL = Record(RecordType.RESIDUAL, b"r")
REFLECTED = Record(RecordType.TRANSFORM, b"\1\1")
TURN = Record(RecordType.TRANSFORM, b"\0")


def _slice(index: int) -> Record:
    return Record(RecordType.SLICE, bytes([index]))


@pytest.mark.parametrize(
    ("shape", "records", "message"),
    [
        ((4, 5), [Record(RecordType.TRANSFORM, b"\6"), RESIDUAL], "transform of kind 06 is unknown"),
        ((4, 5), [Record(RecordType.TRANSFORM, b"\1"), RESIDUAL], "transform 01 is damaged"),
        ((4, 5), [Record(RecordType.TRANSFORM, b"\1\4"), RESIDUAL], "transform 0104 is damaged"),
        ((4, 5), [REFLECTED, TURN, RESIDUAL], "transform 00 is damaged or out of place"),
        ((4, 5), [REFLECTED], "0 matrices do not make"),
        ((4, 5), [Record(RecordType.TRANSFORM, b""), RESIDUAL], "transform of kind none is unknown"),
        ((4, 5), [TURN, TURN, RESIDUAL], "transform 00 is damaged or out of place"),
        ((4, 5), [TURN], r"0 matrices do not make a tensor \[4, 5\]"),
        ((4, 5), [], "0 matrices do not make"),
        ((4, 5), [RESIDUAL, RESIDUAL], "record type 18 is out of place"),
        ((4, 5), [RESIDUAL, _slice(0), RESIDUAL], "out of place"),
        ((4, 5), [_slice(0), RESIDUAL], "a slice does not fit"),
        ((2, 4, 5), [RESIDUAL], "a residual does not fit"),
        ((2, 4, 5), [_slice(0), RESIDUAL], "1 matrices do not make"),
        ((2, 4, 5), [_slice(0), RESIDUAL, _slice(0), RESIDUAL], "expected slice 1, found 0"),
        ((2, 4, 5), [_slice(0), _slice(1), RESIDUAL], "out of place"),
        ((2, 4, 5), [TURN, _slice(0), RESIDUAL], "out of place"),
        ((2, 4, 5), [_slice(0), RESIDUAL, _slice(1), RESIDUAL, TURN], "2 matrices do not make"),
        ((4, 5), [RESIDUAL, Record(RecordType.PLANES, b"\0")], "record type 19 is out of place"),
    ],
)
def test_records_that_make_no_tensor(shape: tuple[int, ...], records: list[Record], message: str) -> None:
    with pytest.raises(FormatError, match=f"^w: .*{message}"):
        parse(TensorInfo("w", shape, "F32", 0, 0, 0), records)


def test_records_of_slices_and_transposes_come_back() -> None:
    records = [record for index in range(2) for record in matrix_records(b"r", index, True)]
    found = parse(TensorInfo("w", (2, 4, 5), "F32", 0, 0, 0), records)
    assert [(part.rows, part.columns, part.transposed) for part in found] == [(5, 4, True)] * 2
