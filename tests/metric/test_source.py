"""Where statistics come from: files of one length are one text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trueaxis.metric.source import read_tokens


def test_files_of_one_length_are_one_text(tmp_path: Path) -> None:
    ids = np.arange(48).reshape(6, 8)
    np.save(tmp_path / "first.npy", ids[:2].astype(np.uint16))
    np.save(tmp_path / "short.npy", ids[:2, :3])
    np.save(tmp_path / "second.npy", ids[2:].astype(np.int32))
    found = read_tokens(tmp_path, [tmp_path / f"{name}.npy" for name in ("short", "first", "second")])
    assert [array.shape for array in found] == [(6, 8), (2, 3)], "most tokens first"
    assert np.array_equal(found[0], ids)
    assert np.array_equal(found[1], ids[:2, :3])
    assert read_tokens(tmp_path, []) == []
