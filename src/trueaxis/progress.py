"""Progress: stages tell a callable how far they are; the command line turns that into a bar with time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with (stage, units done, units in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While the context lasts, transformers neither draws bars nor reports on keys: who loads looks at those itself."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
