"""Maps of spaces: the identity W′ x′ = (W x)′, and D the same number in every gauge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from trueaxis.align.maps import Map, Permute, Planes, Rotate, Unscale, Within, moment, on_columns, on_rows
from trueaxis.metric.metric import distance
from trueaxis.types import Metric

RNG = np.random.default_rng(3)
BLOCKS = np.stack([ortho_group.rvs(4, random_state=i) for i in range(3)])
MAPS: dict[str, Map] = {
    "none": (),
    "unscale": (Unscale(RNG.uniform(0.5, 2, 12)),),
    "permute": (Permute(RNG.permutation(12)),),
    "rotate": (Rotate(ortho_group.rvs(12, random_state=9)[None]),),
    "heads": (Rotate(BLOCKS),),
    "planes": (Planes(np.array([0, 1, 6]), np.array([3, 4, 9]), np.array([0.3, -1.2, 2.0])),),
    "part": (Within(np.array([2, 5, 7, 8]), Rotate(BLOCKS[:1])),),
    "chain": (Unscale(RNG.uniform(0.5, 2, 12)), Rotate(BLOCKS), Permute(RNG.permutation(12))),
}


@pytest.mark.parametrize("reads", MAPS)
@pytest.mark.parametrize("writes", MAPS)
def test_moved_input_times_moved_weight_is_moved_output(reads: str, writes: str) -> None:
    weight, inputs = RNG.normal(size=(12, 12)), RNG.normal(size=(12, 5))
    moved = on_columns(MAPS[reads], on_rows(MAPS[writes], weight))
    np.testing.assert_allclose(moved @ on_rows(MAPS[reads], inputs), on_rows(MAPS[writes], weight @ inputs), atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_moment_is_that_of_moved_inputs(name: str) -> None:
    inputs = RNG.normal(size=(12, 40))
    moved = on_rows(MAPS[name], inputs)
    found = moment(MAPS[name], inputs @ inputs.T)
    np.testing.assert_allclose(found, moved @ moved.T, atol=1e-10)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("reads", MAPS)
def test_distortion_is_the_same_number_in_every_gauge(reads: str) -> None:
    error, inputs = RNG.normal(size=(12, 12)), RNG.normal(size=(12, 40))
    metric = Metric(inputs @ inputs.T / 40)
    assert metric.second_moment is not None
    turn = MAPS["rotate"]
    moved = on_columns(MAPS[reads], on_rows(turn, error))
    found = distance(moved, Metric(moment(MAPS[reads], metric.second_moment)))
    assert found == pytest.approx(distance(error, metric), rel=1e-9)


def test_dead_inputs_stay_dead() -> None:
    dead = Unscale(np.array([2.0, 0.0]))
    np.testing.assert_array_equal(dead.columns(np.ones((1, 2))), [[2.0, 0.0]])
    np.testing.assert_array_equal(dead.rows(np.ones((2, 1))), [[0.5], [0.0]])


def test_vectors_move_as_columns_do() -> None:
    bias = RNG.normal(size=12)
    np.testing.assert_allclose(on_rows(MAPS["chain"], bias), on_rows(MAPS["chain"], bias[:, None])[:, 0])
