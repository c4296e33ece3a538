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
from trueaxis.export.gguf import GGUF_TYPES, gguf_places, interleaved, write_gguf
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import CheckpointError

gguf = pytest.importorskip("gguf", reason="GGUF files need gguf (trueaxis[export])")
RUN = """
import ctypes, json, sys
import llama_cpp, numpy as np
file, ids, text = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3].encode()
quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, None)
settings = llama_cpp.llama_model_default_params()
settings.use_extra_bufts = False  # kernels for reordered blocks, which builds have for processors that others lack
model = llama_cpp.llama_model_load_from_file(file.encode(), settings)
vocabulary = llama_cpp.llama_model_get_vocab(model)
found = (ctypes.c_int32 * 512)()
if text:
    ids = found[: llama_cpp.llama_tokenize(vocabulary, text, len(text), found, 512, True, False)]
context = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for place, token in enumerate(ids):
    batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
    batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
assert llama_cpp.llama_decode(context, batch) == 0
tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)
logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), tokens)).tolist()
print(json.dumps([list(ids), logits]))
"""
IDS = np.random.default_rng(0).integers(0, 128, 40).tolist()
TEXT = "def f(x):\n    return [x**2, 'don\\'t', 12345]  # größer\n\n\nclass A: pass\n"


def run_llama_cpp(file: Path, ids: list[int], text: str = "") -> tuple[list[int], np.ndarray]:
    """Tokens, those of a text if one is given, and llama.cpp's logits for them; skips where it is not installed."""
    python = python_of(PEERS["llama.cpp"])
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("needs llama.cpp: make bench-peers PEERS=llama_cpp")
    command = [python, "-c", RUN, str(file), json.dumps(ids), text]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found, logits = json.loads(run.stdout)
    return found, np.array(logits)


def expected_logits(model: Path, ids: list[int]) -> np.ndarray:
    """Of transformers, in float32."""
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids])).logits[0].numpy()


def save_random(path: Path, model_type: str, **changes: Any) -> Path:
    """A model of an architecture with random weights, norms too; d 64, 6 layers, 4/2 heads, vocabulary 128."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": None,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.08, "attention_bias": False,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **changes}))
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.uniform_(value, 0.1, 0.9)
    model.save_pretrained(path)
    return path


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
    model = request.getfixturevalue(name)
    write_gguf(Checkpoint.open(model), tmp_path / "model.gguf")
    expected = expected_logits(model, IDS)
    assert np.abs(run_llama_cpp(tmp_path / "model.gguf", IDS)[1] - expected).max() < 0.02 * np.abs(expected).max()


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 16}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    ],
    ids=["mistral", "qwen2", "qwen3", "gemma3", "llama3", "linear"],
)
def test_every_architecture_computes_the_same(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = save_random(tmp_path / "model", model_type, **changes)
    write_gguf(Checkpoint.open(model), tmp_path / "model.gguf", "F32")
    expected = expected_logits(model, IDS)
    assert np.abs(run_llama_cpp(tmp_path / "model.gguf", IDS)[1] - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_every_type_holds_the_values_about_as_well_as_its_bits_allow(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    assert write_gguf(checkpoint, tmp_path / "model.gguf", kind)[1:] == ()
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    bound = {"F32": 0.0, "F16": 1e-3, "BF16": 0.0, "Q8_0": 0.01, "Q5_0": 0.06, "Q5_1": 0.06}.get(kind, 0.12)
    for name, place in gguf_places(checkpoint).items():
        value, one = checkpoint.tensor(name).float().numpy(), found[place.name]
        value = interleaved(value, place.heads) if place.heads else value
        head = kind[0] == "Q" and name == "lm_head.weight"
        assert one.tensor_type.name == ("F32" if value.ndim == 1 else "Q8_0" if head else kind), name
        error = gguf.quants.dequantize(one.data, one.tensor_type) - value
        assert np.linalg.norm(error) <= bound * np.linalg.norm(value), name


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0"])
def test_llama_cpp_reads_text_and_blocks(kind: str, demo_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = Checkpoint.open(demo_model)
    assert write_gguf(checkpoint, tmp_path / "model.gguf", kind) == ()
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    tensors = load(demo_model / "model.safetensors")
    for name, place in gguf_places(checkpoint).items():
        one = found[place.name]
        values = gguf.quants.dequantize(one.data, one.tensor_type).astype(np.float32)
        if place.heads:
            values = values.reshape(place.heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        tensors[name] = torch.from_numpy(values.copy())
    tokens, logits = run_llama_cpp(tmp_path / "model.gguf", [], TEXT)
    assert tokens == AutoTokenizer.from_pretrained(demo_model)(TEXT)["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    network.load_state_dict(tensors, strict=False)
    with torch.inference_mode():
        expected = network(torch.tensor([tokens])).logits[0].double().log_softmax(-1).numpy()
    moved = torch.from_numpy(logits).log_softmax(-1).numpy()
    print("KL", (np.exp(expected) * (expected - moved)).sum(-1).mean())
    # llama.cpp rounds what enters blocks to 8 bits
    assert (np.exp(expected) * (expected - moved)).sum(-1).mean() < 2e-3


def edited(tmp_path: Path, **changes: Any) -> Checkpoint:
    """A small llama whose config.json says something else."""
    save_small_llama(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **changes}))
    return Checkpoint.open(tmp_path / "model")


def test_what_has_no_place_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"are written for LlamaForCausalLM, .*; this is GPT2LMHeadModel"):
        gguf_places(edited(tmp_path, architectures=["GPT2LMHeadModel"]))
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(CheckpointError, match="positions of type dynamic"):
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
