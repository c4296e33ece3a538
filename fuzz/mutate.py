"""Mutation fuzzing of the reader: right checksums and hashes around damaged records and headers.

    specimen ─▶ Parts ─▶ 1 to 4 random mutations ─▶ forge ─▶ Decoder, verify, inspect under a memory limit

A case is good if it ends in FormatError or decodes to finite tensors of the shapes the header gives. Anything else
(another exception, a crash, memory, more than 20 seconds) is a finding, printed with the number that makes it again:

    python fuzz/mutate.py --cases 20000
    python fuzz/mutate.py --again 17        # case 17 alone, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from forge import Parts, dismantle, forge, memory_limit, residual_fields, residual_payload, write_specimen
from trueaxis import FormatError, _core, inspect, verify
from trueaxis.entropy.model import CLASSES, _body_contexts, _shape_contexts
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder

LIMIT = 200 << 20
SECONDS = 20
BATCH = 4000
SIZES = [0, 1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256, 4095, 4096, 1 << 16, 1 << 20, 1 << 24,
         1 << 31, 1 << 32, 1 << 40, 1 << 48, 1 << 62, (1 << 63) - 1]  # fmt: skip
ANYTHING: list[Any] = [
    *SIZES,
    -1,
    -(1 << 63),
    1 << 64,
    1.5,
    float("nan"),
    None,
    True,
    "",
    "..",
    "a/b",
    "large",
    [],
    [[]],
    {},
]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, overwrites, removes, repeats or inserts a few bytes."""
    out = bytearray(data or b"\0")
    at = rng.randrange(len(out))
    end = min(len(out), at + rng.choice([1, 1, 2, 4, 16]))
    kind = rng.randrange(6)
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at:end] = rng.randbytes(end - at)
    elif kind == 2:
        del out[at:end]
    elif kind == 3:
        out[at:at] = out[at:end]
    elif kind == 4:
        out[at:at] = rng.choice([b"\0", b"\xff"]) * rng.choice([1, 2, 8, 64, 4096])
    else:
        out[at:end] = pack_varint(rng.choice(SIZES))
    return bytes(out)


def mutate_integers(rng: random.Random, values: np.ndarray) -> np.ndarray:
    """Some numbers of a sequence become near or absurd ones."""
    out = values.copy()
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(out.size)
        near = int(out[at]) + rng.randint(-4, 4)
        out[at] = rng.choice([near, 0, rng.randint(-5000, 5000), rng.randint(-(1 << 30) + 1, (1 << 30) - 1)])
    return np.clip(out, -(1 << 30) + 1, (1 << 30) - 1)


def side_contexts(rows: int, columns: int, group: int) -> np.ndarray:
    """Contexts of the four arrays of side information, from docs/format.md."""
    sizes = [columns, rows * -(-columns // group), columns, rows]
    return np.repeat(np.arange(8, dtype=np.uint8), [count for size in sizes for count in (1, size)])


def mutate_residual(rng: random.Random, parts: Parts) -> None:
    """A field of a residual record, or a code of its side information."""
    name, shape = rng.choice([row[:2] for row in parts.header["tensors"] if row[0] in ("large", "first", "second")])
    record = parts.records[name][0]
    try:
        fields = residual_fields(record.payload)
        key = rng.choice(sorted(fields))
        if key == "side" and rng.random() < 0.8 and len(shape) == 2 and max(shape) < 100:
            contexts = side_contexts(*shape, fields["group"])
            fields["side"] = _core.encode_integers(
                mutate_integers(rng, _core.decode_integers(fields["side"], contexts)), contexts
            )
            fields["side_bytes"] = len(fields["side"])
        elif key in ("side", "rest"):
            fields[key] = mutate_bytes(rng, fields[key])
            fields["side_bytes"] = len(fields["side"])
        else:
            small = key in ("trellis", "resolution", "shift", "modes")
            fields[key] = rng.randrange(64) if small else rng.choice([rng.randrange(40), *SIZES])
        payload = residual_payload(fields)
    except (ValueError, IndexError, TypeError, MemoryError, ZeroDivisionError):  # mutated out of shape before
        payload = mutate_bytes(rng, record.payload)
    parts.records[name] = [Record(record.type, payload)]


def mutate_tables(rng: random.Random, parts: Parts) -> None:
    """A frequency, length, order or offset of the tables, behind a valid coding."""
    payload = parts.model_records[0].payload
    try:
        length, start = unpack_varint(payload, 1)
        shape = _core.decode_integers(payload[start : start + length], _shape_contexts())
        used = shape[: 2 * CLASSES].reshape(2, CLASSES).astype(np.int64)
        if used.min() < 0 or used.max() > 64:
            raise ValueError("mutated out of shape before")
        body = _core.decode_integers(payload[start + length :], _body_contexts(used))
    except (ValueError, IndexError):  # mutated out of shape before
        parts.model_records[0] = Record(RecordType.TABLES, mutate_bytes(rng, payload))
        return
    if rng.random() < 0.3:
        shape = mutate_integers(rng, shape)
    else:
        body = mutate_integers(rng, body)
    head = _core.encode_integers(shape, _shape_contexts())
    alphabet = payload[0] if rng.random() < 0.8 else rng.randrange(6)
    coded = _core.encode_integers(body, _body_contexts(used))
    parts.model_records[0] = Record(RecordType.TABLES, bytes([alphabet]) + pack_varint(len(head)) + head + coded)


def mutate_payload(rng: random.Random, parts: Parts) -> None:
    """Raw bytes of any record."""
    lists = [parts.model_records, *parts.records.values()]
    records = rng.choice([entry for entry in lists if entry])
    number = rng.randrange(len(records))
    record = records[number]
    records[number] = Record(record.type, mutate_bytes(rng, record.payload), record.version, record.required)


def mutate_frame(rng: random.Random, parts: Parts) -> None:
    """Type, version or importance of a record; records repeated, dropped, exchanged."""
    lists = [parts.model_records, *parts.records.values()]
    records, other = (rng.choice([entry for entry in lists if entry]) for _ in range(2))
    record = records[0]
    kind = rng.randrange(5)
    if kind == 0:
        records[0] = Record(rng.choice([*RecordType, 0, 99, 255]), record.payload, record.version, record.required)
    elif kind == 1:
        records[0] = Record(record.type, record.payload, rng.choice([0, 1, 2, 127]), rng.random() < 0.5)
    elif kind == 2:
        records.append(rng.choice(other))
    elif kind == 3 and len(records) > 1:
        records.pop(rng.randrange(len(records)))
    else:
        records[0], other[0] = other[0], records[0]


def mutate_header(rng: random.Random, parts: Parts) -> None:
    """A value of the JSON header, or of one tensor in it."""
    rows = parts.header["tensors"]
    kind = rng.randrange(4)
    if kind == 0:
        parts.overrides[rng.choice(sorted(parts.header))] = rng.choice(ANYTHING)
    elif kind == 1:
        row = rng.choice(rows)
        row[1] = [rng.choice([*row[1], rng.choice(SIZES)]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 9]))]
    elif kind == 2:
        rng.choice(rows)[2] = rng.choice(["F64", "F32", "F16", "BF16", "U8", None])
    else:
        rng.shuffle(rows)
        parts.records = {row[0]: parts.records[row[0]] for row in rows}


def mutate_config(rng: random.Random, parts: Parts) -> None:
    """config.json, with the hash that fits."""
    target = rng.choice([parts.config, parts.config["quantization_config"]])
    if isinstance(target, dict):
        target[rng.choice(["quant_method", "version", "model_type", "architectures"])] = rng.choice(ANYTHING)


MUTATIONS = (
    [mutate_residual] * 5 + [mutate_tables] * 4 + [mutate_payload] * 3 + [mutate_header] * 3 + [mutate_frame] * 2
)
MUTATIONS += [mutate_config]


def outcome(path: Path) -> str:
    """ "decoded" or "refused" for a good ending; whatever else happens is raised."""
    try:
        decoder = Decoder(path)
        for name, value in decoder.tensors().items():
            if tuple(value.shape) != decoder.container.tensors[name].shape:
                raise AssertionError(f"{name} decodes to {list(value.shape)}")
        verify(path)
        inspect(path)
    except FormatError as error:
        if not str(error) or len(str(error)) > 2000:
            raise AssertionError(f"message of {len(str(error))} characters") from error
        return "refused"
    return "decoded"


def specimen(folder: Path) -> Parts:
    """The good file; read once, so that the libraries are loaded before memory is limited."""
    path = write_specimen(folder / "specimen")
    verify(path)
    inspect(path)
    return dismantle(path)


def run_case(number: int, good: Parts, folder: Path) -> str:
    """Makes and reads case `number`; the same number makes the same bytes."""
    rng = random.Random(number)
    parts = good.copy()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        rng.choice(MUTATIONS)(rng, parts)
    path = forge(folder / "case", parts)
    signal.alarm(SECONDS)
    try:
        with memory_limit(LIMIT):
            return outcome(path)
    finally:
        signal.alarm(0)


def too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def work(first: int, count: int, folder: Path) -> None:
    """Cases first to first + count - 1 in this process; prints counts and findings as one JSON object."""
    signal.signal(signal.SIGALRM, too_slow)
    good = specimen(folder)
    counts: Counter[str] = Counter()
    findings = {}
    for number in range(first, first + count):
        (folder / "current").write_text(str(number))
        try:
            counts[run_case(number, good, folder)] += 1
        except Exception:
            findings[number] = traceback.format_exc(limit=-3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"counts": counts, "findings": findings, "peak_memory_mb": peak // 1024}))


def campaign(first: int, cases: int) -> int:
    """All cases, in child processes so that a crash is a finding as well."""
    print(f"machine: {platform.machine()}, {os.cpu_count()} processors, {platform.system()}, Python "
          f"{platform.python_version()}")  # fmt: skip
    print(f"command: {' '.join(['python', *sys.argv])}")
    total: Counter[str] = Counter()
    findings: dict[str, str] = {}
    peak, begun = 0, time.monotonic()
    for start in range(first, first + cases, BATCH):
        count = min(BATCH, first + cases - start)
        with tempfile.TemporaryDirectory() as folder:
            arguments = [sys.executable, __file__, "--worker", folder, "--first", str(start), "--cases", str(count)]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
            if done.returncode:
                current = (Path(folder) / "current").read_text()
                findings[current] = f"process ended with {done.returncode}\n{done.stderr[-500:]}"
                continue
        found = json.loads(done.stdout.splitlines()[-1])
        total.update(found["counts"])
        findings |= found["findings"]
        peak = max(peak, found["peak_memory_mb"])
    seconds = time.monotonic() - begun
    print(f"cases: {sum(total.values()) + len(findings)} in {seconds:.0f} s; refused {total['refused']}, "
          f"decoded {total['decoded']}, findings {len(findings)}; peak memory of a process {peak} MB")  # fmt: skip
    for number, text in list(findings.items())[:20]:
        print(f"--- case {number}\n{text}")
    return 1 if findings else 0


def main() -> int:
    """0 if every case ended well, 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--again", type=int, help="this case alone, with its traceback")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.first, options.cases, options.worker)
        return 0
    if options.again is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(run_case(options.again, specimen(Path(folder)), Path(folder)))
        return 0
    return campaign(options.first, options.cases)


if __name__ == "__main__":
    sys.exit(main())
