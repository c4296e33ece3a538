"""Low rank: ranks follow the size, factors cost what their metrics say, files decode to ordinary matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from families import CASES, build, save_tokens
from oracle import Oracle
from trueaxis.align.network import Network
from trueaxis.entropy.varint import pack_varint
from trueaxis.function.lowrank import Factors, kept_rank
from trueaxis.header import TensorInfo
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.metric import distance
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.recipe import recipe
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.factors import product
from trueaxis.runtime.matrices import matrices
from trueaxis.types import Aligned, FormatError


@pytest.fixture(scope="module")
def network(tiny_llama: Path, tokens: Path) -> Network:
    checkpoint = Checkpoint.open(tiny_llama)
    weights = trace(checkpoint)
    statistics = calibrate(checkpoint, np.load(tokens), seed=0)
    return Network(checkpoint, weights, statistics, 4.0 * sum(weight.size for weight in weights))


def test_ranks_follow_the_size(network: Network) -> None:
    weight = next(weight for weight in network.weights if weight.role == "linear")
    aligned = Aligned("identity", network.checkpoint.matrix(weight).float().numpy(), network.metric(weight))
    ranks = []
    for bits in (1.0, 2.0, 4.0):
        left, right = Factors(replace(network, target_bits=network.target_bits * bits / 4.0))(weight, aligned)
        ranks.append(left.weight.shape[1])
        assert left.weight.shape == (weight.shape[0], ranks[-1]) and right.weight.shape == (ranks[-1], weight.shape[1])
        assert left.values.shape == left.weight.shape and right.values.shape == right.weight.shape
    assert 1 <= ranks[0] < ranks[1] < ranks[2] <= min(weight.shape)


def test_pairs_below_the_water_level_are_dropped() -> None:
    energies = np.array([1e3, 1e2, 1e-3, 1e-4])
    assert kept_rank(energies, (8, 8), 1e-1) == 2
    assert kept_rank(np.zeros(3), (8, 8), 1.0) == 1


def test_errors_of_factors_cost_what_their_metrics_say(network: Network) -> None:
    """D of the product is the sum of both, up to terms of second order and what truncation lost."""
    weight = next(weight for weight in network.weights if "q_proj" in weight.name)
    matrix, metric = network.checkpoint.matrix(weight).float().numpy(), network.metric(weight)
    left, right = Factors(replace(network, target_bits=1e9))(weight, Aligned("identity", matrix, metric))
    np.testing.assert_allclose(left.values @ right.values, matrix, atol=2e-2 * np.abs(matrix).max())
    rng = np.random.default_rng(0)
    for factor, other in ((left, lambda e: e @ right.values), (right, lambda e: left.values @ e)):
        error = 1e-3 * rng.normal(size=factor.values.shape)
        assert distance(other(error), metric) == pytest.approx(distance(error, factor.metric), rel=2e-2)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_files_are_ordinary_models(name: str, tmp_path: Path) -> None:
    """Slices of experts and transposed matrices too; linear layers lose little at 9 bits."""
    build(CASES[name]).save_pretrained(tmp_path / "original")
    report = trueaxis.compress(
        tmp_path / "original", tmp_path / "out", bits=9, calibration=[save_tokens(tmp_path)], recipe="lowrank"
    )
    assert report.bits_per_param <= 9
    assert len({row.name for row in report.tensors}) == len(report.tensors)
    assert all(row.relative_distortion < 0.01 for row in report.tensors)
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    checkpoint, decoder = Checkpoint.open(tmp_path / "plain"), Decoder(tmp_path / "out")
    factored = 0
    for tensor in decoder.names():
        torch.testing.assert_close(checkpoint.tensor(tensor), decoder.tensor(tensor), rtol=0, atol=0)
        factored += any(part.factor for part in matrices(decoder.container.tensors[tensor],
                                                         decoder.container.records(tensor)))  # fmt: skip
    assert factored == len({weight.tensor for weight in trace(checkpoint) if weight.role == "linear"}) > 0
    assert sum(trueaxis.inspect(tmp_path / "out")["spent_bytes"].values()) == report.file_bytes
    for tensor, bits in Oracle(tmp_path / "out").tensors().items():  # the second reader multiplies alike
        assert decoder.tensor(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == bits


def test_planted_rank_is_found_and_pays(tmp_path: Path) -> None:
    """Linear layers of rank 4: at the same size the factors lose less than a tenth of what whole matrices do."""
    model = build(CASES["llama"])
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "proj" in name:
                factors = rng.normal(size=(value.shape[0], 4)), rng.normal(size=(4, value.shape[1]))
                value.copy_(torch.from_numpy(0.05 * factors[0] @ factors[1]))
    model.save_pretrained(tmp_path / "original")
    text, lost = save_tokens(tmp_path), {}
    for name in ("identity", "lowrank"):
        report = trueaxis.compress(tmp_path / "original", tmp_path / name, bits=4, calibration=[text], recipe=name)
        lost[name] = np.median([row.relative_distortion for row in report.tensors if "proj" in row.name])
    assert lost["lowrank"] < 0.1 * lost["identity"]


def test_product_is_the_exact_sum_rounded_once() -> None:
    rng = np.random.default_rng(6)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((70, 33), (33, 50)))
    exact = left.astype(np.longdouble) @ right.astype(np.longdouble)
    np.testing.assert_array_equal(product(left, right), exact.astype(np.float32))


RANK = Record(RecordType.FUNCTION, b"\0" + pack_varint(2))
RESIDUAL = Record(RecordType.RESIDUAL, b"")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([Record(RecordType.FUNCTION, b"\0" + pack_varint(5)), RESIDUAL, RESIDUAL], r"rank 5 does not make \[4, 6\]"),
        ([Record(RecordType.FUNCTION, b"\0" + pack_varint(0)), RESIDUAL, RESIDUAL], r"rank 0 does not make"),
        ([Record(RecordType.FUNCTION, b"\0\2\0"), RESIDUAL, RESIDUAL], "rank 2 does not make"),
        ([Record(RecordType.FUNCTION, b"\0"), RESIDUAL, RESIDUAL], "w: "),
        ([Record(RecordType.FUNCTION, b"\7\1"), RESIDUAL, RESIDUAL], "kind 07 is unknown"),
        ([RANK, RESIDUAL], "0 matrices do not make"),
        ([RANK, RESIDUAL, RESIDUAL, RESIDUAL], "out of place"),
        ([RANK, RANK, RESIDUAL, RESIDUAL], "out of place"),
        ([RANK, Record(RecordType.TRANSFORM, b"\0"), RESIDUAL, RESIDUAL], "out of place"),
    ],
)
def test_damaged_products_are_refused(records: list[Record], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        matrices(TensorInfo("w", (4, 6), "F32", 0, 0, 0), records)
    found = matrices(TensorInfo("w", (4, 6), "F32", 0, 0, 0), [RANK, RESIDUAL, RESIDUAL])
    assert [(part.rows, part.columns, part.factor) for part in found] == [(4, 2, "left"), (2, 6, "right")]


def test_few_bytes_never_stand_for_a_huge_matrix() -> None:
    with pytest.raises(FormatError, match="rank 2 does not make"):
        matrices(TensorInfo("w", (1000, 129), "F32", 0, 0, 0), [RANK, RESIDUAL, RESIDUAL])
    assert matrices(TensorInfo("w", (1000, 128), "F32", 0, 0, 0), [RANK, RESIDUAL, RESIDUAL])


def test_the_recipe_is_identity_with_one_stage_changed() -> None:
    assert replace(recipe("lowrank"), function=recipe("identity").function) == recipe("identity")
    assert type(recipe("lowrank")).from_json(recipe("lowrank").to_json()) == recipe("lowrank")
