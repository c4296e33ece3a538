"""Whole containers of any tensors: what is written is read; any change of bytes is refused, and no more."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis.container import CONFIG, Container, Entry, pack_shards
from trueaxis.header import config_hash, is_tensor_name
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.runtime.planes import bits_of, pack_planes
from trueaxis.types import FormatError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CONFIGURATION = {"model_type": "llama", "quantization_config": {"quant_method": "trueaxis", "version": 1}}
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=30).filter(is_tensor_name)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
TENSORS = st.dictionaries(
    NAMES, st.tuples(SHAPES, st.sampled_from(list(DTYPES)), st.integers(0, 99)), min_size=1, max_size=6
)
Tensors = dict[str, tuple[tuple[int, ...], str, int]]


def values(shape: tuple[int, ...], dtype: str, seed: int) -> torch.Tensor:
    """Random numbers; those of an even seed are whole, so that many bits are equal."""
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (found.round() if seed % 2 == 0 else found).to(DTYPES[dtype])


def write(path: Path, tensors: Tensors, shard_bytes: int) -> None:
    entries = [
        Entry(name, shape, dtype, (Record(RecordType.PLANES, pack_planes(bits_of(values(shape, dtype, seed)))),))
        for name, (shape, dtype, seed) in tensors.items()
    ]
    entries.append(
        Entry("again", *next(iter(tensors.values()))[:2], (Record(RecordType.ALIAS, next(iter(tensors)).encode()),))
    )
    facts = {
        "parameters": 1, "config": config_hash(CONFIGURATION), "config_bytes": 2, "copied": [], "gauge": [],
        "recipe": {}, "sketch": [],
    }  # fmt: skip
    for name, pieces in pack_shards(facts, [], entries, shard_bytes).items():
        (path / name).write_bytes(b"".join(pieces))
    (path / CONFIG).write_text(json.dumps(CONFIGURATION))


@settings(max_examples=60, deadline=None)
@given(TENSORS.filter(lambda tensors: "again" not in tensors), st.integers(1, 2000))
def test_any_tensors_in_any_shards_come_back(tensors: Tensors, shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), tensors, shard_bytes)
        verify(folder)
        decoder = Decoder(folder)
        assert list(decoder.names()) == [*tensors, "again"]
        for name, (shape, dtype, seed) in tensors.items():
            found = decoder.tensor(name)
            assert found.dtype == DTYPES[dtype]
            assert torch.equal(found, values(shape, dtype, seed))
        assert torch.equal(decoder.tensor("again"), decoder.tensor(next(iter(tensors))))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 2000))
def test_any_change_is_refused(data: st.DataObject, shard_bytes: int) -> None:
    tensors = {"one": ((5, 3), "F32", 1), "two": ((4,), "BF16", 2), "three": ((2, 2, 2), "F16", 3)}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), tensors, shard_bytes)
        file = data.draw(st.sampled_from(sorted(Container(folder).files)))
        before = file.read_bytes()
        start = data.draw(st.integers(0, len(before)))
        removed = data.draw(st.integers(0, 8))
        after = before[:start] + data.draw(st.binary(max_size=8)) + before[start + removed :]
        file.write_bytes(after)
        try:
            verify(folder)
        except FormatError:
            assert after != before
        else:
            assert after == before or (file.suffix == ".json" and json.loads(after) == json.loads(before))
