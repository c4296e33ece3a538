"""Inspect: what a compressed directory holds and what its bytes are spent on, read from the file itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trueaxis.container import CONFIG, INDEX, Container, RecordType
from trueaxis.entropy.stream import unpack_residual

REPORT = "trueaxis.json"


def inspect(path: str | Path) -> dict[str, Any]:
    """Facts of a compressed directory.

    Returns:
        parameters, file_bytes (weight files and their index), bits_per_param, recipe, shards,
        spent_bytes (indices, side_information, tables, exact, frame: they add up to file_bytes) and
        tensors: name, shape, dtype, storage ("quantized", "exact" or "tied to NAME"), own_bytes (records of its own),
        shared_stream (its number, or None). `report` is the object that compression left behind, or None.

    Raises:
        FormatError: The file is damaged.
    """
    container = Container(path)
    files = [*Path(path).glob("*.safetensors"), *Path(path).glob(INDEX)]
    report = _report(Path(path))
    growth = _config_growth(Path(path), container)
    file_bytes = sum(file.stat().st_size for file in files) + growth
    parameters = int(container.header["parameters"])
    return {
        "parameters": parameters,
        "file_bytes": file_bytes,
        "bits_per_param": file_bytes * 8 / parameters,
        "format_version": container.header["version"],
        "recipe": container.header["recipe"],
        "spent_bytes": _spent_bytes(container, file_bytes),
        "shards": len([file for file in files if file.suffix == ".safetensors"]),
        "tensors": [_describe(container, name) for name in container.tensors],
        "report": report,
    }


def _describe(container: Container, name: str) -> dict[str, Any]:
    info = container.tensors[name]
    record = container.records(name)[0]
    row = {
        "name": name,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "own_bytes": info.length,
        "shared_stream": None,
    }
    if record.type == RecordType.RESIDUAL:
        row["storage"] = "quantized"
        row["shared_stream"] = unpack_residual(record.payload, *info.shape).shared
    elif record.type == RecordType.ALIAS:
        row["storage"] = f"tied to {record.payload.decode('utf-8', errors='replace')}"
    else:
        row["storage"] = "exact"
    return row


def _spent_bytes(container: Container, file_bytes: int) -> dict[str, int]:
    """Bytes by purpose; `frame` is headers, record frames, checksums, index and config.json's growth."""
    spent = {"indices": 0, "side_information": 0, "tables": 0, "exact": 0}
    for record in container.model_records():
        spent["indices" if record.type == RecordType.STREAM else "tables"] += len(record.payload)
    for name, info in container.tensors.items():
        for record in container.records(name):
            if record.type == RecordType.RESIDUAL:
                streams = unpack_residual(record.payload, *info.shape).streams
                coded = sum(len(data) for pair in streams for data in pair)
                spent["indices"] += coded
                spent["side_information"] += len(record.payload) - coded
            elif record.type == RecordType.PLANES:
                spent["exact"] += len(record.payload)
    return {**spent, "frame": file_bytes - sum(spent.values())}


def _config_growth(path: Path, container: Container) -> int:
    return max(0, (path / CONFIG).stat().st_size - int(container.header["config_bytes"]))


def _report(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / REPORT).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
