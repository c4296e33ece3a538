"""Walk: a model that goes through a text block by block and tells what its modules read, as often as is asked.

    states of a batch ─▶ [block] ─▶ what some of its modules read        until: to one module, and no further
                                                                         passed: through the block, for good

What a module read is kept where a larger module does nothing after it, as attention after its last matrix: the larger
one need not run again. Several threads may ask at once, each for another batch.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from trueaxis.metric.listening import routed
from trueaxis.metric.running import Steps, StoppedError
from trueaxis.model.architecture import submodule
from trueaxis.scratch import NO_SCRATCH, NoScratch


def shares_of(experts: str) -> str:
    """Name under which a walk tells the weights of experts [tokens, experts]: 0 where a token goes elsewhere."""
    return f"{experts} shares"


class Walk:
    """One way through the text.

    Args:
        model: Whole, on the CPU.
        blocks: Names of its blocks.
        batches: Token ids [sequences, length].
        scratch: Holds hidden states, and what is kept of what modules read.

    Attributes:
        last: Module that is the last act of the one around it → how many things that returns, 0 for a tensor alone;
            learned from batches that pass, or from another walk of the same architecture.
    """

    def __init__(
        self, model: Any, blocks: Sequence[str], batches: Sequence[torch.Tensor], scratch: NoScratch = NO_SCRATCH
    ) -> None:
        self._model, self._blocks, self._scratch = model, blocks, scratch
        with torch.inference_mode():
            self._steps = Steps(model, blocks, batches, "cpu", scratch)
        self._asked = threading.local()
        self.last: Mapping[str, int] = {}
        self._kept: dict[tuple[str, int], torch.Tensor] = {}

    @contextmanager
    def block(self, index: int, modules: Collection[str], experts: Collection[str] = ()) -> Iterator[None]:
        """While the context lasts, that block is the one to ask about, and these are its modules of interest.

        Modules of experts tell what they get [tokens, d], and under `shares_of` what of each expert's output counts.
        """
        around: dict[str, list[str]] = {}
        for module in modules:
            around.setdefault(module.rpartition(".")[0], []).append(module)
        around.pop(self._blocks[index], None)
        with (
            self._hearing(modules),
            self._hearing_experts(experts),
            self._standing_in(around),
            self._steps.block(index) as self._run,
        ):
            yield
        self._kept.clear()

    @contextmanager
    def finish(self, head: str) -> Iterator[None]:
        """As `block`, for what comes after the last one; the head itself does not run."""
        with self._hearing([head]), self._steps.finish() as self._run:
            yield

    def until(self, number: int, module: str) -> dict[str, torch.Tensor]:
        """What modules up to this one read of a batch [tokens, n]; the model stays where it is.

        The matrices before it stay as they are from then on. Modules inside one that need not run tell nothing.
        """
        return self._heard(number, module)

    def passed(self, number: int) -> dict[str, torch.Tensor]:
        """Takes a batch through the block; what its modules read [tokens, n], in the order of their calls."""
        return self._heard(number, None)

    def _heard(self, number: int, until: str | None) -> dict[str, torch.Tensor]:
        self._asked.number, self._asked.until, self._asked.found = number, until, {}
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
                if module == self._asked.until:
                    if module in self.last and (module, self._asked.number) not in self._kept:
                        self._kept[module, self._asked.number] = self._scratch.tensor(args[0])
                    raise StoppedError

            def tell(found: Any, args: Any, output: Any, module: str = module) -> None:
                self._asked.told = module, output

            handles.append(submodule(self._model, module).register_forward_pre_hook(hear))
            handles.append(submodule(self._model, module).register_forward_hook(tell))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _hearing_experts(self, modules: Collection[str]) -> Iterator[None]:
        handles = []
        for module in modules:

            def hear(found: Any, args: tuple[Any, ...], kwargs: dict[str, Any], module: str = module) -> None:
                states, chosen, weights = routed([*args, *kwargs.values()])
                shares = weights.new_zeros(len(states), found.gate_up_proj.shape[0])
                self._asked.found[module] = states
                self._asked.found[shares_of(module)] = shares.scatter_add_(1, chosen, weights)
                if module == self._asked.until:
                    raise StoppedError

            handles.append(submodule(self._model, module).register_forward_pre_hook(hear, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _standing_in(self, around: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """While the context lasts, a module around others does no more than is needed."""
        parents = [submodule(self._model, name) for name in around]
        for parent, modules in zip(parents, around.values(), strict=True):

            def stand_in(
                *args: Any, modules: Sequence[str] = modules, real: Any = parent.forward, **kwargs: Any
            ) -> Any:
                for module in modules:
                    if (read := self._kept.get((module, self._asked.number))) is not None:
                        output, size = submodule(self._model, module)(read), self.last[module]
                        return (output, *[None] * (size - 1)) if size else output
                output = real(*args, **kwargs)
                self._learn(output)
                return output

            parent.forward = stand_in
        try:
            yield
        finally:
            for parent in parents:
                del parent.forward

    def _learn(self, output: Any) -> None:
        """Whether what a module returns is what the last one inside it returned, and nothing else."""
        module, told = getattr(self._asked, "told", ("", None))
        first, *others = output if isinstance(output, tuple) else (output,)
        if told is not None and first is told and all(other is None for other in others):
            self.last = {**self.last, module: len(output) if isinstance(output, tuple) else 0}
