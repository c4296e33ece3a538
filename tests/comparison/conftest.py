"""Text that the tests of comparisons share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    np.save(tmp_path / "unseen.npy", np.random.default_rng(1).integers(0, 128, (6, 80)))
    return tmp_path / "unseen.npy"
