"""Auto classes against `trueaxis.load`: the same tensors for any path, dtype and class; nothing is left over."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import trueaxis
import trueaxis.hf
from trueaxis.types import TrueaxisError

IDS = torch.arange(24)[None]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test leaves the temporary directory empty."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    gc.collect()
    assert list(directory.iterdir()) == []


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("directory", ["compressed_llama", "compressed_tied"])
def test_the_same_model_as_load_without_a_warning(directory: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(directory)
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert lines == []
    assert not any(info.values())
    expected = trueaxis.load(out)
    assert same_state(model, expected)
    assert type(model) is type(expected)
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_other_auto_classes(compressed_llama: Path) -> None:
    body = AutoModel.from_pretrained(compressed_llama)
    assert same_state(body, trueaxis.load(compressed_llama).model)
    assert AutoConfig.from_pretrained(compressed_llama).hidden_size == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype_is_honoured(compressed_llama: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed_llama, dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert same_state(model, trueaxis.load(compressed_llama, dtype))


def test_save_pretrained_writes_a_plain_checkpoint(compressed_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed_llama)
    model.save_pretrained(tmp_path / "plain")
    assert "quantization" not in (tmp_path / "plain" / "config.json").read_text()
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM\n"
        "AutoModelForCausalLM.from_pretrained(sys.argv[1])\nassert 'trueaxis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "plain"], check=True, capture_output=True)
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), model)


def test_registering_again_does_no_harm(compressed_llama: Path) -> None:
    trueaxis.hf.register()
    assert AutoModelForCausalLM.from_pretrained(compressed_llama).dtype == torch.bfloat16


def test_new_process_slash_and_relative_path(compressed_llama: Path, tmp_path: Path) -> None:
    code = (
        "import torch, trueaxis.hf\nfrom transformers import AutoModelForCausalLM\n"
        f"names = 'tiny/', './tiny', {str(compressed_llama)!r}\n"
        "models = [AutoModelForCausalLM.from_pretrained(name) for name in names]\n"
        f"torch.save([model.state_dict() for model in models], {str(tmp_path / 'states.pt')!r})\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=compressed_llama.parent, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    expected = trueaxis.load(compressed_llama).state_dict()
    for state in torch.load(tmp_path / "states.pt"):
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_device_map(compressed_llama: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers needs accelerate for device_map")
    model = AutoModelForCausalLM.from_pretrained(compressed_llama, device_map="cpu")
    assert same_state(model, trueaxis.load(compressed_llama))


def test_hub_cache_of_symbolic_links(compressed_llama: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for directory in (snapshot, blobs, repository / "refs"):
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(compressed_llama.iterdir())):
        shutil.copyfile(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    expected = trueaxis.load(compressed_llama)
    assert same_state(trueaxis.load(snapshot), expected)
    model = AutoModelForCausalLM.from_pretrained("someone/tiny", cache_dir=tmp_path / "hub", local_files_only=True)
    assert same_state(model, expected)
    trueaxis.verify(snapshot)


def test_shards(tiny_llama: Path, compressed_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.assemble.SHARD_BYTES", 1_000)
    monkeypatch.setattr("trueaxis.runtime.hf.SHARD_BYTES", 50_000)
    statistics = compressed_llama.parent / "statistics.safetensors"
    trueaxis.compress(tiny_llama, tmp_path / "out", bits=6, statistics=statistics)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), trueaxis.load(tmp_path / "out"))


def test_damage_is_named(compressed_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(compressed_llama, tmp_path / "copy")
    data = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(data)
    with pytest.raises(trueaxis.FormatError, match=r"model\.norm\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "copy")


def test_refuses_to_compress_while_loading(tiny_llama: Path) -> None:
    from trueaxis.runtime.hf import TrueaxisConfig

    with pytest.raises(TrueaxisError, match="it does not compress"):
        AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=TrueaxisConfig())


def test_other_forms_of_weights_are_refused(compressed_llama: Path) -> None:
    config = AutoConfig.from_pretrained(compressed_llama)
    config.quantization_config["resident"] = "compressed"
    with pytest.raises(TrueaxisError, match="resident="):
        AutoModelForCausalLM.from_pretrained(compressed_llama, config=config)
