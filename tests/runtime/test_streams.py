"""Coded weights in memory: the dense model's results bit for bit, and what such a model does or refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import trueaxis
from families import CASES, build, output_of, save_tokens
from forge import dismantle, forge, residual_fields, residual_payload
from trueaxis.record import Record
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.deferred import Deferred
from trueaxis.runtime.held import Filling, HeldDecoder
from trueaxis.runtime.planes import bits_of
from trueaxis.types import TrueaxisError

IDS = torch.arange(24)[None]
GOLDEN = sorted(path.parent for path in (Path(__file__).parent.parent / "golden" / "v1").glob("*/config.json"))


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("directory", ["compressed_llama", "compressed_tied"])
def test_logits_and_generation_are_those_of_the_dense_model(directory: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(directory)
    dense, coded = trueaxis.load(out), trueaxis.load(out, resident="compressed")
    batch = torch.stack([torch.arange(9), torch.arange(30, 39), torch.arange(50, 59)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        assert torch.equal(coded(IDS).logits, dense(IDS).logits)
        assert torch.equal(coded(batch, attention_mask=mask).logits, dense(batch, attention_mask=mask).logits)
    found = coded.generate(batch, attention_mask=mask, **settings)
    assert torch.equal(found, dense.generate(batch, attention_mask=mask, **settings))
    assert type(coded) is type(dense)
    assert (coded.device, coded.dtype, coded.num_parameters()) == (dense.device, dense.dtype, dense.num_parameters())
    tied = coded.config.tie_word_embeddings
    assert (coded.lm_head.weight is coded.model.embed_tokens.weight) == tied


def test_threads_that_meet_are_refused_and_never_wrong(compressed_llama: Path) -> None:
    coded = trueaxis.load(compressed_llama, resident="compressed")
    with torch.inference_mode():
        expected = coded(IDS).logits

    def passes(_: int) -> int:
        done = 0
        with torch.inference_mode():
            for _ in range(10):
                try:
                    found = coded(IDS).logits
                except TrueaxisError as error:
                    assert "coded weights serve one pass at a time" in str(error)
                    continue
                assert torch.equal(found, expected)
                done += 1
        return done

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(passes, range(3)))


def test_memory_goes_with_the_last_reference(compressed_llama: Path) -> None:
    coded = trueaxis.load(compressed_llama, resident="compressed")
    with torch.inference_mode():
        coded(IDS)
    left = weakref.ref(coded.streams)
    gc.disable()
    try:
        del coded
        for _ in range(500):  # the thread that decodes ahead may still be at it
            if left() is None:
                break
            time.sleep(0.01)
        assert left() is None
    finally:
        gc.enable()


def test_a_device_that_is_only_told_needs_no_other_thread(
    compressed_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, coded = trueaxis.load(compressed_llama), trueaxis.load(compressed_llama, resident="compressed")
    threads: list[str] = []
    fill = Filling.__call__

    def noted(filling: Filling) -> None:
        threads.append(threading.current_thread().name)
        fill(filling)

    monkeypatch.setattr(Filling, "is_queued", True)
    monkeypatch.setattr(Filling, "__call__", noted)
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(coded(IDS).logits, dense(IDS).logits)
    here = threading.current_thread().name
    first = [name for name in threads if name != here]
    assert all(name.startswith("trueaxis-decode") for name in first)
    assert threads[: len(first)] == first  # whatever is decoded for the first time
    assert len(threads) > 2 * len(first)


# Stacked experts, fused matrices, transposed ones with reflections, layers outside of lists, two stacks of layers.
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "phi3", "gpt2", "bert with heads", "t5"])
def test_families(name: str, tmp_path: Path) -> None:
    build(CASES[name]).save_pretrained(tmp_path / "original")
    trueaxis.compress(tmp_path / "original", tmp_path / "out", bits=6, calibration=[save_tokens(tmp_path)])
    dense, coded = trueaxis.load(tmp_path / "out"), trueaxis.load(tmp_path / "out", resident="compressed")
    for _ in range(2):  # which block follows which is known the second time
        assert torch.equal(output_of(coded), output_of(dense))
    assert any(isinstance(value, Deferred) for value in coded.parameters())
    assert same_state(coded, dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype(compressed_llama: Path, dtype: torch.dtype) -> None:
    dense, coded = (trueaxis.load(compressed_llama, dtype, resident=form) for form in ("dense", "compressed"))
    with torch.inference_mode():
        assert torch.equal(coded(IDS).logits, dense(IDS).logits)


def test_exact_files(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.runtime.resident.SMALL", 1)
    trueaxis.compress_lossless(tiny_llama, tmp_path / "out")
    coded, original = trueaxis.load(tmp_path / "out", resident="compressed"), AutoModelForCausalLM.from_pretrained
    assert isinstance(coded.lm_head.weight, Deferred)
    with torch.inference_mode():
        assert torch.equal(coded(IDS).logits, original(tiny_llama)(IDS).logits)


def test_save_pretrained_and_state_dict_decode(compressed_tied: Path, tmp_path: Path) -> None:
    coded, dense = trueaxis.load(compressed_tied, resident="compressed"), trueaxis.load(compressed_tied)
    with torch.inference_mode():
        assert same_state(coded.model, dense.model)
    state = coded.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    coded.save_pretrained(tmp_path / "plain")
    assert "quantization" not in (tmp_path / "plain" / "config.json").read_text()
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), dense)


def test_torch_compile(compressed_llama: Path) -> None:
    coded, dense = trueaxis.load(compressed_llama, resident="compressed"), trueaxis.load(compressed_llama)
    compiled = torch.compile(coded, backend="eager")
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(compiled(IDS).logits, dense(IDS).logits)
    torch._dynamo.reset()


REFUSED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "another dtype": ("load with that dtype", lambda model: model.to(torch.float32)),
    "half": ("load with that dtype", lambda model: model.half()),
    "another device": ("not torch.bfloat16 on meta", lambda model: model.to("meta")),
    "training": ("to train", lambda model: model.train()),
    "gradients": ("to train", lambda model: model(inputs_embeds=torch.ones(1, 2, 64).bfloat16().requires_grad_())),
    "a copy": ("not copied or pickled", copy.deepcopy),
    "a pickle": ("not copied or pickled", pickle.dumps),
    "a weight": (r"lm_head\.weight: is coded", lambda model: model.lm_head.weight + 1),
    "another vocabulary": ("is coded", lambda model: model.resize_token_embeddings(140, mean_resizing=False)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str, compressed_llama: Path) -> None:
    message, attempt = REFUSED[what]
    model = trueaxis.load(compressed_llama, resident="compressed")
    with pytest.raises(TrueaxisError, match=message):
        attempt(model)
    with torch.inference_mode():
        assert torch.equal(model.eval()(IDS).logits, trueaxis.load(compressed_llama)(IDS).logits)


def test_what_changes_nothing_is_allowed(compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    assert model.to("cpu").eval().dtype == torch.bfloat16


def test_a_pass_that_fails_leaves_the_model_usable(compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    with torch.inference_mode():
        expected = model(IDS).logits
        with pytest.raises(IndexError):
            model(torch.full((1, 3), 1000))
        assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("place", ["model.embed_tokens", "model.layers.1.mlp", "lm_head"])
def test_a_pass_that_is_interrupted_leaves_the_model_usable(compressed_llama: Path, place: str) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    expected = model(IDS).logits

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    module = model.get_submodule(place)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(module), "__getattr__", interrupt)  # by which it reaches its weights
        model(IDS)
    assert torch.equal(model(IDS).logits, expected)
    assert isinstance(model.model.layers[1].mlp.up_proj.weight, Deferred)


def test_an_interrupted_wait_for_weights_leaves_the_model_usable(
    compressed_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    expected = model(IDS).logits

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Future, "result", interrupt)
        model(IDS)
    assert torch.equal(model(IDS).logits, expected)


def test_a_nested_call_is_refused_and_the_pass_goes_on(compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    expected, refused = model(IDS).logits, []

    def nested(*_: Any) -> None:
        try:
            model.model.layers[0](torch.zeros(1, 2, 64))
        except TrueaxisError as error:
            refused.append(str(error))

    model.model.layers[0].mlp.register_forward_pre_hook(nested)
    assert torch.equal(model(IDS).logits, expected)
    assert len(refused) == 1 and "one pass at a time" in refused[0]


def test_two_passes_at_once_are_refused(compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    model.model.layers[0].mlp.register_forward_hook(lambda *_: model.model.layers[1](torch.zeros(1, 2, 64)))
    with pytest.raises(TrueaxisError, match="one pass at a time"):
        model(IDS)


def test_memory_is_the_file_and_two_blocks(compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama, resident="compressed")
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.ndim == 2)
    found = model.streams.memory_bytes
    assert found["buffers"] == 2 * 2 * layer
    assert 0 < found["coded"] < (compressed_llama / "model.safetensors").stat().st_size
    matrices = {name for name, weight in model.named_parameters() if weight.ndim == 2}
    assert matrices == {name for name, weight in model.named_parameters() if isinstance(weight, Deferred)}


def test_models_are_freed(compressed_llama: Path) -> None:
    import gc

    model = trueaxis.load(compressed_llama, resident="compressed")
    model(IDS)
    last = weakref.ref(model)
    del model
    gc.collect()
    assert last() is None


def test_a_checksum_is_compared_when_loading(compressed_llama: Path, tmp_path: Path) -> None:
    parts = dismantle(compressed_llama)
    path = forge(tmp_path / "copy", parts)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(trueaxis.FormatError, match="checksum"):
        trueaxis.load(path, resident="compressed")


def test_a_stream_that_does_not_decode_is_named_when_its_block_runs(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "golden" / "v1" / "llama"
    parts = dismantle(path)
    name = next(name for name, found in parts.records.items() if "layers.0" in name and name.endswith("proj.weight"))
    record = parts.records[name][-1]
    fields = residual_fields(record.payload)
    if fields["shared"]:
        stream = bytearray(parts.model_records[fields["shared"]].payload)
        stream[-1] ^= 255
        parts.model_records[fields["shared"]] = Record(parts.model_records[fields["shared"]].type, bytes(stream))
    else:
        fields["rest"] = fields["rest"][:-1] + bytes([fields["rest"][-1] ^ 255])
        parts.records[name][-1] = Record(record.type, residual_payload(fields))
    model = trueaxis.load(forge(tmp_path / "copy", parts), resident="compressed")
    for _ in range(2):
        with pytest.raises(trueaxis.FormatError, match="stream"):
            model(torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_held_tensors_are_those_of_the_files(path: Path) -> None:
    held, read = HeldDecoder(path), Decoder(path)
    for name in read.names():
        expected = read.tensor(name)
        assert np.array_equal(bits_of(held.tensor(name)), bits_of(expected)), name
        if held.is_quantized(name):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                out = torch.empty(expected.shape, dtype=dtype)
                held.fill(name, out)
                assert torch.equal(out, read.tensor(name, dtype)), (name, dtype)


def test_unknown_form(compressed_llama: Path) -> None:
    with pytest.raises(TrueaxisError, match="not one of: dense, compressed, int8"):
        trueaxis.load(compressed_llama, resident="sparse")
