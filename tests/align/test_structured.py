"""Stored transforms: planted ones are found and pay, noise gets none, D stays, files decode alike in both readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from oracle import Oracle
from planted import VOCABULARY, plant
from trueaxis.align.described import Described
from trueaxis.align.structured import found_for, joined, paid_bits, turned_metric
from trueaxis.metric.metric import distance
from trueaxis.parallel import one_thread
from trueaxis.passes import coded_bits
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.recipe import Recipe, recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.orthogonal import COLUMNS, Axis, Hadamard, Mirrors, Orthogonal, sparse
from trueaxis.runtime.transforms import undone
from trueaxis.stages import Feedback, Gptq, Identity, NoTransform, Structured
from trueaxis.types import Array, Metric, TrueaxisError, Weight

M, N = 768, 48
RNG = np.random.default_rng(1)
AXIS = Axis(COLUMNS, N)
FAST = Feedback(effort="fast")


def all_pairs(axis: Axis) -> Orthogonal:
    codes = RNG.integers(-1024, 1025, axis.size * (axis.size - 1) // 2)
    pairs = [(i, j) for i in range(axis.size) for j in range(i + 1, axis.size)]
    return sparse(axis, 10, [(i, j, int(code)) for (i, j), code in zip(pairs, codes, strict=True)])


def some_pairs(count: int) -> Orthogonal:
    pairs = [sorted(RNG.choice(N, 2, replace=False).tolist()) for _ in range(count)]
    return sparse(AXIS, 10, [(i, j, int(RNG.integers(200, 424))) for i, j in pairs])


# kind ─▶ transforms, and how many numbers they have
KINDS: dict[str, tuple[list[Orthogonal], int]] = {
    "mirror": ([Mirrors(AXIS, RNG.integers(-500, 501, (1, N)))], N),
    "kronecker": ([all_pairs(Axis(COLUMNS, 6, 8)), all_pairs(Axis(COLUMNS, 8))], 15 + 28),
    "pairs": ([some_pairs(12)], 12),
    "hadamard": ([Hadamard(Axis(COLUMNS, 16), RNG.integers(0, 2, 16).astype(bool))], 0),
}


def plan_of(weight: Array, moment: Array | None, damping: float = 1e-3) -> Plan:
    named = Weight("w", weight.shape, "F32", "linear", "space")
    return Planner(Feedback(damping=damping)).plan(named, weight.astype(np.float32), Metric(moment))


def number_bits(kind: str) -> float:
    """What the numbers of a planted transform take: angles of four bits, and the places of pairs that may be any."""
    return KINDS[kind][1] * (4 + np.log2(N * (N - 1) / 2) * (kind == "pairs"))


@one_thread()
def judged(straight: Array, transforms: list[Orthogonal], moment: Array | None) -> tuple[float, float, list[str]]:
    """(bits planted, bits that come back, kinds found)."""
    turned_weight = straight
    for transform in reversed(transforms):
        turned_weight = transform.decoded(turned_weight)
    turned_moment = moment
    for transform in reversed(transforms):
        turned_moment = (
            turned_moment if turned_moment is None else transform.decoded(transform.decoded(turned_moment).T)
        )
    plan = plan_of(straight, moment)
    c = first_c([plan], 2.5 * straight.size)
    ideal, given = Described.planned(plan, c), Described.planned(plan_of(turned_weight, turned_moment), c)
    found, then = found_for(given), given
    for _, transform in found:
        then = then.moved(transform)
    back = given.bits - then.bits - paid_bits([transform for _, transform in found])
    return given.bits - ideal.bits, back, [name for name, _ in found]


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_transforms_come_back(kind: str, metric: bool) -> None:
    rng = np.random.default_rng(2)
    straight = rng.normal(size=(M, N)) * 2.0 ** rng.normal(0, 1.2, N)
    moment = np.diag(2.0 ** rng.normal(0, 1, N)) if metric else None
    planted, back, found = judged(straight, KINDS[kind][0], moment)
    assert planted > 1000
    assert back > 0.9 * (planted - number_bits(kind))
    assert found


@pytest.mark.parametrize("metric", [False, True])
def test_noise_gets_nothing(metric: bool) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(400, N)) @ rng.normal(size=(N, N))
    planted, back, found = judged(rng.normal(size=(M, N)), [], inputs.T @ inputs / 400 if metric else None)
    assert (planted, back, found) == (0, 0, [])


def test_unequal_axes_that_are_straight_get_nothing() -> None:
    rng = np.random.default_rng(4)
    assert judged(rng.normal(size=(M, N)) * 2.0 ** rng.normal(0, 2, N), [], None)[2] == []


def test_few_rows_of_unequal_size_get_nothing() -> None:
    """What a few large rows have in common is no structure: the coder knows how large they are."""
    rng = np.random.default_rng(9)
    assert judged(rng.normal(size=(48, 96)) * 2.0 ** rng.normal(0, 2, (48, 1)), [], None)[2] == []


def test_mirrors_in_a_row_share_a_record() -> None:
    rng = np.random.default_rng(10)
    mirrors = [("mirrors", Mirrors(AXIS, rng.integers(-9, 10, (1, N)))) for _ in range(3)]
    apart = [*mirrors, ("hadamard", Hadamard(Axis(COLUMNS, 16), np.zeros(16, bool))), mirrors[0]]
    together, values = joined(apart), rng.normal(size=(5, N))
    assert [name for name, _ in together] == ["mirrors", "hadamard", "mirrors"]
    assert np.allclose(*(undone(values, [one for _, one in found]) for found in (apart, together)), atol=1e-12)
    assert paid_bits([one for _, one in together]) < paid_bits([one for _, one in apart])


def test_nothing_to_code_is_left_alone() -> None:
    assert found_for(Described.planned(plan_of(np.zeros((9, 8)), None), 1.0)) == []


def test_distortion_is_the_same_number() -> None:
    rng = np.random.default_rng(5)
    inputs, error = rng.normal(size=(N, N)), rng.normal(size=(20, N))
    metric = Metric(inputs @ inputs.T, rng.uniform(1, 2, 20), 1.0, rng.uniform(1, 2, 20), inputs.T @ inputs)
    for transforms, _ in KINDS.values():
        moved = turned_metric(metric, transforms)
        assert np.isclose(distance(undone(error, transforms), moved), distance(error, metric), rtol=1e-9)


def test_what_is_coded_takes_fewer_bits() -> None:
    """The estimate's promise against the coder's own bytes."""
    rng = np.random.default_rng(6)
    (transform,), _ = KINDS["mirror"]
    straight = rng.normal(size=(M, N)) * 2.0 ** rng.normal(0, 1.2, N)
    plan, given = plan_of(straight, None), plan_of(transform.decoded(straight), None)
    c = first_c([plan], 2.5 * straight.size)
    estimated = Described.planned(given, c).bits - Described.planned(plan, c).bits
    assert np.isclose(coded_bits(given, c) - coded_bits(plan, c), estimated, rtol=0.2)


def test_a_scaled_column_needs_no_transform() -> None:
    """Diagonals are the steps: a column times a power of two has the same indices, and a step times that power."""
    rng = np.random.default_rng(7)
    weight, scales = rng.normal(size=(M, N)), 2.0 ** rng.integers(-3, 4, N)
    moment = np.diag(2.0 ** rng.normal(0, 1, N))
    plain, scaled = plan_of(weight, moment, 0.0), plan_of(weight * scales, moment / np.outer(scales, scales), 0.0)
    assert np.allclose(scaled.column_steps, plain.column_steps * scales)
    assert np.allclose(scaled.in_steps(), plain.in_steps(), rtol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which some pairs of axes are turned, in a network that is compressed in the axes it came with."""

    def draw(rng: np.random.Generator, m: int, n: int) -> Array:
        pairs = rng.permutation(n)[:24].reshape(12, 2)
        planted = sparse(Axis(COLUMNS, n), 4, [(min(pair), max(pair), 7) for pair in pairs.tolist()])
        return planted.decoded(rng.normal(size=(m, n)) * 2.0 ** rng.normal(0, 1.5, n))

    place = plant(tmp_path_factory.mktemp("turned"), draw, width=32, hidden=128)
    np.save(place / "tokens.npy", np.random.default_rng(8).integers(0, VOCABULARY, (64, 128)).astype(np.uint16))
    return place


def test_files_decode_alike_in_both_readers(model: Path, tmp_path: Path) -> None:
    given = {"bits": 8, "calibration": [model / "tokens.npy"], "statistics": tmp_path / "statistics.safetensors"}
    chosen = Recipe(Identity(), quantize=FAST, transform=Structured())
    report = trueaxis.compress(model, tmp_path / "out", recipe=chosen, **given)
    assert report.transforms
    decoder, found = Decoder(tmp_path / "out"), Oracle(tmp_path / "out").tensors()
    for name in decoder.names():
        assert decoder.tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes() == found[name]
    told = {row["name"]: row for row in trueaxis.inspect(tmp_path / "out")["tensors"]}
    for one in report.transforms:
        assert told[one.name]["transforms"]
        assert one.transform_bits >= told[one.name]["transform_bits"] > 0
        assert told[one.name]["transform_saved_bits"] == one.estimated_saved_bits > 0
    rows = {row.name: row for row in report.tensors}
    plain = trueaxis.compress(model, tmp_path / "plain", recipe=replace(chosen, transform=NoTransform()), **given)
    assert all(rows[one.name].relative_distortion < 0.01 for one in report.transforms)
    lost = {row.name: row.relative_distortion for row in plain.tensors}
    assert np.mean([np.log(rows[one.name].relative_distortion / lost[one.name]) for one in report.transforms]) < 0


def test_it_goes_with_feedback_alone() -> None:
    assert recipe("structured").transform == Structured()
    with pytest.raises(TrueaxisError, match="structured goes with quantize type feedback"):
        Recipe(quantize=Gptq(), transform=Structured())
