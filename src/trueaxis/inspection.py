"""Inspect: what a compressed directory holds and what its bytes are spent on, read from the file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.record import RecordType
from trueaxis.restored import restored
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.matrices import tangent_payload
from trueaxis.runtime.members import BASE, FAMILY, MEMBERS, family_directions, family_members, is_family
from trueaxis.runtime.orthogonal import KINDS
from trueaxis.runtime.tangent import read_weights
from trueaxis.types import CompressionReport

REPORT = "trueaxis.json"
PURPOSES = {
    "indices": "indices",
    "side_information": "steps and scales",
    "tables": "coder's tables",
    "exact": "kept exactly",
    "frame": "headers, checksums",
}
"""Of bytes, in words."""
ASIDE = (RecordType.RESIDUAL, RecordType.FUNCTION, RecordType.TRANSFORM, RecordType.TANGENT)  # without their indices


def inspect(path: str | Path) -> dict[str, Any]:
    """Facts of a compressed directory.

    Returns:
        parameters, file_bytes (weight files and their index), bits_per_param, recipe, shards,
        gauge (a line for every symmetry of the network: what was made of it, or why it was left out),
        spent_bytes (indices, side_information, tables, exact, frame: they add up to file_bytes) and
        tensors: name, shape, dtype, storage ("quantized", "exact", these before "beside BASE", "tied
        to NAME" or "NAME times a matrix"), own_bytes (records of its own), matrices (how many it is coded as: one, or
        one per slice), shared_streams (their numbers), function_bits and residual_bits (of its own records of f and r,
        W = f + r), estimated_saved_bits (against r = W alone, from the report; 0 where there is no f), transforms
        (kinds of its stored ones, in the order of their records), transform_bits (of all its transform records) and
        transform_saved_bits (why they are there: estimated by coding both ways, from the report; 0 without any),
        directions (how many of its family's it takes shares of).
        `report` is the object that compression left behind, or None.
        Of the root of a family: file_bytes of all and of family.json; `base`, such an object, `directions`, a list of
        them, and `members`, each a name and one.

    Raises:
        FormatError: The file is damaged.
    """
    if is_family(path):
        members = {name: inspect(Path(path) / MEMBERS / name) for name in family_members(path)}
        base = inspect(Path(path) / BASE)
        listed = (Path(path) / FAMILY).stat().st_size
        directions = [inspect(part) for part in family_directions(path)]
        total = listed + sum(part["file_bytes"] for part in (base, *directions, *members.values()))
        return {"file_bytes": total, "base": base, "directions": directions, "members": members}
    decoder = Decoder(path)
    container = decoder.container
    report = _report(Path(path), set(container.tensors))
    functions = report.get("functions", []) if report else []
    saved = {row["name"]: row["estimated_saved_bits"] for row in functions}
    turned = {row["name"]: row["estimated_saved_bits"] for row in (report.get("transforms", []) if report else [])}
    file_bytes, parameters = container.file_bytes, container.header["parameters"]
    return {
        "parameters": parameters,
        "file_bytes": file_bytes,
        "bits_per_param": file_bytes * 8 / parameters,
        "format_version": container.header["version"],
        "recipe": container.header["recipe"],
        "gauge": container.header["gauge"],
        "spent_bytes": _spent_bytes(decoder, file_bytes),
        "shards": len([file for file in container.files if file.suffix == ".safetensors"]),
        "tensors": [_describe(decoder, name, saved, turned) for name in decoder.names()],
        "report": report,
    }


def render(path: str | Path, found: Mapping[str, Any]) -> str:
    """What `inspect` found at a path, for people; of a comparison of coders too, where `coders` holds one."""
    if "members" in found:
        shared = {f"direction {number}": one for number, one in enumerate(found["directions"], 1)}
        parts = {"base": found["base"], **shared, **found["members"]}
        lines = [f"{path}: a family, {found['file_bytes']:,} bytes"]
        lines += [
            f"{name:30} {one['file_bytes']:14,} bytes {one['bits_per_param']:9.4f}" for name, one in parts.items()
        ]
        return "\n".join(lines)
    report = found["report"] or {}
    lines = [
        f"{path}: {found['file_bytes']:,} bytes, {found['bits_per_param']:.4f} bits per parameter, "
        f"{found['parameters']:,} parameters, format version {found['format_version']}",
        "recipe: " + json.dumps(found["recipe"].get("stages")),
        "symmetries, or why not: " + json.dumps(found["gauge"]),
        "bytes: " + ", ".join(f"{purpose} {size:,}" for purpose, size in found["spent_bytes"].items()),
        f"{'tensor':50} {'shape':>16} {'storage':>10} {'bits/weight':>12} {'gap':>8} {'rel. distortion':>16}",
    ]
    rows = {row["name"]: row for row in report.get("tensors", [])}
    for tensor in found["tensors"]:
        row = rows.get(tensor["name"])
        figures = (
            f"{row['bits_per_weight']:12.4f} {row['gap_bits']:8.4f} {row['relative_distortion']:16.3e}" if row else ""
        )
        shape = "×".join(map(str, tensor["shape"]))
        lines.append(f"{tensor['name']:50} {shape:>16} {tensor['storage']:>10} {figures}")
    return "\n".join([*lines, *_axes(report), *(_coders(found["coders"]) if "coders" in found else [])])


def _axes(report: Mapping[str, Any]) -> list[str]:
    """The axes of every space, and how learned ones came about."""
    spaces, learning = report.get("spaces") or [], report.get("learning")
    lines = ["axes, and the bits per weight that they are estimated to save:"] if spaces else []
    lines += [f"  {space['name']:70} {space['axes']:30} {space['estimated_saved_bits']:8.4f}" for space in spaces]
    if learning:
        before, after = learning["held_out"]["start"], learning["held_out"]["learned"]
        told = f"bits + λ·D per weight on statistics held out: {before:.4f} before, {after:.4f} after"
        lines.append(f"learned ({learning['proxy']}, {learning['distortion']}): {told}; {learning['kept']} kept")
    return lines


def _coders(found: Mapping[str, Any]) -> list[str]:
    """The same indices under every coder, in bits per quantized weight."""
    titles = {
        "trueaxis_bits": "this file's streams",
        "range_bits": "range coding (constriction)",
        "huffman_bits": "Huffman coding (constriction)",
        "entropy_bits": "Shannon entropy, not a size",
    }
    weights = max(found["weights"], 1)
    return [
        f"the same {found['weights']:,} indices with the same tables, bits per index:",
        *(f"  {title:30} {found[key] / weights:.4f}" for key, title in titles.items()),
    ]


def _describe(decoder: Decoder, name: str, saved: Mapping[str, float], turned: Mapping[str, float]) -> dict[str, Any]:
    info, target, headers = decoder.container.tensors[name], decoder.alias(name), decoder.residuals(name)
    source = decoder.source(name)
    records = decoder.container.records(name)
    beside = any(record.type == RecordType.BASE for record in records)
    shares, count = tangent_payload(records), len(decoder.container.header.get("tangent", []))
    place = f"beside {decoder.container.header.get('base')}" if beside else ""
    quantized = f"{source} times a matrix" if source else f"quantized {place}".strip()
    exact = place or "exact"
    return {
        "name": name,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "own_bytes": info.length,
        "matrices": len(headers),
        "shared_streams": sorted({header.shared for header in headers if header.shared is not None}),
        "function_bits": _bits(decoder, name, RecordType.FUNCTION),
        "residual_bits": _bits(decoder, name, RecordType.RESIDUAL),
        "estimated_saved_bits": saved.get(name, 0.0),
        "transforms": _stored_kinds(decoder, name),
        "transform_bits": _bits(decoder, name, RecordType.TRANSFORM),
        "transform_saved_bits": turned.get(name, 0.0),
        "directions": 0 if shares is None else np.count_nonzero(read_weights(name, shares, count)).item(),
        "storage": quantized if headers else f"tied to {target}" if target else exact,
    }


def _bits(decoder: Decoder, name: str, kind: RecordType) -> int:
    """Of a tensor's payloads of one type; streams that several share are not among them."""
    return 8 * sum(len(record.payload) for record in decoder.container.records(name) if record.type == kind)


def _stored_kinds(decoder: Decoder, name: str) -> list[str]:
    payloads = (record.payload for record in decoder.container.records(name) if record.type == RecordType.TRANSFORM)
    return [KINDS[payload[0]].__name__.lower() for payload in payloads if payload[:1] and payload[0] in KINDS]


def _spent_bytes(decoder: Decoder, file_bytes: int) -> dict[str, int]:
    """Bytes by purpose; `frame` is headers, record frames, checksums, index and config.json's growth."""
    container = decoder.container
    spent = {"indices": 0, "side_information": 0, "tables": 0, "exact": 0}
    for record in decoder.container.model_records():
        spent["indices" if record.type == RecordType.STREAM else "tables"] += len(record.payload)
    for name in container.tensors:
        coded = sum(len(data) for header in decoder.residuals(name) for pair in header.streams for data in pair)
        spent["indices"] += coded
        spent["side_information"] -= coded
        for record in container.records(name):
            if record.type in ASIDE:
                spent["side_information"] += len(record.payload)
            elif record.type == RecordType.PLANES:
                spent["exact"] += len(record.payload)
    return {**spent, "frame": file_bytes - sum(spent.values())}


def _report(path: Path, names: set[str]) -> dict[str, Any] | None:
    """The report of the compression, where it is there and tells of the same tensors; nothing protects its bytes."""
    try:
        found = json.loads((path / REPORT).read_text(encoding="utf-8"))
        report = restored(CompressionReport, found)
    except (OSError, ValueError, RecursionError):
        return None
    return found if {row.name for row in report.tensors} == names else None
