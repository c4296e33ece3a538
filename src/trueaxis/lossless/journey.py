"""Lossless: a checkpoint to a compressed directory that holds every bit of it, alone or beside a base.

checkpoint ─▶ every tensor to planes of bits (beside the base's where that is shorter) ─▶ container
           ─▶ decoded and compared, bit by bit, before the directory appears
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.accounting import leave_report
from trueaxis.assemble import alias_entries, finish, write_files
from trueaxis.container import Entry
from trueaxis.header import DTYPES, config_hash, is_tensor_name
from trueaxis.lossless.tensor import pack_tensor
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads, ordered_map
from trueaxis.progress import Progress, silent
from trueaxis.record import Record, RecordType
from trueaxis.runtime.base_model import BaseModel, fingerprint
from trueaxis.runtime.bitplanes import needs_base
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import check_bytes
from trueaxis.runtime.planes import BITPLANES, bits_of, pack_planes
from trueaxis.scratch import scratch_beside
from trueaxis.staging import check_free, staged_directory
from trueaxis.types import CompressionReport, TensorReport, TrueaxisError

if TYPE_CHECKING:
    import torch

FEW = 1 << 14  # entries of a tensor for which the ways of exact tensors are tried as well


def compress_lossless(
    model: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> CompressionReport:
    """Compresses a checkpoint bit for bit, whatever its dtypes, NaN payloads and signed zeros included.

    Args:
        model: Directory of a Hugging Face checkpoint.
        out: Directory to create.
        base: Directory of a checkpoint, plain or compressed, that reading will need again: tensors are stored as what
            they differ in from its tensors of the same name, shape and dtype, where that is shorter. It is looked for
            next to `out` by its name.
        threads: Workers; all processors by default. The result does not depend on it.
        overwrite: Replace `out` if it is not empty.
        progress: Told of every tensor.

    Returns:
        Real bytes and a row per tensor; also left in OUT/trueaxis.json.

    Raises:
        TrueaxisError: Bad input, by name; nothing was written under the name `out`.

    Example:
        >>> trueaxis.compress_lossless("llama-chat", "llama-chat-small", base="llama")   # doctest: +SKIP
    """
    begun, workers = time.perf_counter(), threads or default_threads()
    checkpoint = Checkpoint.open_all(model, scratch_beside(Path(out), None))
    check_free(Path(out), overwrite, [model, *([base] if base else [])])
    beside = BaseModel(base) if base is not None else None
    name = base_name(base) if base is not None else None
    done, names = itertools.count(1), [name for name in checkpoint.entries if name not in checkpoint.aliases]

    def packed(name: str) -> Entry:
        found = exact_entry(checkpoint, name, beside)
        progress("compress", next(done), len(names))
        return found

    entries = [*ordered_map(packed, names, workers), *alias_entries(checkpoint)]
    recipe = {"stages": {"lossless": {"base": name}}}
    header = {
        "recipe": recipe, "sketch": [], "gauge": [], "calibration": {"source": "none", "tokens": 0},
        **({"base": name} if name else {}),
    }  # fmt: skip
    files = finish(checkpoint, [], entries, header, {entry.name: entry.stored_bytes for entry in entries}, {})
    with staged_directory(Path(out), overwrite) as staging:
        write_files(files, checkpoint, staging)
        decoder = Decoder(staging, workers, base)
        check_bytes(decoder)
        ordered_map(lambda name: check_bits(checkpoint, decoder, name), checkpoint.entries, workers)
        return leave_report(
            files, checkpoint, staging, begun,
            recipe=recipe, recipe_hash=config_hash(recipe), calibration=header["calibration"],
            tensors=tuple(_row(entry) for entry in entries), notes=_notes(entries, name),
        )  # fmt: skip


def _notes(entries: Sequence[Entry], base: str | None) -> tuple[str, ...]:
    if base is None or any(record.type == RecordType.BASE for entry in entries for record in entry.records):
        return ()
    return (f"no tensor is shorter beside the base {base}: the file holds all of them alone and reads without it",)


def base_name(base: str | Path) -> str:
    """What a file calls its base: the name of its directory.

    Raises:
        TrueaxisError: A file could not say it.
    """
    name = Path(base).resolve().name
    if not is_tensor_name(name):
        raise TrueaxisError(f"{base}: a base is known by its directory's name, which must be printable and short")
    return name


def exact_entry(checkpoint: Checkpoint, name: str, beside: BaseModel | None) -> Entry:
    """The shortest record of a tensor, and a base record before it where it needs one."""
    shape, dtype, _ = checkpoint.entries[name]
    tensor = checkpoint.tensor(name)
    entries, theirs = bits_of(tensor), None
    if beside is not None and entries.size and beside.has(name, tuple(shape), dtype):
        theirs = beside.bits(name)
    payloads = []
    if entries.size == 0 or (len(entries) < FEW and _may_be_plain(tensor, dtype)):
        payloads.append(pack_planes(entries))
    if entries.size:
        base = None if theirs is None else theirs.reshape(entries.shape)
        payloads.append(bytes([BITPLANES]) + pack_tensor(entries, shape, dtype, base))
    payload = min(payloads, key=len)
    records = [Record(RecordType.PLANES, checkpoint.scratch.buffer(payload))]
    if theirs is not None and payload[0] == BITPLANES and needs_base(payload[1:]):
        records.insert(0, Record(RecordType.BASE, fingerprint(theirs)))
    return Entry(name, tuple(shape), dtype, tuple(records))


def _may_be_plain(tensor: torch.Tensor, dtype: str) -> bool:
    """Whether other modes than planes of bits may hold a tensor: they hold no NaN and no infinities."""
    return tensor.itemsize > 1 and (dtype not in DTYPES or bool(np.isfinite(tensor.double().numpy()).all()))


def check_bits(checkpoint: Checkpoint, decoder: Decoder, name: str) -> None:
    """Compares a decoded tensor with the original.

    Raises:
        TrueaxisError: They differ in a bit.
    """
    if not np.array_equal(bits_of(decoder.tensor(name)), bits_of(checkpoint.tensor(name))):
        raise TrueaxisError(f"{name}: decodes to other bits than those of {checkpoint.path}; report this checkpoint")


def _row(entry: Entry) -> TensorReport:
    bits = entry.stored_bytes * 8 / max(int(np.prod(entry.shape, dtype=np.int64)), 1)
    beside = entry.records[0].type == RecordType.BASE
    return TensorReport(entry.name, entry.shape, "beside the base" if beside else "exact", bits, 0.0, bits, 0.0)
