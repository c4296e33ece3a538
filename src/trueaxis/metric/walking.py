"""Walk: a model that goes through a text block by block and tells what its modules read, as often as is asked.

    states of a batch ─▶ [block] ─▶ what some of its modules read        until: to one module, and no further
                                                                         passed: through the block, for good

Several threads may ask at once, each for another batch.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from trueaxis.metric.running import Steps, StoppedError
from trueaxis.model.architecture import submodule
from trueaxis.scratch import NO_SCRATCH, NoScratch


class Walk:
    """One way through the text.

    Args:
        model: Whole, on the CPU.
        blocks: Names of its blocks.
        batches: Token ids [sequences, length].
        scratch: Holds hidden states.
    """

    def __init__(
        self, model: Any, blocks: Sequence[str], batches: Sequence[torch.Tensor], scratch: NoScratch = NO_SCRATCH
    ) -> None:
        self._model = model
        with torch.inference_mode():
            self._steps = Steps(model, blocks, batches, "cpu", scratch)
        self._asked = threading.local()

    @contextmanager
    def block(self, index: int, modules: Collection[str]) -> Iterator[None]:
        """While the context lasts, that block is the one to ask about, and these are its modules of interest."""
        with self._hearing(modules), self._steps.block(index) as self._run:
            yield

    @contextmanager
    def finish(self, head: str) -> Iterator[None]:
        """As `block`, for what comes after the last one; the head itself does not run."""
        with self._hearing([head]), self._steps.finish() as self._run:
            yield

    def until(self, number: int, module: str) -> dict[str, torch.Tensor]:
        """What modules up to this one read of a batch [tokens, n]; the model stays where it is."""
        return self._heard(number, module)

    def passed(self, number: int) -> dict[str, torch.Tensor]:
        """Takes a batch through the block; what its modules read [tokens, n], in the order of their calls."""
        return self._heard(number, None)

    def _heard(self, number: int, last: str | None) -> dict[str, torch.Tensor]:
        self._asked.last, self._asked.found = last, {}
        with suppress(StoppedError), torch.inference_mode():
            self._run(number)
        return self._asked.found

    @contextmanager
    def _hearing(self, modules: Collection[str]) -> Iterator[None]:
        handles = []
        for module in modules:

            def hear(found: Any, args: tuple[Any, ...], module: str = module) -> None:
                if args and args[0].shape[-1] in found.weight.shape:
                    self._asked.found[module] = args[0].reshape(-1, args[0].shape[-1])
                if module == self._asked.last:
                    raise StoppedError

            handles.append(submodule(self._model, module).register_forward_pre_hook(hear))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
