"""Accounting: what each tensor cost and lost, measured on the written file, and the report that says so."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.assemble import Assembled
from trueaxis.inspection import REPORT
from trueaxis.metric.metric import distance, fold_norm, limit_bits, spectrum
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import ordered_map
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.transforms import decoded, undone
from trueaxis.types import Aligned, Array, CompressionReport, Metric, TensorReport, Weight

Member = tuple[Weight, Aligned, Metric]


def leave_report(
    files: Assembled, checkpoint: Checkpoint, directory: Path, begun: float, **told: Any
) -> CompressionReport:
    """The report of files, left beside them.

    Args:
        files: As they were written.
        checkpoint: The original.
        directory: Of the files.
        begun: `time.perf_counter()` when the compression began.
        told: What a report says beyond sizes, time and memory.
    """
    report = CompressionReport(
        file_bytes=files.file_bytes,
        header_bytes=files.header_bytes,
        copied_bytes=sum(file.stat().st_size for file in checkpoint.files_to_copy()),
        parameters=checkpoint.parameters,
        bits_per_param=files.file_bytes * 8 / checkpoint.parameters,
        seconds=time.perf_counter() - begun,
        peak_memory_bytes=peak_memory_bytes(),
        **told,
    )
    (directory / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def forget_peak() -> None:
    """Lets `peak_memory_bytes` begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Most memory that this process has held, since `forget_peak` or ever."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says may be of the process that started this one
        rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(rows["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tensor_reports(
    decoder: Decoder,
    checkpoint: Checkpoint,
    matrices: Sequence[Member],
    tensor_bytes: Mapping[str, float],
    threads: int = 1,
) -> tuple[TensorReport, ...]:
    """A row for every tensor of the file; one of several slices has their sums, and the mean of their limits.

    Args:
        decoder: Of the written file: distortion is that of what a reader will get, rounding to its dtype included.
        checkpoint: The original.
        matrices: (weight, the same in its coordinates, metric in the original coordinates).
        tensor_bytes: Bytes of each tensor.
        threads: Tensors side by side.

    Returns:
        In the order of the file. A tensor that lost nothing, as an exact one, is reported at its own rate with a gap
        of 0: the limit of a continuous source has no finite value there.

    Raises:
        FormatError: Some tensor does not decode, exact ones included.
    """
    members: dict[str, list[Member]] = {}
    for row in matrices:
        members.setdefault(row[0].tensor, []).append(row)
    spectra = _spectra(checkpoint, matrices, threads)

    def report(name: str) -> TensorReport:
        info, found = decoder.container.tensors[name], decoder.tensor(name)
        size = int(np.prod(info.shape, dtype=np.int64))
        bits = tensor_bytes[name] * 8 / max(size, 1)
        if (source := decoder.source(name)) is not None:
            return _product_report(name, found.float().numpy(), members[source][0][1], members[name][0][1], bits)
        if name not in members:
            return TensorReport(name, info.shape, "exact", bits, 0.0, bits, 0.0)
        lost = energy = limit = 0.0
        for weight, aligned, metric in members[name]:
            original = checkpoint.matrix(weight).float().numpy()
            matrix = found if weight.slice is None else found[weight.slice]
            matrix = (matrix.T if weight.transposed else matrix).float().numpy()
            own = distance(undone(matrix, aligned.transforms) - aligned.weight, aligned.metric)
            lost, energy = lost + own, energy + distance(original, metric)
            eigenvalues = spectra.get(_read_by(weight))
            limit += original_limit_bits(checkpoint, weight, original, metric, own, eigenvalues) * weight.size / size
        limit = limit if math.isfinite(limit) else bits
        coordinates = members[name][0][1].coordinates
        return TensorReport(name, info.shape, coordinates, bits, lost / (energy or 1.0), limit, bits - limit)

    return tuple(ordered_map(report, decoder.container.tensors, threads))


def _product_report(name: str, found: Array, source: Aligned, factor: Aligned, bits: float) -> TensorReport:
    """Of a tensor that is another one times a matrix: what both lost, and the bytes of the matrix."""
    expected = decoded(source.weight, source.transforms) @ decoded(factor.weight, factor.transforms)
    metric = Metric(factor.metric.second_moment)
    lost, energy = (distance(undone(part, source.transforms), metric) for part in (found - expected, expected))
    return TensorReport(name, found.shape, factor.coordinates, bits, lost / (energy or 1.0), bits, 0.0)


def _read_by(weight: Weight) -> tuple[str, str | None]:
    """What a matrix shares with those of one spectrum: its space, or nothing, and the norm before it."""
    return weight.space or weight.name, weight.norm


def _spectra(checkpoint: Checkpoint, matrices: Sequence[Member], threads: int) -> dict[tuple[str, str | None], Array]:
    """Eigenvalues of H of every space, the norm before it folded out of H: once for all matrices that read it.

    In single precision, which moves a limit by less than a thousandth of a bit and takes half the time.
    """
    readers = {_read_by(weight): (weight, metric) for weight, _, metric in matrices if metric.second_moment is not None}

    def found(reader: tuple[Weight, Metric]) -> Array:
        moment, norm = reader[1].second_moment, _norm(checkpoint, *reader)
        assert moment is not None
        folded = moment if norm is None else fold_norm(norm[None], moment, norm)[1]
        return spectrum(folded.astype(np.float32))

    return dict(zip(readers, ordered_map(found, readers.values(), threads), strict=True))


def _norm(checkpoint: Checkpoint, weight: Weight, metric: Metric) -> Array | None:
    """The norm that can be folded into a matrix, or None.

    A tied matrix is taken as it is: as an embedding it reads no norm, so none can be folded into both of its uses.
    """
    if metric.second_moment is None or weight.norm is None or metric.embedding_weights is not None:
        return None
    return checkpoint.tensor(weight.norm).float().numpy() + weight.norm_offset


def original_limit_bits(
    checkpoint: Checkpoint,
    weight: Weight,
    original: Array,
    metric: Metric,
    distortion: float,
    eigenvalues: Array | None = None,
) -> float:
    """`limit_bits` of the original with its norm folded in, at the distortion achieved.

    Args:
        eigenvalues: Of H with the norm folded, where they are known.
    """
    moment, norm = metric.second_moment, _norm(checkpoint, weight, metric)
    if eigenvalues is not None:
        original, moment = original if norm is None else original * norm, eigenvalues
    elif moment is not None and norm is not None:
        original, moment = fold_norm(original, moment, norm)
    return limit_bits(
        moment, original, distortion,
        row_weights=metric.row_weights, embedding_weights=metric.embedding_weights,
    )  # fmt: skip
