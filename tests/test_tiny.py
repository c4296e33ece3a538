"""The whole product in seconds: compress, verify, load in a new process, unpack, refuse a damaged file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from trueaxis.cli import main
from trueaxis.runtime.decode import Decoder


@pytest.fixture(scope="module")
def compressed(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "out"
    trueaxis.compress(tiny_llama, out, bits=5, calibration=[tokens], statistics=out.parent / "statistics.safetensors")
    return out


def rate(out: Path, original: Path, parameters: int) -> float:
    files = [*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")]
    growth = (out / "config.json").stat().st_size - (original / "config.json").stat().st_size
    return (sum(file.stat().st_size for file in files) + growth) * 8 / parameters


def test_file_is_on_target(compressed: Path, tiny_llama: Path) -> None:
    report = json.loads((compressed / "trueaxis.json").read_text())
    assert report["bits_per_param"] == pytest.approx(rate(compressed, tiny_llama, report["parameters"]))
    assert 5 * 0.99 <= report["bits_per_param"] <= 5
    tensors = {row["name"]: row for row in report["tensors"]}
    sizes = {name: np.prod(row["shape"]) for name, row in tensors.items()}
    spent = sum(row["bits_per_weight"] * sizes[name] / 8 for name, row in tensors.items())
    assert spent == pytest.approx(report["file_bytes"] - report["header_bytes"], abs=1)


def test_loads_in_a_new_process_without_the_report(compressed: Path, tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compressed, copy)
    (copy / "trueaxis.json").unlink()
    code = (
        "import sys, torch, trueaxis\n"
        "model = trueaxis.load(sys.argv[1])\n"
        "ids = torch.arange(32)[None]\n"
        "torch.save((model(ids).logits, model.state_dict()), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(copy), str(tmp_path / "out.pt")], check=True, capture_output=True)
    logits, state = torch.load(tmp_path / "out.pt")
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.inference_mode():
        expected = original(torch.arange(32)[None]).logits
    assert torch.linalg.vector_norm((logits - expected).float()) < 0.2 * torch.linalg.vector_norm(expected.float())
    here = trueaxis.load(compressed).state_dict()
    for name, value in original.state_dict().items():
        assert state[name].dtype == value.dtype == torch.bfloat16
        assert torch.equal(state[name], here[name]), name


def test_verify_and_inspect_tell_the_truth(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(compressed)]) == 0
    assert main(["inspect", str(compressed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["file_bytes"] == found["report"]["file_bytes"]
    assert {row["storage"] for row in found["tensors"]} == {"quantized", "exact"}


def test_unpack_needs_no_trueaxis(compressed: Path, tmp_path: Path) -> None:
    assert main(["unpack", str(compressed), str(tmp_path / "plain")]) == 0
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    loaded = trueaxis.load(compressed)
    assert plain.config.to_dict().get("quantization_config") is None
    for name, value in loaded.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


def test_same_bytes_for_any_number_of_threads(compressed: Path, tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        out = tmp_path / str(threads)
        statistics = compressed.parent / "statistics.safetensors"
        trueaxis.compress(tiny_llama, out, bits=5, calibration=[tokens], statistics=statistics, threads=threads)
        assert (out / "model.safetensors").read_bytes() == (compressed / "model.safetensors").read_bytes()


def test_damaged_file_is_refused_by_name(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compressed, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    last = list(Decoder(copy).container.tensors)[-1]
    (copy / "model.safetensors").write_bytes(data)
    assert main(["verify", str(copy)]) == 1
    assert last in capsys.readouterr().err
    with pytest.raises(trueaxis.FormatError, match=last):
        trueaxis.load(copy)


def test_tied_model_stays_tied(tied_llama: Path, tokens: Path, tmp_path: Path) -> None:
    report = trueaxis.compress(tied_llama, tmp_path / "out", bits=6, calibration=[tokens])
    assert report.bits_per_param == pytest.approx(rate(tmp_path / "out", tied_llama, report.parameters))
    model = trueaxis.load(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32


def test_tied_model_with_a_stored_head_unpacks(tied_llama: Path, tokens: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tied_llama, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    trueaxis.compress(model, tmp_path / "out", bits=6, calibration=[tokens])
    plain = load_file(trueaxis.unpack(tmp_path / "out", tmp_path / "plain") / "model.safetensors")
    assert plain.keys() == tensors.keys()
    assert torch.equal(plain["lm_head.weight"], plain["model.embed_tokens.weight"])
