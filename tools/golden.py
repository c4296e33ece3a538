"""Golden files: small compressed directories that every later version must decode to the same bits.

    families of features ─▶ tests/golden/v1/NAME/, and the SHA-256 of every decoded tensor in digests.json beside them

    python tools/golden.py

What exists is never written again: a file that no longer decodes is a broken reader, not an old file. A new feature of
the format gets a new family here.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import trueaxis
from checkpoints import save_small_llama, save_tokens
from golden_parts import COLUMNS_OF_ALL, ROWS_OF_ALL, matrix, tables_of, write, write_matrices
from trueaxis.container import Container, Entry
from trueaxis.entropy.model import MAGNITUDES, pack_tables
from trueaxis.entropy.stream import pack_residual, pack_shared
from trueaxis.lossless.tensor import pack_tensor
from trueaxis.record import VERSION, Record, RecordType
from trueaxis.runtime.base_model import fingerprint
from trueaxis.runtime.bitplanes import needs_base
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.matrices import matrix_records
from trueaxis.runtime.orthogonal import Axis, Hadamard, Mirrors, Planes, sparse
from trueaxis.runtime.planes import pack_planes
from trueaxis.runtime.tangent import pack_weights
from trueaxis.runtime.terms import ColumnSplines, Product, Rows, RowSplines, Shared, pack_term
from trueaxis.runtime.transforms import COLUMNS, ROWS, Diagonal, Reflection
from trueaxis.types import Array

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / f"v{VERSION}"


def trellises(path: Path) -> None:
    """All codes, from the scalar quantizer to 256 states, with centroids and without."""
    write_matrices(path, [matrix(trellis, trellis, centroids=trellis != 3) for trellis in range(8)])


def alphabet(largest: int) -> Callable[[Path], None]:
    """Magnitudes up to K, and escapes far beyond."""

    def make(path: Path) -> None:
        write_matrices(path, [matrix(largest, octaves=(-3, 12)), matrix(largest + 1, 0)], largest)

    return make


def classes(path: Path) -> None:
    """All resolutions of scale codes, classes beyond both ends, rows with scales of their own."""
    shifts = [matrix(40 + shift, shift=shift, row_scales=shift % 2 == 0) for shift in range(8)]
    write_matrices(path, [*shifts, matrix(50, octaves=(-8, -5)), matrix(51, octaves=(8, 13))], 63)


def steps(path: Path) -> None:
    """All resolutions of steps, and steps of rows by groups of columns."""
    plain = [matrix(60 + number, resolution=1 << number) for number in range(6)]
    write_matrices(path, [*plain, matrix(70, group=4), matrix(71, group=1, resolution=32), matrix(72, group=12)])


def lanes(path: Path) -> None:
    """As many lanes as fit a register, more than there are columns, and several strips to a stream."""
    found = [matrix(80 + number, columns=columns, rows=9) for number, columns in enumerate((1, 31, 32, 33, 70))]
    write_matrices(path, found, lanes=32)


def shared(path: Path) -> None:
    """Two streams of several matrices each."""
    groups = [[matrix(90 + number, number % 8, rows=5 + number) for number in range(3 * g, 3 * g + 3)] for g in (0, 1)]
    tables = tables_of([one for group in groups for one in group])
    entries = [
        Entry(f"stream.{number}.matrix.{place}", one.indices.shape[::-1], "BF16",
              matrix_records(pack_residual(one, tables, 8, 100, number), None, False))
        for number, group in enumerate(groups)
        for place, one in enumerate(group)
    ]  # fmt: skip
    streams = [
        Record(RecordType.STREAM, pack_shared(group, tables, 8 << number)) for number, group in enumerate(groups)
    ]
    write(path, [Record(RecordType.TABLES, pack_tables(tables)), *streams], entries)


def shards(path: Path) -> None:
    """Three tensors in three shards and their index."""
    write_matrices(path, [matrix(100 + number) for number in range(3)], shard_bytes=1)


def slices(path: Path) -> None:
    """Experts of a 3-D tensor, as they are and transposed; a transposed matrix; tied tensors."""
    members = [matrix(110 + number, rows=6, columns=10) for number in range(6)]
    tables = tables_of(members)
    payloads = [pack_residual(one, tables, 4, 100) for one in members]
    plain = [record for index in range(3) for record in matrix_records(payloads[index], index, False)]
    turned = [record for index in range(2) for record in matrix_records(payloads[3 + index], index, True)]
    entries = [
        Entry("experts", (3, 6, 10), "BF16", tuple(plain)),
        Entry("experts.turned", (2, 10, 6), "F32", tuple(turned)),
        Entry("turned", (10, 6), "F16", matrix_records(payloads[5], None, True)),
        Entry("experts.tied", (3, 6, 10), "BF16", (Record(RecordType.ALIAS, b"experts"),)),
        Entry("turned.tied", (10, 6), "F16", (Record(RecordType.ALIAS, b"turned"),)),
    ]
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)


def reflections(path: Path) -> None:
    """Every choice of sides, one of them transposed."""
    members = [matrix(120 + number, rows=9) for number in range(4)]
    tables = tables_of(members)
    turns = [COLUMNS, ROWS, COLUMNS | ROWS, COLUMNS]
    entries = [
        Entry(f"reflected.{number}", (13, 9) if number == 3 else (9, 13), "BF16" if number % 2 else "F32",
              matrix_records(pack_residual(one, tables, 4, 100), None, number == 3, [Reflection(turns[number])]))
        for number, one in enumerate(members)
    ]  # fmt: skip
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)


def product(path: Path) -> None:
    """A tensor that is another one times a matrix near a multiple of the identity, reflected on both sides."""
    source, factor = matrix(140), matrix(141, rows=COLUMNS_OF_ALL)
    tables = tables_of([source, factor])
    payloads = [pack_residual(one, tables, 4, 100) for one in (source, factor)]
    turns = [Reflection(COLUMNS), Reflection(ROWS), Diagonal(0.75)]
    shape = (ROWS_OF_ALL, COLUMNS_OF_ALL)
    entries = [
        Entry("source", shape, "BF16", matrix_records(payloads[0], None, False)),
        Entry("product", shape, "BF16", matrix_records(payloads[1], None, False, turns, "source")),
    ]
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)


def exact(path: Path) -> None:
    """All ways to keep a tensor bit for bit, without and with records that need not be known."""
    rng = np.random.default_rng(130)
    norm = (1 + 0.2 * rng.standard_normal(40)).astype("<f4")
    bias = rng.standard_normal(40).astype("<f2")
    kinds: list[tuple[str, str, tuple[int, ...], Array]] = [
        ("norm", "F32", (40,), norm),
        ("bias", "F16", (5, 8), bias),
        ("short", "F32", (40,), (norm.view("<u4") & 0xFFFF0000).view("<f4")),
        ("half", "BF16", (40,), (norm.view("<u4") >> 16).astype("<u2")),
        ("double", "F64", (40,), rng.standard_normal(40)),
        ("ones", "BF16", (64,), np.full(64, 0x3F80, "<u2")),
        ("noise", "BF16", (30,), rng.integers(0, 0x7F00, 30).astype("<u2")),
        ("scalar", "F32", (), norm[:1]),
        ("empty", "F32", (3, 0), norm[:0]),
    ]
    entries = [
        Entry(name, shape, dtype, (Record(RecordType.PLANES, pack_planes(
            values.view(np.uint8).reshape(values.size, values.itemsize))),))
        for name, dtype, shape, values in kinds
    ]  # fmt: skip
    unknown = Record(200, b"a record of later", required=False)
    entries.append(Entry("hinted", (40,), "F32", (unknown, *entries[0].records)))
    write(path, [], entries)


def bit_tensors(seed: int) -> list[tuple[str, str, tuple[int, ...], Array]]:
    """Tensors that hold every kind of number there is: name, dtype, shape, bits."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((48, 1)) + rng.standard_normal(40)
    floats = (rng.standard_normal((48, 40)) * np.exp2(spread)).astype("<f4")
    bits = np.concatenate([rng.integers(0, 1 << 16, 300), [0, 0x8000, 1, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x7C00]])
    skewed = rng.choice(np.array([0x6000, 0x6040, 0xE080, 0], "<u2"), (2, 66000), p=(0.985, 0.01, 0.0045, 0.0005))
    return [
        ("scaled", "BF16", (48, 40), (floats.view("<u4") >> 16).astype("<u2")),
        ("single", "F32", (48, 40), floats),
        ("wide", "F32", (48, 40), floats.view("<u4") & 0xFFFF0000),
        ("half", "F16", (40, 48), floats.astype("<f2").reshape(40, 48)),
        ("double", "F64", (12, 40), floats[:12].astype("<f8")),
        ("any", "BF16", (308,), bits.astype("<u2")),
        ("numbers", "I64", (3, 50), rng.integers(-9, 9, (3, 50)).astype("<i8")),
        ("flags", "BOOL", (64,), rng.integers(0, 2, 64).astype("u1")),
        ("eighth", "F8_E4M3", (20, 30), rng.integers(0, 256, (20, 30)).astype("u1")),
        ("zeros", "BF16", (8, 8), np.zeros((8, 8), "<u2")),
        ("long", "BF16", (2, 66000), skewed),
    ]  # fmt: skip


def entries_of(bits: Array) -> Array:
    """uint8 [entries, bytes of each]."""
    return bits.reshape(-1).view(np.uint8).reshape(bits.size, bits.itemsize)


def bits(path: Path) -> None:
    """Planes of bits: all dtypes, NaN and infinities, contexts, escapes, four lanes and 64."""
    entries = [
        Entry(name, shape, dtype, (Record(RecordType.PLANES, b"\3" + pack_tensor(entries_of(found), shape, dtype)),))
        for name, dtype, shape, found in bit_tensors(150)
    ]
    write(path, [], entries)


def beside(path: Path) -> None:
    """Planes of bits beside a base: the family `bits`, near it, far from it, and equal to it."""
    entries = []
    for name, dtype, shape, theirs in bit_tensors(150):
        rng = np.random.default_rng(len(name))
        theirs = theirs.reshape(shape).view(f"<u{theirs.itemsize}")
        moves = rng.integers(0, 2, shape).astype(theirs.dtype) * (name not in ("zeros", "long"))
        ours = theirs ^ (moves << 12 if name == "half" else moves)
        if name == "scaled":
            moved = (theirs.astype("<u4") << 16).view("<f4") + 0.01 * rng.standard_normal(shape)
            ours = (moved.astype("<f4").view("<u4") >> 16).astype("<u2")
        payload = b"\3" + pack_tensor(entries_of(ours), shape, dtype, entries_of(theirs))
        records = [Record(RecordType.PLANES, payload)]
        if needs_base(payload[1:]):
            records.insert(0, Record(RecordType.BASE, fingerprint(entries_of(theirs).reshape(-1))))
        entries.append(Entry(name, shape, dtype, tuple(records)))
    write(path, [], entries, base="bits")


def member(path: Path) -> None:
    """Matrices that are added to those of the family `bits`, as they are and transposed."""
    theirs = {name: (dtype, shape, found) for name, dtype, shape, found in bit_tensors(150)}
    members = [matrix(160, rows=48, columns=40), matrix(161, rows=48, columns=40), matrix(162, rows=48, columns=40)]
    tables = tables_of(members)
    entries = []
    for name, one, transposed in zip(("scaled", "single", "half"), members, (False, False, True), strict=True):
        dtype, shape, found = theirs[name]
        records = matrix_records(pack_residual(one, tables, 4, 100), None, transposed)
        mark = fingerprint(entries_of(found).reshape(-1))
        entries.append(Entry(name, shape, dtype, (Record(RecordType.BASE, mark), *records)))
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries, base="bits")


def direction(seed: int, names: Sequence[str]) -> Callable[[Path], None]:
    """Matrices that members of a family take shares of, for tensors of the family `bits`, one of them transposed."""

    def make(path: Path) -> None:
        shapes = {name: shape for name, _, shape, _ in bit_tensors(150)}
        members = {name: matrix(seed + number, rows=48, columns=40) for number, name in enumerate(names)}
        tables = tables_of(list(members.values()))
        entries = [
            Entry(name, shapes[name], "F32",
                  matrix_records(pack_residual(one, tables, 4, 100), None, shapes[name] != (48, 40)))
            for name, one in members.items()
        ]  # fmt: skip
        write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)

    return make


def shares(path: Path) -> None:
    """Matrices that are added to those of the family `bits` and to shares of two directions, one of them, and none."""
    theirs = {name: (dtype, shape, found) for name, dtype, shape, found in bit_tensors(150)}
    members = [matrix(200 + number, rows=48, columns=40) for number in range(3)]
    tables = tables_of(members)
    entries = []
    for name, one, taken in zip(("scaled", "single", "half"), members, ((0.5, -1.25), (0, 3.0), ()), strict=True):
        dtype, shape, found = theirs[name]
        first = [Record(RecordType.BASE, fingerprint(entries_of(found).reshape(-1)))]
        first += [Record(RecordType.TANGENT, pack_weights(taken, 10))] if taken else []
        records = matrix_records(pack_residual(one, tables, 4, 100), None, name == "half")
        entries.append(Entry(name, shape, dtype, (*first, *records)))
    marks = [Container(GOLDEN / "tangent" / number).fingerprint for number in "12"]
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries, base="bits", tangent=marks)


def coded_rows(seed: int, count: int, size: int) -> Rows:
    """A factor [count, size] whose rows and columns have different steps."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, size))
    return Rows.rounded(values, 2.0 ** rng.normal(-3, 1, count), 2.0 ** rng.normal(0, 1, size))


def sums(path: Path) -> None:
    """Every term beside a residual: of a tensor, transposed, reflected, of a slice; one shared by three tensors."""
    m, n = ROWS_OF_ALL, COLUMNS_OF_ALL
    weights = np.array([[0.5, -2.0], [1.0, 0.25], [-0.75, 3.0]], np.float32)
    terms = [
        Product(coded_rows(1, 3, m), coded_rows(2, 3, n)),
        RowSplines(coded_rows(3, 1, n), m),
        RowSplines(coded_rows(4, 5, n), m),
        ColumnSplines(coded_rows(5, 4, m), n),
        Shared(weights[0], (m, n), coded_rows(6, 2 * m, n)),
        Shared(weights[1], (m, n), None, "sum.4"),
        Shared(weights[2], (m, n), None, "sum.4"),
    ]
    members = [matrix(170 + number) for number in range(len(terms) + 2)]
    tables = tables_of(members)
    payloads = [pack_residual(one, tables, 4, 100) for one in members]
    entries = []
    for number, term in enumerate(terms):
        turns, transposed = [Reflection(COLUMNS)] * (number == 3), number in (0, 5)
        records = matrix_records(payloads[number], None, transposed, turns, None, pack_term(term))
        entries.append(
            Entry(f"sum.{number}", (n, m) if transposed else (m, n), "BF16" if number % 2 else "F32", records)
        )
    sliced = [
        record
        for index, term in enumerate((terms[2], terms[0]))
        for record in matrix_records(payloads[len(terms) + index], index, False, (), None, pack_term(term))
    ]
    entries.append(Entry("experts", (2, m, n), "F16", tuple(sliced)))
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)


def orthogonals(path: Path) -> None:
    """Planes, mirrors and Hadamards of both sides, on whole axes and on parts; two of one matrix, one transposed."""
    rng = np.random.default_rng(180)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    some = [tuple(sorted(rng.choice(24, 2, replace=False).tolist())) for _ in range(30)]
    turns = [
        [sparse(Axis(COLUMNS, 24), 9, [(i, j, int(rng.integers(-512, 513))) for i, j in some])],
        [
            Planes(Axis(COLUMNS, 6, 4), 20, *np.array(pairs).T, rng.integers(-(1 << 20), (1 << 20) + 1, 15)),
            sparse(Axis(COLUMNS, 4), 1, [(0, 1, -2), (0, 1, 2), (2, 3, 1)]),
        ],
        [
            Mirrors(Axis(ROWS, 20), rng.integers(-9, 10, (3, 20))),
            Mirrors(Axis(COLUMNS, 3, 2), np.array([[0, -7, 32768]])),
        ],
        [Hadamard(Axis(COLUMNS, 8), rng.integers(0, 2, 8).astype(bool)), Reflection(ROWS)],
        [Hadamard(Axis(ROWS, 2, 5), np.array([True, False])), Hadamard(Axis(COLUMNS, 2), np.array([False, True]))],
    ]  # fmt: skip
    members = [matrix(180 + number, columns=24) for number in range(len(turns))]
    tables = tables_of(members)
    entries = [
        Entry(f"turned.{number}", (24, 20) if number == 1 else (20, 24), "BF16" if number % 2 else "F32",
              matrix_records(pack_residual(one, tables, 4, 100), None, number == 1, turns[number]))
        for number, one in enumerate(members)
    ]  # fmt: skip
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries)


def llama(path: Path) -> None:
    """A model from `trueaxis.compress` itself."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = save_tokens(Path(folder) / "tokens.npy", 37)
        model = save_small_llama(Path(folder) / "model")
        trueaxis.compress(model, path, bits=9, calibration=[tokens])
    (path / "trueaxis.json").unlink()


FAMILIES: dict[str, Callable[[Path], None]] = {
    "trellises": trellises,
    **{f"alphabet-{largest}": alphabet(largest) for largest in MAGNITUDES},
    "classes": classes,
    "steps": steps,
    "lanes": lanes,
    "shared": shared,
    "shards": shards,
    "slices": slices,
    "reflections": reflections,
    "product": product,
    "exact": exact,
    "bits": bits,
    "beside": beside,
    "member": member,
    "tangent/1": direction(190, ("scaled", "half")),
    "tangent/2": direction(195, ("scaled", "single")),
    "shares": shares,
    "sums": sums,
    "orthogonals": orthogonals,
    "llama": llama,
}


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of the bits of every tensor of a compressed directory."""
    import torch

    decoded = Decoder(path).tensors()
    return {
        name: hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in decoded.items()
    }


def main() -> None:
    """Adds the families that are missing."""
    file = GOLDEN / "digests.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    for name, make in FAMILIES.items():
        if name in known:
            continue
        make(GOLDEN / name)
        known[name] = digests(GOLDEN / name)
        size = sum(one.stat().st_size for one in (GOLDEN / name).iterdir())
        print(f"{name}: {len(known[name])} tensors, {size:,} bytes")
    file.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
