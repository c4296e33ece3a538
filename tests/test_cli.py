"""The command line: one JSON object per command, the same as in Python; exit codes; help; silence."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import trueaxis
from trueaxis.arguments import build_parser, parse_size
from trueaxis.cli import main

COMMANDS = ["compress", "inspect", "verify", "unpack"]


@pytest.fixture(scope="module")
def statistics(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli")
    trueaxis.compress(tiny_llama, out / "out", bits=5, calibration=[tokens], statistics=out / "statistics")
    return out / "statistics"


@pytest.fixture(scope="module")
def compressed(statistics: Path) -> Path:
    return statistics.parent / "out"


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """The one object that a successful command prints, and nothing else."""
    assert main([str(argument) for argument in (*arguments, "--json")]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1
    found = json.loads(captured.out)
    assert isinstance(found, dict)
    return found


def plain(value: object) -> Any:
    return json.loads(json.dumps(value))


def test_compress_prints_the_report(
    tiny_llama: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "compress", tiny_llama, tmp_path / "a", "--bits", "5", "--statistics", statistics)
    report = trueaxis.compress(tiny_llama, tmp_path / "b", bits=5, statistics=statistics)
    machine = ("seconds", "peak_memory_bytes")
    expected = plain(asdict(report))
    assert {k: v for k, v in found.items() if k not in machine} == {
        k: v for k, v in expected.items() if k not in machine
    }
    assert found == json.loads((tmp_path / "a" / "trueaxis.json").read_text())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    wanted = {"name", "shape", "coordinates", "bits_per_weight", "relative_distortion", "limit_bits", "gap_bits"}
    assert wanted <= set(found["tensors"][0])
    assert {"file_bytes", "parameters", "bits_per_param", "seconds", "peak_memory_bytes"} <= set(found)


def test_options_reach_the_call(
    tiny_llama: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", "0.06MB", "--statistics", statistics, "--recipe", "rtn", "--threads", "1", "--seed", "3"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    found = run_json(capsys, "compress", tiny_llama, tmp_path / "out", *options, "--overwrite")
    assert 0.99 * 60_000 <= found["file_bytes"] <= 60_000
    assert found["recipe"]["stages"]["quantize"] == {"type": "rtn"}
    assert not (tmp_path / "out" / "old").exists()


def test_tune_is_a_stage_of_the_recipe(
    tiny_llama: Path, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(
        capsys, "compress", tiny_llama, tmp_path / "out", "--bits", "4", "--calibration", tokens, "--recipe", "rtn",
        "--tune",
    )  # fmt: skip
    assert found["recipe"]["stages"]["quantize"] == {"type": "rtn"}
    assert found["recipe"]["stages"]["tune"]["type"] == "gains"


def test_inspect_and_verify_print_what_python_returns(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "inspect", compressed) == plain(trueaxis.inspect(compressed))
    assert run_json(capsys, "verify", compressed) == plain(trueaxis.verify(compressed))


def test_unpack_prints_where(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "unpack", compressed, tmp_path / "a", "--dtype", "float16")
    assert found == {"directory": str(tmp_path / "a")}
    assert trueaxis.unpack(compressed, tmp_path / "b", "float16") == tmp_path / "b"
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert set(one) == set(two) and all(bool((one[name] == two[name]).all()) for name in one)


def test_inspect_shows_where_the_bytes_go(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(compressed)]) == 0
    text = capsys.readouterr().out
    found = trueaxis.inspect(compressed)
    for purpose, size in found["spent_bytes"].items():
        assert f"{purpose} {size:,}" in text
    assert any(line.startswith("channels: ") for line in found["gauge"])
    assert all(json.dumps(line) in text for line in found["gauge"])
    for row in found["report"]["tensors"]:
        assert f"{row['bits_per_weight']:.4f}" in next(line for line in text.splitlines() if row["name"] in line)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_text_names_the_directory(command: str, compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(compressed)]) == 0
    assert capsys.readouterr().out.startswith(f"{compressed}: ")


def test_bad_input_exits_1_with_one_line(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["verify", tmp_path / "nothing"],
        ["inspect", tmp_path / "nothing"],
        ["unpack", tmp_path / "nothing", tmp_path / "out"],
        ["compress", tmp_path / "nothing", tmp_path / "out", "--bits", "3"],
        ["compress", tiny_llama, tmp_path / "out", "--bits", "3", "--statistics", tmp_path / "nothing"],
        ["compress", tiny_llama, tmp_path / "out", "--bits", "3", "--recipe", "awq"],
    ):
        assert main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("trueaxis: ") and captured.err.count("\n") == 1
        assert main([*map(str, arguments), "--json"]) == 1
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert found["error"].endswith("Error") and f"trueaxis: {found['message']}\n" == captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["squash"],
        ["compress", "a", "b"],
        ["compress", "a", "b", "--bits", "3", "--size", "1MB"],
        ["compress", "a", "b", "--bits", "three"],
        ["compress", "a", "b", "--size", "1 parsec"],
        ["unpack", "a"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: trueaxis" in capsys.readouterr().err


def test_nobody_reads_to_the_end(compressed: Path) -> None:
    command = [sys.executable, "-m", "trueaxis.cli", "inspect", str(compressed), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_interruption_exits_130(
    compressed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trueaxis.runtime.load.verify", interrupt)
    assert main(["verify", str(compressed)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_reads_like_a_manual(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is named with a sentence, every option of every command explained."""
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text
    assert "trueaxis compress llama llama-3bit --bits 3 --calibration text.txt" in text
    parser = build_parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert set(subparsers.choices) >= set(COMMANDS)
    for command, sub in subparsers.choices.items():
        assert sub.description, command
        for action in sub._actions:
            assert action.help, (command, action.dest)
        assert "--json" in sub.format_help()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"trueaxis {trueaxis.__version__}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("123456", 123456), ("900MB", 900 * 10**6), ("1.5gb", 1_500_000_000), (" 2 KiB ", 2048), ("0.5k" + "b", 500)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e3", "1 TB?", "nan"])
def test_bad_sizes_say_what_a_size_is(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="900MB"):
        parse_size(text)


def test_progress_is_off_unless_on_a_terminal(tiny_llama: Path, statistics: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trueaxis.cli", "compress", str(tiny_llama), str(tmp_path / "out"), "--bits", "5"]
    command += ["--statistics", str(statistics), "--overwrite"]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    assert quiet.stderr == "" and "bits per parameter" in quiet.stdout
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    os.close(ours)
    assert b"search" in seen and b"search" not in shown.stdout


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""
