"""Run a checkpoint: the whole model at once, or one block at a time over all of a text.

    ids ─▶ embed ─▶ [block 0] ─▶ [block 1] ─▶ … ─▶ norm ─▶ head
                     states and the other arguments of every block are caught once; then block after block runs

While inputs are caught, blocks stand still: they hand their input on, so that each is seen with its own masks and
positions. At the end they stand still again and the last one gives the final states, so that the rest can run.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from trueaxis.model.architecture import architecture, submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route
from trueaxis.progress import quiet_loading
from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.types import CheckpointError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a block, its hidden states left out
Through = Callable[[torch.nn.Module, torch.Tensor, Arguments], tuple[torch.Tensor, Any]]
"""(block, hidden states, the rest) ─▶ hidden states behind it, and whatever else is wanted of them."""


def load_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint as a transformers model: float32, evaluation mode, from local safetensors, no foreign code.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    found = architecture(checkpoint.config)
    if found is None:
        names = checkpoint.config.get("architectures"), checkpoint.config.get("model_type")
        raise CheckpointError(f"{checkpoint.path}: transformers does not know architectures {names[0]} ({names[1]})")
    try:
        with quiet_loading():
            model, keys = found[1].from_pretrained(
                **_weights_of(checkpoint, found[0]), dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.path}: transformers cannot load it ({error})") from error
    for name, found_shape, expected_shape in sorted(keys["mismatched_keys"]):
        raise CheckpointError(
            f"{name}: config.json says {list(expected_shape)}, {checkpoint.path} holds {list(found_shape)}; correct one"
        )
    if keys["missing_keys"]:
        raise CheckpointError(
            f"{min(keys['missing_keys'])}: {type(model).__name__} needs this tensor, but {checkpoint.path} lacks it, "
            "and would run with random numbers in its place; correct 'architectures' in config.json or the weights"
        )
    return model.eval().requires_grad_(False)


def _weights_of(checkpoint: Checkpoint, config: Any) -> dict[str, Any]:
    """Where transformers finds the weights: in the directory, or one by one in scratch, if together they are too
    large for memory. It takes a tensor of the dtype it wants as it is."""
    if checkpoint.scratch.has_room(4 * checkpoint.parameters):
        return {"pretrained_model_name_or_path": checkpoint.path}
    tensors = {name: checkpoint.scratch.tensor(checkpoint.tensor(name).float()) for name in checkpoint.entries}
    return {"pretrained_model_name_or_path": None, "config": config, "state_dict": tensors}


def untie(model: Any, places: Route) -> None:
    """Give the head of a tied model a matrix of its own."""
    if places.head is None or places.embedding is None:
        return
    head: Any = submodule(model, places.head)
    if head.weight is submodule(model, places.embedding).weight:
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)


def forward(model: Any, ids: torch.Tensor) -> Any:
    """Output of the whole model for ids [sequences, length]; an encoder–decoder reads them on both sides."""
    arguments: dict[str, Any] = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = ids
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = False
    return model(**arguments)


def through(block: torch.nn.Module, state: torch.Tensor, rest: Arguments) -> torch.Tensor:
    """Hidden states behind a block."""
    output = block(state, *rest[0], **rest[1])
    return output[0] if isinstance(output, tuple) else output


class StoppedError(Exception):
    """Ends a forward pass of which nothing more is wanted."""


class Steps:
    """A forward pass over many batches, one block at a time.

    Args:
        model: On the CPU; each block is on `device` while it runs.
        blocks: Names of the blocks.
        batches: Token ids [sequences, length].
        device: Where hidden states stay.
        scratch: Holds those that are on the CPU.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[str],
        batches: Sequence[torch.Tensor],
        device: str,
        scratch: NoScratch = NO_SCRATCH,
    ) -> None:
        self._model, self._batches, self._device, self._scratch = model, batches, device, scratch
        self._blocks: list[torch.nn.Module] = [submodule(model, name) for name in blocks]
        self._states: list[torch.Tensor] = []
        self._arguments: list[list[Arguments]] = [[] for _ in blocks]
        self._tuples = False
        moved: dict[int, Any] = {}

        def catch(index: int, state: torch.Tensor, rest: Arguments) -> torch.Tensor:
            if index == 0:
                self._states.append(scratch.tensor(state.to(device)))
            self._arguments[index].append(_moved(rest, device, moved))
            if index == len(blocks) - 1:
                raise StoppedError
            return state

        with self._standing_still(catch):
            for ids in batches:
                self._run(ids)

    @property
    def states(self) -> list[torch.Tensor]:
        """Hidden states of every batch as they are now [sequences, length, d]."""
        return self._states

    def gets_gradients(self) -> bool:
        """Whether gradients flow through anything that blocks get beside hidden states."""
        return any(_requires_gradients(given) for each in self._arguments for given in each)

    def skip_to(self, states: Sequence[torch.Tensor], blocks: int) -> None:
        """Go on after so many blocks, with the states that they left."""
        self._states[:] = [state.to(self._device) for state in states]
        for arguments in self._arguments[:blocks]:
            arguments.clear()

    @contextmanager
    def block(
        self, index: int, run_block: Through = lambda *given: (through(*given), None)
    ) -> Iterator[Callable[[int], Any]]:
        """While the context lasts, gives what replaces the hidden states of a batch by the output of a block.

        Several threads may call it at once, each with the number of another batch.

        Args:
            index: Of the block.
            run_block: Runs it; what it gives beside hidden states is returned.
        """
        block, arguments = self._blocks[index].to(self._device), self._arguments[index]

        def run(number: int) -> Any:
            state, found = run_block(block, self._states[number], arguments[number])
            self._states[number] = self._scratch.tensor(state)
            return found

        yield run
        arguments.clear()
        block.to("cpu")

    @contextmanager
    def finish(self) -> Iterator[Callable[[int], Any]]:
        """As `block`, for what comes after the last block, on the CPU; hooks there may raise StoppedError.

        What it gives returns the output of the model for a batch, or None where it was stopped.
        """
        current = threading.local()

        def give(index: int, state: torch.Tensor, rest: Arguments) -> torch.Tensor:
            del rest
            return self._states[current.number].cpu() if index == len(self._blocks) - 1 else state

        def run(number: int) -> Any:
            current.number = number
            return self._run(self._batches[number])

        with self._standing_still(give):
            yield run

    def _run(self, ids: torch.Tensor) -> Any:
        with suppress(StoppedError):
            return forward(self._model, ids)

    @contextmanager
    def _standing_still(self, act: Callable[[int, torch.Tensor, Arguments], torch.Tensor]) -> Iterator[None]:
        """While the context lasts, a block does nothing but call `act` and return what that returns."""
        for index, block in enumerate(self._blocks):

            def stand_in(*args: Any, index: int = index, real: Any = block.forward, **kwargs: Any) -> Any:
                state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
                if index == 0 and not self._states:  # older releases of transformers return tuples from some blocks
                    self._tuples = isinstance(real(state, *rest, **kwargs), tuple)
                given = act(index, state, (rest, kwargs))
                return (given,) if self._tuples else given

            block.forward = stand_in
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward


class Resumption:
    """Forward passes that start at a block instead of at the tokens: for changes of which earlier blocks know nothing.

    Args:
        model: Whole, on one device.
        blocks: Names of the blocks; without any, every pass starts at the tokens.
    """

    def __init__(self, model: Any, blocks: Sequence[str]) -> None:
        self._model = model
        self._blocks: list[torch.nn.Module] = [submodule(model, name) for name in blocks]
        self._tuples = [False] * len(blocks)

    def record(self, ids: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
        """Output for ids [sequences, length], and what entered every block and left the last."""
        states: list[torch.Tensor] = []
        handles = []
        for index, block in enumerate(self._blocks):

            def keep(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, index: int = index) -> None:
                self._tuples[index] = isinstance(out, tuple)
                states.append(args[0] if args else kwargs["hidden_states"])
                if index == len(self._blocks) - 1:
                    states.append(out[0] if isinstance(out, tuple) else out)

            handles.append(block.register_forward_hook(keep, with_kwargs=True))
        try:
            return forward(self._model, ids), states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def starting_at(self, start: int) -> Iterator[Callable[[torch.Tensor, list[torch.Tensor]], Any]]:
        """While the context lasts, gives (ids, their recorded states) ─▶ output, blocks before `start` left out.

        Several threads may call it at once.
        """
        given = threading.local()
        for index, block in enumerate(self._blocks[:start]):

            def stand_in(*args: Any, index: int = index, **kwargs: Any) -> Any:
                del args, kwargs
                state = given.states[index + 1]
                return (state,) if self._tuples[index] else state

            block.forward = stand_in

        def resume(ids: torch.Tensor, states: list[torch.Tensor]) -> Any:
            given.states = states
            return forward(self._model, ids)

        try:
            yield resume
        finally:
            for block in self._blocks[:start]:
                del block.forward


def _requires_gradients(value: Any) -> bool:
    """Whether a nest of tuples, lists and dicts holds a tensor that requires gradients."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return any(map(_requires_gradients, value))
    return isinstance(value, torch.Tensor) and value.requires_grad


def _moved(value: Any, device: str, done: dict[int, Any]) -> Any:
    """The same nest of tuples, lists and dicts with its tensors on a device; a tensor moves once."""
    if isinstance(value, torch.Tensor):
        if id(value) not in done:
            done[id(value)] = (value.to(device), value)  # kept alive: its id must not be given to another
        return done[id(value)][0]
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device, done) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device, done) for key, item in value.items()}
    return value
