"""Progress: stages tell a callable how far they are; the command line turns that into a bar with time left."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, units done, units in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""
