"""Reports: distortion of what a reader gets, and limits of the original with its norms folded."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trueaxis
from trueaxis.accounting import original_limit_bits, tensor_reports
from trueaxis.metric.metric import distance, fold_norm, limit_bits, metric_for, structured_limit_bits
from trueaxis.metric.statistics import load_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.runtime.decode import Decoder
from trueaxis.types import Aligned, CompressionReport

Run = tuple[Path, CompressionReport, Path]


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """(directory, report, statistics file) of the tiny model at 4 bits."""
    out = tmp_path_factory.mktemp("accounting")
    report = trueaxis.compress(tiny_llama, out / "4", bits=4, calibration=[tokens], statistics=out / "statistics",
                               recipe="identity")  # fmt: skip
    return out / "4", report, out / "statistics"


def test_rows_add_up_and_cover_every_tensor(run: Run, tiny_llama: Path) -> None:
    _, report, _ = run
    checkpoint = Checkpoint.open(tiny_llama)
    assert {row.name for row in report.tensors} == set(checkpoint.entries)
    spent = sum(row.bits_per_weight * math.prod(row.shape) for row in report.tensors)
    assert spent / 8 == pytest.approx(report.file_bytes - report.header_bytes, abs=1)
    assert report.parameters == checkpoint.parameters
    assert report.bits_per_param == report.file_bytes * 8 / report.parameters
    gaps = sum(row.gap_bits * math.prod(row.shape) for row in report.tensors) + 8 * report.header_bytes
    above = report.bits_per_param - report.limit_bits_per_param
    assert above == pytest.approx(gaps / report.parameters, abs=1e-3)
    assert report.copied_bytes == sum(file.stat().st_size for file in checkpoint.files_to_copy())
    assert report.seconds > 0 and report.peak_memory_bytes > 1 << 20


def test_distortion_is_that_of_the_decoded_tensor(run: Run, tiny_llama: Path) -> None:
    out, report, statistics = run
    checkpoint, decoder, measured = Checkpoint.open(tiny_llama), Decoder(out), load_statistics(statistics)
    rows = {row.name: row for row in report.tensors}
    for weight in trace(checkpoint):
        row = rows[weight.name]
        if weight.role == "exact":
            assert (row.coordinates, row.relative_distortion, row.gap_bits) == ("exact", 0.0, 0.0)
            assert row.limit_bits == row.bits_per_weight > 0
            continue
        original = checkpoint.tensor(weight.name).double().numpy()
        metric = metric_for(weight, measured)
        lost = distance(decoder.tensor(weight.name).double().numpy() - original, metric)
        assert row.relative_distortion == pytest.approx(lost / distance(original, metric), rel=1e-4)
        assert row.coordinates == "identity"
        assert row.gap_bits == pytest.approx(row.bits_per_weight - row.limit_bits)


def test_matrices_of_no_named_space_have_spectra_of_their_own(run: Run, tiny_llama: Path) -> None:
    """Of several widths, as jobs made by hand may be: the limits are those of matrices with their spaces."""
    out, report, statistics = run
    checkpoint, measured = Checkpoint.open(tiny_llama), load_statistics(statistics)
    matrices = []
    for weight in (weight for weight in trace(checkpoint) if weight.role != "exact"):
        metric = metric_for(weight, measured)
        aligned = Aligned("identity", checkpoint.matrix(weight).float().numpy(), metric)
        matrices.append((replace(weight, space=None), aligned, metric))
    decoder = Decoder(out)
    found = tensor_reports(decoder, checkpoint, matrices, dict.fromkeys(decoder.names(), 1.0))
    limits = {row.name: row.limit_bits for row in report.tensors if row.coordinates != "exact"}
    assert {row.name: row.limit_bits for row in found if row.coordinates != "exact"} == pytest.approx(limits)


def test_limits_are_of_the_norm_folded_original(run: Run, tiny_llama: Path) -> None:
    """Folding by hand gives the reported limit; leaving it out would not."""
    out, report, statistics = run
    checkpoint, decoder, measured = Checkpoint.open(tiny_llama), Decoder(out), load_statistics(statistics)
    rows = {row.name: row for row in report.tensors}
    differ = 0
    for weight in trace(checkpoint):
        if weight.norm is None:
            continue
        original = checkpoint.tensor(weight.name).double().numpy()
        metric = metric_for(weight, measured)
        lost = distance(decoder.tensor(weight.name).double().numpy() - original, metric)
        gamma = checkpoint.tensor(weight.norm).double().numpy()
        moment = metric.second_moment
        assert moment is not None
        folded = limit_bits(moment / np.outer(gamma, gamma), original * gamma, lost)
        assert rows[weight.name].limit_bits == pytest.approx(folded, abs=1e-3)
        differ += abs(limit_bits(moment, original, lost) - folded) > 0.01
    assert differ > 0


def test_limits_do_not_depend_on_where_the_norm_is_kept(run: Run, tiny_llama: Path) -> None:
    """The same network with γ moved into the matrices and H carried along has the same limit at the same D."""
    _, _, statistics = run
    checkpoint, measured = Checkpoint.open(tiny_llama), load_statistics(statistics)
    weight = next(weight for weight in trace(checkpoint) if weight.name.endswith("0.mlp.up_proj.weight"))
    metric, original = metric_for(weight, measured), checkpoint.tensor(weight.name).double().numpy()
    assert metric.second_moment is not None and weight.norm is not None
    gamma = checkpoint.tensor(weight.norm).double().numpy()
    folded, moment = fold_norm(original, metric.second_moment, gamma)
    error = 0.01 * np.random.default_rng(0).normal(size=original.shape)
    assert distance(error, metric) == pytest.approx(distance(error * gamma, replace(metric, second_moment=moment)))
    apart = original_limit_bits(checkpoint, weight, original, metric, distance(error, metric))
    inside = original_limit_bits(
        checkpoint, replace(weight, norm=None), folded, replace(metric, second_moment=moment), distance(error, metric)
    )
    assert apart == pytest.approx(inside, abs=1e-9)


def test_limits_are_sensible(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    """Below the rate, rising with it; knowing the rows' covariance never asks for much more."""
    _, report, statistics = run
    finer = trueaxis.compress(tiny_llama, tmp_path / "6", bits=6, statistics=statistics, recipe="identity")
    checkpoint, measured = Checkpoint.open(tiny_llama), load_statistics(statistics)
    weights = {weight.name: weight for weight in trace(checkpoint)}
    for row, fine in zip(report.tensors, finer.tensors, strict=True):
        if row.coordinates == "exact":
            continue
        assert 0.0 < row.limit_bits < row.bits_per_weight < row.limit_bits + 1.5
        assert fine.limit_bits > row.limit_bits + 1
        if weights[row.name].role == "linear":
            metric = metric_for(weights[row.name], measured)
            original = checkpoint.tensor(row.name).double().numpy()
            lost = row.relative_distortion * distance(original, metric)
            plain = limit_bits(metric.second_moment, original, lost)
            assert structured_limit_bits(metric.second_moment, original, lost) < plain + 0.1


def test_zero_and_lossless_tensors_keep_the_report_finite(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    tensors = load_file(model / "model.safetensors")
    zero, halves = "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    tensors[zero] = torch.zeros_like(tensors[zero])
    tensors[halves] = torch.sign(tensors[halves]) / 2  # bfloat16 rounds the decoded values to exactly these
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    report = trueaxis.compress(model, tmp_path / "out", bits=15, calibration=[tokens], recipe="identity")
    rows = {row.name: row for row in report.tensors}
    assert rows[zero].relative_distortion == 0 and rows[zero].bits_per_weight < 1.5
    assert rows[halves].relative_distortion == 0
    assert rows[halves].limit_bits == rows[halves].bits_per_weight and rows[halves].gap_bits == 0
    json.dumps(json.loads((tmp_path / "out" / "trueaxis.json").read_text()), allow_nan=False)
