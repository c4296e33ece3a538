"""Backward: gradients of a loss through a model, one block at a time.

    forward     ids ─▶ embed ─▶ [block 0] ─▶ [block 1] ─▶ … ─▶ norm, head ─▶ loss
                              ╎            ╎            ╎        hidden states at these borders are kept, in scratch
    backward    ∂ before it ◀─ [run it once more, differentiate] ◀─ ∂ behind it

Nothing inside a block outlasts it, so that memory holds the activations of one block and one batch per worker, however
deep the model is. Each block runs twice forward. Gradients are those of one pass through the whole, to the last bit.

References: Chen et al. 2016 (arXiv:1604.06174), recomputation for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trueaxis.metric.running import Steps, forward
from trueaxis.scratch import NoScratch

Loss = Callable[[Any], "torch.Tensor | None"]
"""Output of the model for a batch ─▶ what is differentiated, summed over its tokens; None where there is no such."""


class Over(Protocol):
    """Runs work on every batch and sees to what is heard meanwhile."""

    def __call__(self, work: Callable[[int], Any], *, side_by_side: bool = True) -> list[Any]:
        """Results of all batches, in order."""
        ...


class Recalled(Protocol):
    """Keeps what steps found, for a run that is resumed."""

    def resume(self, blocks: int) -> tuple[int, list[torch.Tensor]] | None:
        """How many of the blocks an earlier run left, and the gradients of every batch behind them; None for none."""
        ...

    def keep(self, left: int, gradients: Sequence[torch.Tensor]) -> None:
        """Gradients of every batch behind the blocks that are left."""
        ...


@dataclass(frozen=True, eq=False)
class Text:
    """What to differentiate.

    Attributes:
        model: In evaluation mode.
        batches: Token ids [sequences, length].
        loss: Called in the order of the batches.
        over: Runs work on them, with gradients enabled.
        device: Where the model runs.
        done: Told (steps done, all).
        recalled: Told every step, and knows those of an earlier run.
    """

    model: Any
    batches: Sequence[torch.Tensor]
    loss: Loss
    over: Over
    device: str
    done: Callable[[int, int], None]
    recalled: Recalled


def backward_whole(text: Text) -> bool:
    """Each batch through the whole model, which is on the device, and back; whether there was a loss."""

    def run(number: int) -> bool:
        found = text.loss(forward(text.model, text.batches[number].to(text.device)))
        if found is not None:
            found.backward()
        text.done(number + 1, len(text.batches))
        return found is not None

    return all(text.over(run, side_by_side=False))


def backward_by_blocks(text: Text, blocks: Sequence[str], scratch: NoScratch) -> bool:
    """All batches through one block after another, and back.

    Args:
        text: Its model is on the CPU; each block is on the device while it runs.
        blocks: Names of the blocks; `separable`.
        scratch: Holds hidden states and their gradients.

    Returns:
        Whether there was a loss.
    """
    count, known = len(blocks) + 2, text.recalled.resume(len(blocks))
    left, gradients = known or (len(blocks), [])
    borders = _borders(text, blocks, left, scratch)
    with torch.no_grad():  # once more, for the arguments of blocks
        steps = Steps(text.model, blocks, text.batches, text.device)
    if known is None:
        gradients = _from_the_end(text, steps, borders[-1], scratch)
        if gradients is None:
            return False
        text.recalled.keep(left, gradients)
        text.done(1, count)
    for index in reversed(range(left)):
        borders.pop()
        with steps.block(index) as run:

            def through(number: int, run: Callable[[int], Any] = run, behind: Any = tuple(gradients)) -> torch.Tensor:
                steps.states[number] = leaf = borders[-1][number].detach().requires_grad_()
                run(number)
                steps.states[number].backward(behind[number])
                steps.states[number] = leaf.detach()
                return _gradient(leaf, scratch)

            gradients = text.over(through)
        text.recalled.keep(index, gradients)
        text.done(len(blocks) - index + 1, count)

    def at_the_start(number: int) -> None:
        (state,) = Steps(text.model, blocks, [text.batches[number]], text.device).states
        if state.requires_grad:
            state.backward(gradients[number])

    text.over(at_the_start, side_by_side=False)
    text.done(count, count)
    return True


def _from_the_end(
    text: Text, steps: Steps, states: Sequence[torch.Tensor], scratch: NoScratch
) -> list[torch.Tensor] | None:
    """Gradients of every batch behind the last block; None where there is no loss."""
    steps.states[:] = states
    with steps.finish() as run:

        def at_the_end(number: int) -> torch.Tensor | None:
            steps.states[number] = leaf = states[number].detach().requires_grad_()
            found = text.loss(run(number))
            if found is None:
                return None
            found.backward()
            return _gradient(leaf, scratch)

        gradients = text.over(at_the_end, side_by_side=False)
    return None if any(gradient is None for gradient in gradients) else gradients


def separable(text: Text, blocks: Sequence[str]) -> bool:
    """Whether gradients reach what comes before a block through hidden states alone."""
    if not blocks:
        return False
    with torch.enable_grad():
        return not Steps(text.model, blocks, text.batches[:1], text.device).gets_gradients()


def _borders(text: Text, blocks: Sequence[str], count: int, scratch: NoScratch) -> list[list[torch.Tensor]]:
    """Hidden states of every batch before each of the first `count` blocks and behind the last of them."""
    with torch.no_grad():
        steps = Steps(text.model, blocks, text.batches, text.device, scratch)
    borders = [list(steps.states)]
    for index in range(count):
        with steps.block(index) as run:

            def through(number: int, run: Callable[[int], Any] = run) -> None:
                with torch.no_grad():  # of this thread
                    run(number)

            text.over(through)
        borders.append(list(steps.states))
    return borders


def _gradient(leaf: torch.Tensor, scratch: NoScratch) -> torch.Tensor:
    assert leaf.grad is not None
    return scratch.tensor(leaf.grad)
