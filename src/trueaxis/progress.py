"""Progress: stages tell a callable how far they are; the command line turns that into a bar with time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with (stage, units done, units in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def hidden_bars() -> Iterator[None]:
    """While the context lasts, transformers draws no progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
