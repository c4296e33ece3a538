"""Assembly: an account of every byte, streams shared by small matrices, and the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trueaxis.assemble import Assembled, alias_entries, assemble, count_symbols, exact_entry, write_files
from trueaxis.container import Container
from trueaxis.entropy.model import first_tables, fit_tables
from trueaxis.entropy.stream import unpack_residual
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Feedback, Rans
from trueaxis.types import Contexts, Metric, Quantized, Weight

Matrices = list[tuple[Weight, Quantized]]


def matrices_of(checkpoint: Checkpoint, c: float = 0.02) -> Matrices:
    planner, found = Planner(Feedback()), []
    for weight in trace(checkpoint):
        if weight.role != "exact":
            value = checkpoint.tensor(weight.name).float().numpy()
            found.append((weight, quantize(planner.plan(weight, value, Metric(None)), c, first_tables()).quantized))
    return found


def assembled(checkpoint: Checkpoint, matrices: Matrices, stage: Rans) -> Assembled:
    exact = [
        exact_entry(weight, checkpoint.tensor(weight.name)) for weight in trace(checkpoint) if weight.role == "exact"
    ]
    tables = fit_tables(count_symbols([matrix for _, matrix in matrices]), first_tables().offsets)
    return assemble(checkpoint, matrices, exact, tables, stage, {"recipe": {}, "sketch": [], "gauge": []})


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path) -> Checkpoint:
    return Checkpoint.open(tiny_llama)


@pytest.fixture(scope="module")
def matrices(checkpoint: Checkpoint) -> Matrices:
    return matrices_of(checkpoint)


def test_tensors_and_header_add_up_to_the_files(checkpoint: Checkpoint, matrices: Matrices) -> None:
    found = assembled(checkpoint, matrices, Rans())
    sizes = {name: sum(map(len, pieces)) for name, pieces in found.files.items()}
    growth = sizes.pop("config.json") - (checkpoint.path / "config.json").stat().st_size
    weights = sum(sizes.values())
    assert found.file_bytes == weights + max(0, growth)
    assert sum(found.tensor_bytes.values()) == pytest.approx(found.file_bytes - found.header_bytes, abs=0.51)
    assert set(found.tensor_bytes) == set(checkpoint.entries)
    assert 0 < found.header_bytes < 4000
    assert min(found.tensor_bytes.values()) > 0


def test_shared_streams_are_divided_by_information(checkpoint: Checkpoint, matrices: Matrices) -> None:
    """Setting one matrix to zero makes its own share vanish, not that of its neighbours."""
    name = "model.layers.1.mlp.up_proj.weight"

    def zero(q: Quantized) -> Quantized:
        codes = Contexts(q.contexts.row_codes, np.zeros_like(q.contexts.column_codes), q.contexts.shift)
        return Quantized(np.zeros_like(q.indices), q.grid, codes)

    zeroed = [(weight, zero(q) if weight.name == name else q) for weight, q in matrices]
    before, after = (assembled(checkpoint, found, Rans()) for found in (matrices, zeroed))
    assert after.tensor_bytes[name] < 0.2 * before.tensor_bytes[name]
    for weight, _ in matrices:
        if weight.name != name:
            assert after.tensor_bytes[weight.name] == pytest.approx(before.tensor_bytes[weight.name], rel=0.1)


@pytest.mark.parametrize(("chain", "streams"), [(1, 16), (20_000, 4), (1 << 20, 1)])
def test_small_matrices_fill_shared_streams(
    checkpoint: Checkpoint, matrices: Matrices, tmp_path: Path, chain: int, streams: int
) -> None:
    write_files(assembled(checkpoint, matrices, Rans(chain=chain)), checkpoint, tmp_path)
    container = Container(tmp_path)
    numbers = [
        unpack_residual(container.records(weight.name)[0].payload, *weight.shape).shared for weight, _ in matrices
    ]
    assert numbers == sorted(numbers, key=lambda number: -1 if number is None else number)
    assert set(numbers) == set(range(streams))
    decoder = Decoder(tmp_path)
    for weight, quantized in matrices:
        value = decoder.tensor(weight.name, torch.float32).numpy()
        assert ((value != 0) == (quantized.indices.T != 0)).all(), weight.name


def test_the_same_input_gives_the_same_bytes(checkpoint: Checkpoint, matrices: Matrices) -> None:
    one, two = (assembled(checkpoint, found, Rans()) for found in (matrices, matrices_of(checkpoint)))
    assert dict(one.files) == dict(two.files)


def test_exact_tensors_keep_every_bit(checkpoint: Checkpoint, matrices: Matrices, tmp_path: Path) -> None:
    write_files(assembled(checkpoint, matrices, Rans()), checkpoint, tmp_path)
    decoder = Decoder(tmp_path)
    norms = [weight for weight in trace(checkpoint) if weight.role == "exact"]
    assert norms
    for weight in norms:
        found, original = decoder.tensor(weight.name), checkpoint.tensor(weight.name)
        assert found.dtype == original.dtype and torch.equal(found, original)


def test_config_gains_one_key(checkpoint: Checkpoint, matrices: Matrices) -> None:
    config = json.loads(assembled(checkpoint, matrices, Rans()).files["config.json"][0])
    assert config.pop("quantization_config") == {"quant_method": "trueaxis", "version": 1}
    assert config == checkpoint.config


def test_tied_tensors_become_aliases(tied_llama: Path) -> None:
    checkpoint = Checkpoint.open(tied_llama)
    for entry in alias_entries(checkpoint):
        assert entry.records[0].payload.decode() == checkpoint.aliases[entry.name]
