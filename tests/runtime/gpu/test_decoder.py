"""Decoding on a GPU: the CPU's bits, or an error where the CPU has one; Triton's interpreter stands in for a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trueaxis
from trueaxis.entropy.model import CLASSES, Tables, fit_tables
from trueaxis.entropy.stream import (
    ResidualHeader,
    decode_values,
    described,
    pack_residual,
    parts,
    segment,
    unpack_residual,
)
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.planes import bits_of
from trueaxis.types import Array, Contexts, FormatError, Grid, Quantized

pytest.importorskip("triton", reason="Triton is not installed")

from trueaxis import _core
from trueaxis.runtime.gpu import launch
from trueaxis.runtime.gpu.decoder import GpuDecoder
from trueaxis.runtime.gpu.plan import Coded, Described, DeviceTables, Plan, Work

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GOLDEN = Path(__file__).parents[2] / "golden" / "v1"
# The interpreter takes half a minute for each of these; their classes and steps are in random streams as well.
LONG = () if torch.cuda.is_available() else ("classes", "llama", "steps")
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json") if path.parent.name not in LONG)
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def coded(
    seed: int, rows: int, columns: int, trellis: int, lanes: int, chain: int, scale: float
) -> tuple[ResidualHeader, Tables]:
    """Laplacian indices of spread scales, two groups of columns; large scales make escapes."""
    rng = np.random.default_rng(seed)
    row_codes = rng.integers(-4, 5, rows).astype(np.int32)
    column_codes = rng.integers(34, 48, columns).astype(np.int32)
    spread = scale * 2.0 ** ((row_codes[None, :] + column_codes[:, None] - 40) / 8)
    indices = np.rint(rng.laplace(size=(columns, rows)) * spread).astype(np.int32)
    steps = rng.integers(-1000, 200, columns).astype(np.int32)  # products of steps below the normal numbers, too
    grid = Grid(steps, rng.integers(-20, 20, (rows, 2)).astype(np.int32), 8, -(-columns // 2))
    if columns == 1:
        grid = Grid(steps, grid.row_codes[:, :1], 8, 1)
    quantized = Quantized(indices, grid, Contexts(row_codes, column_codes, 1), trellis, seed % 2 == 0)
    counts = _core.count_symbols(CLASSES, 63, [segment(quantized)])
    tables = fit_tables(counts, rng.integers(-64, 64, (2, CLASSES, 2)).astype(np.int8))
    return unpack_residual(pack_residual(quantized, tables, lanes, chain), rows, columns), tables


def decoded(header: ResidualHeader, tables: Tables, wide: bool, transposed: bool = False) -> Array:
    """Values as the kernels make them: float32, or the bits of bfloat16.

    Raises:
        FormatError: A stream's status is not zero.
    """
    streams = Coded(header.streams, DEVICE)
    ranges = parts(header.columns, header.lanes, header.strips_per_stream)
    work = [
        Work(span, header.lanes, ((0, part.start, part.stop - part.start),))
        for part, span in zip(ranges, streams.spans, strict=True)
    ]
    plan = Plan(DeviceTables(tables, DEVICE), work, [Described(*described(header, tables))], wide, DEVICE)
    scratch, statuses = launch.new_scratch(plan), torch.empty(len(work), dtype=torch.int32, device=DEVICE)
    launch.decode(plan, streams, scratch, statuses)
    shape = (header.columns, header.rows) if transposed else (header.rows, header.columns)
    out = torch.empty(shape, dtype=torch.float32 if wide else torch.bfloat16, device=DEVICE)
    launch.place(plan, scratch, launch.Placed.on(plan, [(0, out)], transposed))
    for status in statuses.tolist():
        if status:
            raise FormatError(launch.told(status))
    found = (out.T if transposed else out).contiguous().cpu()
    return found.numpy() if wide else found.view(torch.int16).numpy().view(np.uint16)


@few
@given(
    st.integers(0, 1 << 32),
    st.tuples(st.integers(1, 9), st.integers(1, 45)),
    st.integers(0, 7),
    st.integers(1, 32),
    st.sampled_from([1, 200, 1 << 20]),
    st.sampled_from([0.2, 1.0, 12.0]),
    st.booleans(),
    st.booleans(),
)
def test_values_are_those_of_the_cpu(
    seed: int,
    shape: tuple[int, int],
    trellis: int,
    lanes: int,
    chain: int,
    scale: float,
    wide: bool,
    transposed: bool,
) -> None:
    header, tables = coded(seed, *shape, trellis, lanes, chain, scale)
    expected = decode_values(header, tables, not wide, 1)
    found = decoded(header, tables, wide, transposed)
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_escapes() -> None:
    header, tables = coded(3, 5, 40, 5, 32, 1 << 20, 60.0)
    assert sum(len(escapes) for _, escapes in header.streams) > 8
    np.testing.assert_array_equal(decoded(header, tables, False), decode_values(header, tables, True, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_files(name: str) -> None:
    decoder = Decoder(GOLDEN / name)
    found = GpuDecoder(GOLDEN / name, device=DEVICE).tensors(torch.bfloat16)
    for key, expected in decoder.tensors(torch.bfloat16).items():
        assert found[key].shape == expected.shape
        assert np.array_equal(bits_of(found[key].cpu()), bits_of(expected))


@few
@given(st.integers(0, 1 << 32), st.sampled_from(["word", "escape", "cut", "more", "escapes cut"]), st.data())
def test_damage_is_an_error_where_it_is_one_for_the_cpu(seed: int, kind: str, data: st.DataObject) -> None:
    header, tables = coded(seed, 2, 14, 5, 16, 1 << 20, 12.0)
    stream, escapes = header.streams[0]
    changed = bytearray(escapes if kind.startswith("escape") else stream)
    if kind in ("word", "escape") and changed:
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "more":
        changed += b"\1\0"
    else:
        changed = changed[: max(0, len(changed) - 2)]
    pair = (stream, bytes(changed)) if kind.startswith("escape") else (bytes(changed), escapes)
    header = ResidualHeader(**{**header.__dict__, "streams": (pair, *header.streams[1:])})
    try:
        expected = decode_values(header, tables, True, 1)
    except FormatError as error:
        with pytest.raises(FormatError) as raised:
            decoded(header, tables, False)
        assert str(raised.value).split("; ")[0] in (*launch.DAMAGE, str(error).split("; ")[0])
        return
    np.testing.assert_array_equal(decoded(header, tables, False), expected)


def test_an_error_names_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = GpuDecoder(GOLDEN / "shards", device=DEVICE)
    name = next(name for name in decoder.names() if decoder._is_plain(name))
    span = decoder._work[name, 0][0].span
    decoder._coded.words.view(torch.int16)[span.word + span.words - 1] ^= 1
    with pytest.raises(FormatError, match=rf"^{name}: stream: .*; the file is damaged$"):
        decoder.tensor(name)


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(trueaxis.TrueaxisError, match=rf"device '{device}' is not available: .*; use device 'cpu'"):
        trueaxis.load(GOLDEN / "llama", device=device)


@needs_gpu
@pytest.mark.parametrize("resident", ["dense", "compressed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_models(resident: str, dtype: torch.dtype) -> None:
    ids = torch.arange(24, device=DEVICE)[None] % 32
    model = trueaxis.load(GOLDEN / "llama", dtype, resident=resident, device="cuda")
    dense = trueaxis.load(GOLDEN / "llama", dtype).to("cuda")
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"cuda"}
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(model(ids).logits, dense(ids).logits)
    left, right = model.state_dict(), dense.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
