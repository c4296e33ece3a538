"""Terms: they decode to what was packed, damage is refused by name, and few bytes never stand for a huge factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden import coded_rows
from trueaxis.entropy.varint import pack_varint
from trueaxis.header import TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.matrices import matrices
from trueaxis.runtime.terms import ColumnSplines, Product, Rows, RowSplines, Shared, hats, pack_term, read_term
from trueaxis.types import Array, FormatError

M, N = 11, 7
GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
TERMS = {
    "product": Product(coded_rows(1, 3, M), coded_rows(2, 3, N)),
    "rows": RowSplines(coded_rows(3, 4, N), M),
    "columns": ColumnSplines(coded_rows(4, 1, M), N),
    "own": Shared(np.array([0.5, -1], np.float32), (M, N), coded_rows(5, 2 * M, N)),
}


def held(name: str) -> Array:
    if name != "holder":
        raise ValueError(f"{name!r} holds nothing")
    return np.arange(2.0 * M * N, dtype=np.float32).reshape(2, M, N)


@pytest.mark.parametrize("name", TERMS)
def test_terms_come_back(name: str) -> None:
    term = TERMS[name]
    found = read_term(pack_term(term), M, N).values(held)
    assert found.shape == (M, N) and found.dtype == np.float32
    np.testing.assert_array_equal(found, term.values(held))


def test_shared_matrices_come_from_the_tensor_that_holds_them() -> None:
    term = Shared(np.array([2, -0.5], np.float32), (M, N), None, "holder")
    found = read_term(pack_term(term), M, N).values(held)
    np.testing.assert_array_equal(found, 2 * held("holder")[0] - 0.5 * held("holder")[1])
    other = Shared(np.ones(1, np.float32), (M, N), None, "holder")
    with pytest.raises(ValueError, match=r"'holder' holds matrices \[2, 11, 7\]"):
        read_term(pack_term(other), M, N).values(held)


def test_rounding_is_to_half_a_step() -> None:
    rng = np.random.default_rng(0)
    values, rows, columns = rng.normal(size=(3, 20)), 2.0 ** rng.normal(size=3), 2.0 ** rng.normal(size=20)
    error = Rows.rounded(values, rows, columns).values() - values
    assert (np.abs(error) <= 0.5 * 2**0.26 * rows[:, None] * columns).all()


def test_hats_add_up_to_one() -> None:
    for knots, size in ((1, 1), (1, 5), (2, 2), (4, 9), (9, 9)):
        np.testing.assert_allclose(hats(knots, size).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\1", "term none is unknown"),
        (b"\1\4\1", "term 04 is unknown"),
        (b"\1\0" + pack_varint(N + 1), r"rank 8 does not make \[11, 7\]"),
        (b"\1\1" + pack_varint(0), "rank 0 does not make"),
        (b"\1\1" + pack_varint(3) + pack_varint(9), "0 bytes are too few"),
        (b"\1\3" + pack_varint(17) + bytes(100), "sum of 17 shared"),
        (b"\1\3" + pack_varint(2) + bytes(4), "sum of 2 shared"),
        (b"\1\3" + pack_varint(1) + b"\0\0\x80\x7f" + b"\1a", "not finite"),
        (b"\1\3" + pack_varint(1) + bytes(4) + pack_varint(5) + b"abc", "cut off"),
        (pack_term(TERMS["rows"]) + b"\0", "1 bytes are left"),
    ],
)
def test_damage_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_term(payload, M, N)


def test_few_bytes_never_stand_for_a_huge_factor() -> None:
    payload = b"\1\1" + pack_varint(1000) + pack_varint(4) + bytes(4)
    with pytest.raises(ValueError, match=r"4 bytes are too few for a factor \[1000, 1000\]"):
        read_term(payload, 1000, 1000)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(TERMS)), place=st.integers(0, 1 << 16), value=st.integers(0, 255))
def test_any_damage_is_an_error_or_a_term(name: str, place: int, value: int) -> None:
    payload = bytearray(pack_term(TERMS[name]))
    payload[1 + place % (len(payload) - 1)] = value
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = read_term(bytes(payload), M, N).values(held)
    except (ValueError, IndexError):
        return
    assert found.shape == (M, N)


def test_records_stand_before_one_residual() -> None:
    function, residual = Record(RecordType.FUNCTION, pack_term(TERMS["rows"])), Record(RecordType.RESIDUAL, b"")
    info = TensorInfo("w", (M, N), "F32", 0, 0, 0)
    (found,) = matrices(info, [function, residual])
    assert found.function == pack_term(TERMS["rows"]) and not found.factor
    for records in ([function], [function, function, residual], [function, residual, residual],
                    [function, Record(RecordType.TRANSFORM, b"\0"), residual]):  # fmt: skip
        with pytest.raises(FormatError, match="w: "):
            matrices(info, records)


def test_a_missing_holder_is_named() -> None:
    decoder = Decoder(GOLDEN / "sums")
    with pytest.raises(ValueError, match=r"'sum\.0' holds no matrices for others"):
        decoder._bases("sum.0")


def test_tensors_can_be_asked_for_again() -> None:
    """Values of a shared stream are kept: f is added to a copy."""
    decoder = Decoder(GOLDEN / "sums")
    for name in decoder.names():
        np.testing.assert_array_equal(decoder.tensor(name).float().numpy(), decoder.tensor(name).float().numpy())
