"""Block by block against one plain forward pass; parts against the whole; the text of errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trueaxis.metric.calibrate import calibrate, load_model, load_tokens, tokenize
from trueaxis.metric.source import text_length
from trueaxis.metric.statistics import load_statistics, merge
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route
from trueaxis.types import CalibrationError, CheckpointError


@pytest.mark.parametrize("model", ["tiny_llama", "tied_llama"])
def test_block_by_block_equals_a_plain_forward(model: str, tokens: Path, request: pytest.FixtureRequest) -> None:
    checkpoint, ids = Checkpoint.open(request.getfixturevalue(model)), load_tokens(tokens)
    ids = np.concatenate([ids] * 3)  # more than one chunk of 4,096 tokens
    steps: list[tuple[int, int, str]] = []
    statistics = calibrate(checkpoint, ids, seed=0, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3, "model.layers.0"), (2, 3, "model.layers.1"), (3, 3, "head")]

    network, places, inputs = load_model(checkpoint), route(checkpoint), {}
    modules = {space: module for listeners in places.inside for space, module in listeners.spaces.items()}
    for space, module in {**modules, "head": places.head}.items():
        network.get_submodule(module).register_forward_pre_hook(
            lambda _module, args, space=space: inputs.__setitem__(space, args[0].double())
        )
    with torch.inference_mode():
        network(torch.from_numpy(ids.astype(np.int64)))
    assert inputs.keys() == statistics.sums.keys()
    for space, activations in inputs.items():
        rows = activations.reshape(-1, activations.shape[-1]).numpy()
        assert np.allclose(statistics.sums[space], rows.T @ rows, rtol=1e-5, atol=1e-5 * (rows**2).sum(0).max())
        assert np.allclose(statistics.totals[space], rows.sum(0), rtol=1e-5, atol=1e-5 * np.abs(rows).sum(0).max())
        assert statistics.tokens[space] == ids.size
    assert np.array_equal(statistics.token_counts, np.bincount(ids.ravel(), minlength=128))


def test_parts_merge_into_the_whole(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    checkpoint, ids = Checkpoint.open(tiny_llama), load_tokens(tokens)
    whole = calibrate(checkpoint, ids, seed=0)
    parts = [calibrate(checkpoint, ids, seed=0, sequences=part) for part in (range(16), range(16, 32))]
    parts[0].save(tmp_path / "first.safetensors")
    merged = merge(parts[1], load_statistics(tmp_path / "first.safetensors"))
    merged.require(checkpoint)
    for space in whole.sums:
        assert np.allclose(merged.sums[space], whole.sums[space], rtol=1e-5, atol=1e-3)
    assert np.array_equal(merged.token_counts, whole.token_counts)
    assert np.array_equal(merged.shingles, whole.shingles)
    assert merged.tokens == whole.tokens
    assert [(chunk.first, chunk.last) for chunk in merged.chunks] == [(0, 15), (16, 31)]
    with pytest.raises(CalibrationError, match=r"share text: sequences 0 to 15 of"):
        merge(whole, parts[0])


def test_statistics_of_another_checkpoint(tiny_llama: Path, tied_llama: Path, tokens: Path) -> None:
    ids = load_tokens(tokens)
    one = calibrate(Checkpoint.open(tiny_llama), ids, seed=0)
    other = calibrate(Checkpoint.open(tied_llama), ids, seed=0)
    with pytest.raises(CalibrationError, match=r"the statistics are of another checkpoint: expected .* found"):
        one.require(Checkpoint.open(tied_llama))
    with pytest.raises(CalibrationError, match=r"cannot merge statistics of different checkpoints"):
        merge(one, other)


def test_the_random_state_of_the_caller_is_left_alone(tiny_llama: Path, tokens: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    calibrate(Checkpoint.open(tiny_llama), load_tokens(tokens), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_tokens_that_do_not_serve(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    for ids, message in (
        (np.zeros((32, 64)), "expected integers, found float64"),
        (np.zeros(64, int), r"expected shape \[sequences, length\], found \[64\]"),
        (np.zeros((0, 64), int), r"found \[0, 64\]"),
        (np.full((32, 64), 128), "found 128, but the vocabulary of .* has 128 tokens"),
        (np.full((32, 64), -1), "found -1, but the vocabulary"),
        (np.zeros((15, 64), int), "too little calibration text: 960 tokens, at least 1024"),
    ):
        with pytest.raises(CalibrationError, match=message):
            calibrate(checkpoint, ids, seed=0)
    with pytest.raises(CalibrationError, match=r"sequences: expected a range within 0 to 32"):
        calibrate(checkpoint, np.zeros((32, 64), int), seed=0, sequences=range(16, 40))


def test_weights_that_are_not_finite(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"^model\.norm\.weight: expected finite values"):
        calibrate(Checkpoint.open(directory), load_tokens(tokens), seed=0)


def test_token_files(tokens: Path, tmp_path: Path) -> None:
    assert load_tokens(tokens).shape == (32, 64)
    np.save(tmp_path / "float.npy", np.zeros((2, 2)))
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=np.zeros(2))
    for name, message in (
        ("float.npy", r"expected integer token ids \[sequences, length\], found float64 \[2, 2\]"),
        ("bad.npy", "which cannot be read"),
        ("pickle.npy", "which cannot be read"),
        ("none.npy", "which cannot be read"),
        ("archive.npz", "found an archive"),
    ):
        with pytest.raises(CalibrationError, match=message):
            load_tokens(tmp_path / name)


def _byte_tokenizer(directory: Path, *, opening: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<u>": 1, **{word: index + 2 for index, word in enumerate("abcdefgh")}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if opening:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<u>")
    wrapped.save_pretrained(directory)


@pytest.mark.parametrize(
    ("opening", "expected"), [(False, [[2, 3, 4], [5, 2, 3]]), (True, [[0, 2, 3], [0, 4, 5], [0, 2, 3]])]
)
def test_tokenize_strings_files_together(tmp_path: Path, opening: bool, expected: list[list[int]]) -> None:
    _byte_tokenizer(tmp_path, opening=opening)
    (tmp_path / "one.txt").write_text("a b c d")
    (tmp_path / "two.txt").write_text("a b c")
    found = tokenize(tmp_path, [tmp_path / "one.txt", tmp_path / "two.txt"], 3)
    assert found.tolist() == expected


def test_tokenize_errors(tmp_path: Path, tiny_llama: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a b")
    with pytest.raises(CalibrationError, match=r"the checkpoint has no tokenizer; give token ids \(\.npy\)"):
        tokenize(tiny_llama, [text], 8)
    _byte_tokenizer(tmp_path, opening=False)
    with pytest.raises(CalibrationError, match=r"too little text: 2 tokens make no sequence of 8"):
        tokenize(tmp_path, [text], 8)
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CalibrationError, match=r"text\.txt: expected a UTF-8 text file"):
        tokenize(tmp_path, [text], 8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"the tokenizer cannot be loaded"):
        tokenize(tmp_path, [text], 8)


def test_text_is_cut_to_the_positions_that_a_model_has(tmp_path: Path) -> None:
    for positions, expected in ((64, 64), (4096, 512)):
        (tmp_path / "config.json").write_text(f'{{"model_type": "gpt2", "n_positions": {positions}}}')
        assert text_length(tmp_path) == expected
    (tmp_path / "config.json").write_text('{"model_type": "unheard of"}')
    assert text_length(tmp_path) == 512
    with pytest.raises(CheckpointError, match=r"config\.json"):
        text_length(tmp_path / "absent")


def test_a_checkpoint_that_lacks_a_tensor_is_not_run_with_random_numbers(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: LlamaForCausalLM needs"):
        load_model(Checkpoint.open(tmp_path / "model"))


def test_a_tensor_too_many_is_not_reported_by_transformers(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(file), "extra.weight": torch.zeros(4, 4)}, file, metadata={"format": "pt"})
    load_model(Checkpoint.open(tmp_path / "model"))
    assert "extra" not in caplog.text and "extra" not in "".join(capfd.readouterr())


def test_a_tensor_of_another_shape_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    rows, columns = tensors[name].shape
    save_file({**tensors, name: tensors[name][: rows // 2].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"up_proj\.weight: config\.json says \[{rows}, {columns}\], .* holds"):
        load_model(Checkpoint.open(tmp_path / "model"))
