"""GGUF files: every tensor at its place with its values, and logits of llama.cpp that are those of transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import save_small_llama
from trueaxis.comparison.peer import PEERS, python_of
from trueaxis.export.gguf import gguf_places, interleaved, write_gguf
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import CheckpointError

gguf = pytest.importorskip("gguf", reason="GGUF files need gguf (trueaxis[gguf])")
RUN = """
import json, sys
import llama_cpp, numpy as np
file, ids = sys.argv[1], json.loads(sys.argv[2])
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
context = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for place, token in enumerate(ids):
    batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
    batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
assert llama_cpp.llama_decode(context, batch) == 0
tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
print(json.dumps(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), tokens)).tolist()))
"""


def read(file: Path) -> dict[str, Any]:
    """Tensors by name, in numpy's order of dimensions."""
    return {one.name: np.array(one.data) for one in gguf.GGUFReader(file).tensors}


def test_every_tensor_is_at_its_place(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    write_gguf(checkpoint, tmp_path / "model.gguf")
    found, places = read(tmp_path / "model.gguf"), gguf_places(checkpoint)
    assert {place.name for place in places.values()} == set(found) and len(found) == len(checkpoint.entries)
    for name, place in places.items():
        expected = checkpoint.tensor(name).float().numpy()
        expected = expected if expected.ndim == 1 else expected.astype(np.float16)
        assert np.array_equal(found[place.name], interleaved(expected, place.heads) if place.heads else expected), name
    assert places["model.layers.1.self_attn.k_proj.weight"].name == "blk.1.attn_k.weight"
    assert [places[f"model.layers.0.self_attn.{one}_proj.weight"].heads for one in "qkvo"] == [4, 2, 0, 0]


def test_a_tied_head_is_left_out(tied_llama: Path, tmp_path: Path) -> None:
    write_gguf(Checkpoint.open(tied_llama), tmp_path / "model.gguf")
    assert "output.weight" not in read(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["tiny_llama", "tied_llama"])
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM

    python = python_of(PEERS["llama.cpp"])
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("needs llama.cpp: make bench-peers PEERS=llama_cpp")
    model, ids = request.getfixturevalue(name), np.random.default_rng(0).integers(0, 128, 40).tolist()
    write_gguf(Checkpoint.open(model), tmp_path / "model.gguf")
    command = [python, "-c", RUN, str(tmp_path / "model.gguf"), json.dumps(ids)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    with torch.inference_mode():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        expected = network(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(np.array(json.loads(run.stdout)) - expected).max() < 0.02 * np.abs(expected).max()


def edited(tmp_path: Path, **changes: Any) -> Checkpoint:
    """A small llama whose config.json says something else."""
    save_small_llama(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **changes}))
    return Checkpoint.open(tmp_path / "model")


def test_what_has_no_place_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"are written for LlamaForCausalLM, .*; this is GPT2LMHeadModel"):
        gguf_places(edited(tmp_path, architectures=["GPT2LMHeadModel"]))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(CheckpointError, match="positions of type linear"):
        write_gguf(edited(tmp_path, rope_parameters=scaled), tmp_path / "model.gguf")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    extra = {**tensors, "model.layers.0.self_attn.rotary.weight": torch.ones(2)}
    save_file(extra, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"rotary\.weight: a GGUF file of the architecture llama has no place"):
        gguf_places(edited_again(tmp_path))
    tensors["lm_head.weight"][0, 0] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: holds values beyond 65504"):
        write_gguf(edited_again(tmp_path), tmp_path / "model.gguf")


def edited_again(tmp_path: Path) -> Checkpoint:
    """The model as it lies there, with ordinary positions."""
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(tmp_path / "model")
