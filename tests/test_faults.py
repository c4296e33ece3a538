"""Faults of the machine around a run: full disks, read-only media, Ctrl-C, several at work on one directory."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis import cli
from trueaxis.runtime.decode import Decoder

Arguments = Callable[[Path, Path], list[str]]  # of one command, from the folder of inputs and the place of its output


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, a fine-tune, tokens to calibrate and to evaluate on, and the model compressed."""
    folder = tmp_path_factory.mktemp("inputs")
    save_small_llama(folder / "model", num_hidden_layers=2)
    save_small_llama(folder / "tune", num_hidden_layers=2)
    save_tokens(folder / "tokens.npy", 37)
    save_tokens(folder / "other.npy", 31, sequences=8)
    trueaxis.compress(folder / "model", folder / "small", bits=9, calibration=[folder / "tokens.npy"])
    return folder


def compress(inputs: Path, out: Path) -> list[str]:
    return ["compress", str(inputs / "model"), str(out), "--bits", "9", "--calibration", str(inputs / "tokens.npy")]


def resume(inputs: Path, out: Path) -> list[str]:
    return [*compress(inputs, out), "--resume"]


def keep_statistics(inputs: Path, out: Path) -> list[str]:
    return [*compress(inputs, out), "--statistics", str(out.parent / "statistics.safetensors")]


def lossless(inputs: Path, out: Path) -> list[str]:
    return ["compress", str(inputs / "model"), str(out), "--lossless"]


def family(inputs: Path, out: Path) -> list[str]:
    models, text = [str(inputs / "model"), str(inputs / "tune")], str(inputs / "tokens.npy")
    return ["compress-family", *models, str(out), "--bits-delta", "9", "--calibration", text]


def sweep(inputs: Path, out: Path) -> list[str]:
    files = ["--calibration", str(inputs / "tokens.npy"), "--evaluation", str(inputs / "other.npy")]
    return ["sweep", str(inputs / "model"), "--bits", "9,10", *files, "--output", str(out)]


def unpack(inputs: Path, out: Path) -> list[str]:
    return ["unpack", str(inputs / "small"), str(out)]


def report(inputs: Path, out: Path) -> list[str]:
    return ["report", str(inputs / "small"), "--output", f"{out}.html"]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """While the context lasts, writing a file beyond so many bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("arguments", [compress, resume, keep_statistics, lossless, family, sweep, unpack, report])
def test_a_full_disk(arguments: Arguments, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At every size of file: one line that names it, code 1, nothing in part; with room again it goes through."""
    if arguments is report:
        pytest.importorskip("plotly", reason="the report needs trueaxis[report]")
    before = digests(inputs)
    for size in (0, 300, 1_000, 6_000):
        out = tmp_path / f"{size}" / "out"
        out.parent.mkdir()
        with files_up_to(size):
            assert cli.main(arguments(inputs, out)) == 1
        message = capsys.readouterr().err
        assert message.startswith("trueaxis: ") and message.count("\n") == 1
        assert str(out.parent) in message
        assert not out.exists() or arguments in (family, sweep)  # parts of these are outputs of their own
        left = {file.name for file in out.parent.iterdir()} - {"out"}
        assert left <= ({".out.journal"} if arguments is resume else set())
    assert cli.main(arguments(inputs, out)) == 0
    assert not [file for file in out.parent.rglob(".*")]
    assert digests(inputs) == before


@contextmanager
def disk_of(folder: Path, size: int) -> Iterator[None]:
    """While the context lasts, a folder is a disk of so many bytes."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("memory", [[], ["--memory", "0"]], ids=["in memory", "in scratch"])
@pytest.mark.parametrize("arguments", [compress, resume, unpack])
def test_a_small_disk_that_fills(
    arguments: Arguments,
    memory: list[str],
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file system that really is full: one line, and nothing left; scratch fills it as outputs do."""
    if memory and arguments is unpack:
        pytest.skip("unpack has no scratch")
    monkeypatch.setattr("trueaxis.scratch.SMALLEST", 1)
    with disk_of(tmp_path, 16 << 10):
        assert cli.main([*arguments(inputs, tmp_path / "out"), *memory]) == 1
        message = capsys.readouterr().err
        assert message.startswith("trueaxis: ") and message.count("\n") == 1
        assert str(tmp_path) in message
        assert {file.name for file in tmp_path.iterdir()} <= ({".out.journal"} if arguments is resume else set())


class _Interrupting:
    """Stands for the progress bar: raises KeyboardInterrupt at one call of one stage, and remembers all calls."""

    def __init__(self, stage: str, call: int) -> None:
        self.calls: list[str] = []
        self._at = (stage, call)

    def __enter__(self) -> Callable[[str, int, int], None]:
        return self._progress

    def __exit__(self, *_: object) -> None: ...

    def _progress(self, stage: str, done: int, total: int) -> None:
        if (stage, self.calls.count(stage)) == self._at:
            raise KeyboardInterrupt
        self.calls.append(stage)


@pytest.mark.parametrize("arguments", [compress, resume, lossless, family, sweep])
def test_control_c_at_every_stage(
    arguments: Arguments, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """At the first and the last call of each stage; whatever is there afterwards is whole."""
    heard = _Interrupting("", 0)
    monkeypatch.setattr(cli, "_progress_bar", lambda: heard)
    assert cli.main(arguments(inputs, tmp_path / "whole" / "out")) == 0
    expected, before = digests(tmp_path / "whole" / "out"), digests(inputs)
    shutil.rmtree(tmp_path / "whole")
    capsys.readouterr()
    moments = {(stage, call) for stage in set(heard.calls) for call in (0, heard.calls.count(stage) - 1)}
    assert moments
    for stage, call in sorted(moments):
        out = tmp_path / f"{stage} {call}" / "out"
        monkeypatch.setattr(cli, "_progress_bar", lambda at=(stage, call): _Interrupting(*at))
        assert cli.main(arguments(inputs, out)) == 130, (stage, call)
        assert capsys.readouterr().err == "trueaxis: interrupted; nothing was written in part\n"
        for part in out.glob("**/config.json"):
            trueaxis.verify(part.parent, out / "base" if part.parent.parent.name == "members" else None)
        left = {file.name for file in out.parent.iterdir()} if out.parent.is_dir() else set()
        assert left - {"out"} <= ({".out.journal"} if arguments is resume else set())
    if arguments is resume:
        monkeypatch.setattr(cli, "_progress_bar", lambda: _Interrupting("", 0))
        assert cli.main(arguments(inputs, out)) == 0
        assert {**digests(out), "trueaxis.json": ""} == {**expected, "trueaxis.json": ""}
    assert digests(inputs) == before


@pytest.mark.parametrize(
    ("arguments", "where"), [(unpack, "trueaxis.runtime.plain._write_shard"), (report, "pathlib.Path.replace")]
)
def test_control_c_where_nothing_tells_of_progress(
    arguments: Arguments, where: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments is report:
        pytest.importorskip("plotly", reason="the report needs trueaxis[report]")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(where, interrupt)
        assert cli.main(arguments(inputs, tmp_path / "out")) == 130
    assert list(tmp_path.iterdir()) == []
    assert cli.main(arguments(inputs, tmp_path / "out")) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """While the context lasts, nothing in a folder can be changed; for root that takes a mount."""
    folder.chmod(0o555)
    mounted = False
    try:
        if _writable(folder):
            bind = ["mount", "--bind", str(folder), str(folder)]
            mounted = subprocess.run(bind, capture_output=True, check=False).returncode == 0
            again = ["mount", "-o", "remount,ro,bind", str(folder)]
            if not mounted or subprocess.run(again, capture_output=True, check=False).returncode or _writable(folder):
                pytest.skip("this user may write anywhere, and may not mount")
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o755)


def _writable(folder: Path) -> bool:
    try:
        (folder / "probe").mkdir()
    except OSError:
        return False
    (folder / "probe").rmdir()
    return True


def test_read_only_media(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All inputs may be read-only; an output there is refused before any work."""
    with read_only(inputs):
        for number, arguments in enumerate((compress, lossless, family, unpack)):
            assert cli.main(arguments(inputs, tmp_path / f"{number}")) == 0
        assert cli.main(["verify", str(inputs / "small")]) == 0
        capsys.readouterr()
        for arguments in (compress, resume, lossless, unpack):
            assert cli.main(arguments(inputs, inputs / "out")) == 1
            assert f"{inputs}" in capsys.readouterr().err
        assert not (inputs / "out").exists()


def test_two_readers_at_once(inputs: Path) -> None:
    """Of one decoder, and of two."""
    one, two = Decoder(inputs / "small"), Decoder(inputs / "small")
    expected = {name: value.clone() for name, value in Decoder(inputs / "small").tensors().items()}
    wrong: list[str] = []

    def read(decoder: Decoder, names: list[str]) -> None:
        wrong.extend(name for name in names if not decoder.tensor(name).equal(expected[name]))

    names = list(expected)
    pairs = ((one, names), (one, names[::-1]), (two, names))
    threads = [threading.Thread(target=read, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_reader_while_a_writer_fails(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being replaced can be read all the while, by a reader from before and by new ones."""
    out = Path(shutil.copytree(inputs / "small", tmp_path / "out"))
    before, opened = digests(out), Decoder(out)
    for stage in ("calibrate", "search"):
        seen: list[int] = []

        def read(name: str, done: int, total: int, seen: list[int] = seen, stage: str = stage) -> None:
            seen.append(trueaxis.verify(out)["tensors"] + len(opened.tensors()))
            if name == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trueaxis.compress(
                inputs / "model", out, bits=10, calibration=[inputs / "tokens.npy"], overwrite=True, progress=read
            )
        assert seen
        assert digests(out) == before
    with files_up_to(1_000):
        assert cli.main([*compress(inputs, out), "--overwrite"]) == 1
    assert digests(out) == before
    assert len(opened.tensors()) == len(Decoder(out).tensors())
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_links_of_a_hub_cache_are_read_and_never_written_through(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot whose files are links into blobs is a model; a link is no place for an output."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0123abcd", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((inputs / "model").iterdir())):
        shutil.copyfile(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    before = digests(tmp_path)
    trueaxis.compress(snapshot, tmp_path / "out", bits=9, calibration=[inputs / "tokens.npy"])
    mine, other = digests(tmp_path / "out"), digests(inputs / "small")
    assert {**mine, "trueaxis.json": ""} == {**other, "trueaxis.json": ""}
    assert not [file for file in (tmp_path / "out").iterdir() if file.is_symlink()]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for arguments in (compress, resume, lossless, unpack, family):
        assert cli.main(arguments(inputs, tmp_path / "link")) == 1
        assert "symbolic link" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "link").unlink()
    assert digests(tmp_path) == before
