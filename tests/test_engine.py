"""Engines: same bytes on a cluster of Ray, also when one of its nodes is lost half-way or one worker is late."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis.cli import main
from trueaxis.engine import LOCAL, OnRay, engine_of
from trueaxis.metric.calibrate import calibrate, hear
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route
from trueaxis.parallel import ordered_map
from trueaxis.types import TrueaxisError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node on this machine, connected to."""
    ray = pytest.importorskip("ray", reason="the engine ray needs trueaxis[ray]")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=2)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, tokens, and what comes out without a cluster."""
    folder = tmp_path_factory.mktemp("sources")
    save_small_llama(folder / "model")
    save_tokens(folder / "tokens.npy", 37)
    compress(folder, folder / "expected")
    return folder


def compress(folder: Path, out: Path, **options: Any) -> bytes:
    trueaxis.compress(folder / "model", out, bits=9, calibration=[folder / "tokens.npy"], **options)
    return (out / "model.safetensors").read_bytes()


def test_same_bytes_on_a_cluster(cluster: Any, sources: Path, tmp_path: Path) -> None:
    assert len(cluster.list_all_nodes()) == 2
    expected = (sources / "expected" / "model.safetensors").read_bytes()
    assert compress(sources, tmp_path / "out", engine="ray") == expected


def test_chunks_of_text_on_a_cluster(cluster: Any, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(sources / "model")
    tokens = np.random.default_rng(1).integers(0, 37, (300, 32))
    expected, calls = calibrate(checkpoint, tokens, seed=0, threads=1), []
    call = OnRay.call

    def counted(engine: OnRay, function: Any, *rest: Any) -> Any:
        calls.append(function)
        return call(engine, function, *rest)

    monkeypatch.setattr(OnRay, "call", counted)
    with engine_of("ray") as engine:
        found = calibrate(checkpoint, tokens, seed=0, engine=engine)
    assert calls == [hear] * 3 * len(route(checkpoint).blocks)
    for space, total in expected.sums.items():
        assert np.array_equal(found.sums[space], total)


def test_a_straggler_changes_no_order(cluster: Any) -> None:
    def late(plan: int, seconds: float) -> int:  # travels with the call: workers have no tests to import
        time.sleep(seconds)
        return plan

    with engine_of("ray") as engine:
        assert engine.side_by_side(1) == 3
        found = ordered_map(lambda n: engine.call(late, n, 2.0 if n == 0 else 0.0), range(5), 5)
    assert found == [0, 1, 2, 3, 4]


def test_a_call_that_is_lost_for_good(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.engine.RETRIES", 0)

    def dies(plan: int) -> None:
        os._exit(plan)

    def refuses(plan: int) -> None:
        raise ValueError(plan)

    with engine_of("ray") as engine:
        with pytest.raises(TrueaxisError, match=r"^the Ray cluster lost a call, and 0 repetitions of it: .*--resume"):
            engine.call(dies, 7)
        with pytest.raises(ValueError, match="7"):
            engine.call(refuses, 7)


def test_a_node_lost_half_way(cluster: Any, sources: Path, tmp_path: Path) -> None:
    lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    passes: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "search" and not passes:
            passes.append(done)
            cluster.remove_node(lost, allow_graceful=False)

    expected = (sources / "expected" / "model.safetensors").read_bytes()
    assert compress(sources, tmp_path / "out", engine="ray", progress=progress) == expected
    assert passes


def test_a_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the engine ray needs trueaxis[ray]")

    def late(**_options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(TrueaxisError, match=r"^Ray does not start on this machine: The current node"), engine_of("ray"):
        raise AssertionError("not reached")
    with pytest.raises(TrueaxisError, match=r"^10\.0\.0\.1:6379: no Ray cluster"), engine_of("ray", "10.0.0.1:6379"):
        raise AssertionError("not reached")


def test_engines_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine_of("local") as engine:
        assert engine is LOCAL and engine.call(pow, 3, 2) == 9
    with pytest.raises(TrueaxisError, match=r"^engine 'cloud' is not one of: local, ray"), engine_of("cloud"):
        raise AssertionError("not reached")
    with pytest.raises(TrueaxisError, match="goes with the engine ray"), engine_of("local", "1.2.3.4:5"):
        raise AssertionError("not reached")
    with pytest.raises(SystemExit):
        main(["compress", "model", str(tmp_path / "out"), "--bits", "3", "--engine", "cloud"])
    assert "invalid choice: 'cloud'" in capsys.readouterr().err
