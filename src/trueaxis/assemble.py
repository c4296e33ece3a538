"""Assemble: quantized and exact tensors to the files of a compressed model, with an account of every byte.

outcomes of a pass ─▶ residual records, shared streams, tables ─┐
exact tensors ─▶ planes records ────────────────────────────────┴─▶ shards, config.json
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis import _core
from trueaxis.container import CONFIG, SHARD_BYTES, Entry, Pieces, pack_shards
from trueaxis.entropy.model import CLASSES, MAGNITUDES, Tables, pack_tables
from trueaxis.entropy.stream import SHARED_BELOW, pack_residual, pack_shared, segment
from trueaxis.header import config_hash
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.parallel import ordered_map
from trueaxis.record import VERSION, Record, RecordType
from trueaxis.runtime.factors import factor_records
from trueaxis.runtime.matrices import matrix_records
from trueaxis.runtime.planes import bits_of, pack_planes
from trueaxis.stages import Coder
from trueaxis.types import Array, Quantized, Transform, Weight

if TYPE_CHECKING:
    import torch

    from trueaxis.runtime.resident import Residence

WIDEST_FIRST = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, eq=False)
class Assembled:
    """A compressed model on its way to files; what is large of it may lie in scratch.

    Attributes:
        files: Name → pieces of the shards, their index, and config.json.
        tensor_bytes: Name → bytes of its records and its share of shared streams and tables.
        file_bytes: The rate's bytes: *.safetensors, their index, growth of config.json.
        header_bytes: The part of them that belongs to no tensor.
        matrices, tables: What they were made of, as long as something can still change it.
        notes: What the report should say of how they were made.
    """

    files: Mapping[str, Pieces]
    tensor_bytes: Mapping[str, float]
    file_bytes: int
    header_bytes: int
    matrices: Sequence[tuple[Weight, Quantized]] = ()
    tables: Tables | None = None
    notes: tuple[str, ...] = ()


def exact_entry(weight: Weight, tensor: torch.Tensor) -> Entry:
    """A tensor stored bit for bit."""
    check_finite(weight.name, tensor)
    return Entry(weight.name, weight.shape, weight.dtype, (Record(RecordType.PLANES, pack_planes(bits_of(tensor))),))


def alias_entries(checkpoint: Checkpoint, left_out: Container[str] = ()) -> list[Entry]:
    """Tensors that repeat another one."""
    return [
        Entry(name, tuple(checkpoint.entries[name].shape), checkpoint.entries[name].dtype,
              (Record(RecordType.ALIAS, target.encode()),))
        for name, target in checkpoint.aliases.items()
        if name not in left_out
    ]  # fmt: skip


def count_symbols(matrices: Sequence[Quantized]) -> Array:
    """Occurrences of |k| = 0..63 and beyond, uint64 [2, classes, 65], over all matrices."""
    segments = [
        (matrix.indices, matrix.contexts.row_codes, matrix.contexts.column_codes, matrix.contexts.shift, matrix.trellis)
        for matrix in matrices
    ]  # the original order of columns counts as well as that of the file, and needs no copy
    return _core.count_symbols(CLASSES, MAGNITUDES[-1], segments)


def assemble(
    checkpoint: Checkpoint,
    matrices: Sequence[tuple[Weight, Quantized]],
    exact: Sequence[Entry],
    tables: Tables,
    stage: Coder,
    header: Mapping[str, Any],
    threads: int = 1,
    transforms: Mapping[str, Sequence[Transform]] | None = None,
    sources: Mapping[str, str] | None = None,
    beside: Mapping[str, Sequence[Record]] | None = None,
    functions: Mapping[str, bytes] | None = None,
) -> Assembled:
    """All files of the compressed model; coded matrices are held in the checkpoint's scratch.

    Args:
        checkpoint: The original: its configuration and aliases.
        matrices: Quantized matrices in the order of the forward pass; slices of a tensor follow each other.
        exact: Tensors kept byte for byte.
        tables: Fitted to these matrices.
        stage: Lanes and chaining.
        header: Facts of the model for its header.
        threads: Matrices encoded side by side; the bytes do not depend on it.
        transforms: Name of a matrix → the transforms that lead back from its coordinates.
        sources: Name of a matrix → name of the tensor that it multiplies; the product has the matrix's name.
        beside: Name of a tensor → records before those of its matrices.
        functions: Name of a matrix → payload of the record of what is added to its residual.
    """
    sources = sources or {}
    groups = _shared_groups(matrices, stage)
    number_of = {weight.name: number for number, group in enumerate(groups) for weight, _ in group}
    held = checkpoint.scratch.buffer
    streams = ordered_map(
        lambda group: held(pack_shared([matrix for _, matrix in group], tables, stage.lanes)), groups, threads
    )
    payloads = ordered_map(
        lambda pair: held(pack_residual(pair[1], tables, stage.lanes, stage.chain, number_of.get(pair[0].name))),
        matrices,
        threads,
    )
    records: dict[str, list[Record]] = {}
    for (weight, _), payload in zip(matrices, payloads, strict=True):
        whole = weight.name.removesuffix(f"#{weight.factor}") if weight.factor else weight.name
        steps, source = (transforms or {}).get(whole, ()), sources.get(weight.name)
        function = (functions or {}).get(weight.name, b"")
        found = matrix_records(payload, weight.slice, weight.transposed, steps, source, function)
        records.setdefault(weight.tensor, []).extend(factor_records(weight, found))
    originals = {name: checkpoint.entries[sources.get(name, name)] for name in records}
    for name, first in (beside or {}).items():
        records[name][:0] = first
    entries = [
        Entry(name, originals[name].shape, originals[name].dtype, tuple(found)) for name, found in records.items()
    ]
    entries += [*exact, *alias_entries(checkpoint, sources)]
    model_records = [Record(RecordType.TABLES, pack_tables(tables))] if matrices else []
    model_records += [Record(RecordType.STREAM, payload) for payload in streams]
    account = _account(matrices, entries, model_records, groups, tables)
    changes = {"tie_word_embeddings": False} if sources else {}
    files = finish(checkpoint, model_records, entries, header, account, changes)
    return replace(files, matrices=matrices, tables=tables)


def finish(
    checkpoint: Checkpoint,
    model_records: Sequence[Record],
    entries: Sequence[Entry],
    header: Mapping[str, Any],
    account: Mapping[str, float],
    changes: Mapping[str, Any],
) -> Assembled:
    """Records to files.

    Args:
        checkpoint: The original.
        model_records: Tables and shared streams.
        entries: Every tensor.
        header: Facts of the model for its header; those of the checkpoint are added.
        account: Bytes of every tensor.
        changes: Of the configuration.
    """
    config = {**_config_with_dtype(checkpoint), **changes}
    config["quantization_config"] = {"quant_method": "trueaxis", "version": VERSION}
    header = {**header, "config": config_hash(config), "parameters": checkpoint.parameters}
    header["config_bytes"] = (checkpoint.path / CONFIG).stat().st_size
    header["copied"] = [file.name for file in checkpoint.files_to_copy()]
    files = pack_shards(header, model_records, entries, SHARD_BYTES)
    weights_bytes = sum(len(piece) for pieces in files.values() for piece in pieces)
    written = (json.dumps(config, indent=2) + "\n").encode()
    files[CONFIG] = (written,)
    growth = len(written) - header["config_bytes"]
    total = weights_bytes + max(0, growth)
    return Assembled(files, account, total, total - round(sum(account.values())))


def _config_with_dtype(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration, with the dtype that transformers would else guess from weights that are bytes now."""
    config = dict(checkpoint.config)
    if not config.get("dtype", config.get("torch_dtype")):
        stored = {entry.dtype for entry in checkpoint.entries.values()}
        config["dtype"] = next((name for kind, name in WIDEST_FIRST.items() if kind in stored), "float32")
    return config


def _shared_groups(matrices: Sequence[tuple[Weight, Quantized]], stage: Coder) -> list[list[tuple[Weight, Quantized]]]:
    """Small matrices in order, a new group whenever one holds `chain` weights."""
    groups: list[list[tuple[Weight, Quantized]]] = []
    filled = stage.chain
    for weight, matrix in matrices:
        if weight.size >= SHARED_BELOW:
            continue
        if filled >= stage.chain:
            groups.append([])
            filled = 0
        groups[-1].append((weight, matrix))
        filled += weight.size
    return groups


def _account(
    matrices: Sequence[tuple[Weight, Quantized]],
    entries: Sequence[Entry],
    model_records: Sequence[Record],
    groups: Sequence[Sequence[tuple[Weight, Quantized]]],
    tables: Tables,
) -> dict[str, float]:
    """Bytes per tensor; shared streams are divided by ideal code length, tables by number of weights."""
    account = {entry.name: float(entry.stored_bytes) for entry in entries}
    quantized = sum(weight.size for weight, _ in matrices)
    for weight, _ in matrices:
        account[weight.tensor] += model_records[0].stored_bytes * weight.size / quantized
    for group, record in zip(groups, model_records[1:], strict=True):
        ideal = np.array([_core.stream_bits(tables.coder, [segment(matrix)]) for _, matrix in group]) + 1e-9
        for (weight, _), share in zip(group, ideal / ideal.sum(), strict=True):
            account[weight.tensor] += record.stored_bytes * float(share)
    return account


def running(assembled: Assembled, checkpoint: Checkpoint, residence: Residence) -> Any:
    """The model of files that are on disk only while it is loaded, in float32, on the CPU, without gradients.

    Args:
        assembled: The files.
        checkpoint: The original.
        residence: Keeps the weights.
    """
    import torch

    from trueaxis.runtime.load import built

    with tempfile.TemporaryDirectory() as directory:
        write_files(assembled, checkpoint, Path(directory))
        model: Any = built(directory, residence, torch.device("cpu"), torch.float32)
    return model.requires_grad_(False)


def write_files(assembled: Assembled, checkpoint: Checkpoint, directory: Path) -> None:
    """Writes the files of a compressed model and copies those that go along unchanged."""
    for name, pieces in assembled.files.items():
        with open(directory / name, "wb") as file:
            file.writelines(pieces)
    for file in checkpoint.files_to_copy():
        (directory / file.name).write_bytes(file.read_bytes())
