"""Run a checkpoint over text and sum what its matrices read.

    tokens ─▶ embed ─▶ block 0 ─▶ block 1 ─▶ … ─▶ final norm ─▶ head
                        Σ x xᵀ, Σ x per input space, at every step

Where the blocks are known (families.py), each runs over all of the text before the next, and only one is at work at a
time; any other model runs in one piece. One that cannot be run leaves no sums, and the statistics say why. Products are
float32 over at most 4,096 tokens, the sums over those float64. Batches of blocks run side by side, each on one
processor of this machine or a cluster (engine.py), and are added up in order: the sums are the same wherever they run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trueaxis.engine import LOCAL, Local
from trueaxis.journal import NO_JOURNAL, NoJournal
from trueaxis.metric.listening import CHUNK_TOKENS, Hearing, Sum, listening, packed, unpacked
from trueaxis.metric.running import Arguments, Steps, StoppedError, forward, load_model, through
from trueaxis.metric.sketch import keep_smallest, shingle_hashes
from trueaxis.metric.statistics import Chunk, Statistics
from trueaxis.model.architecture import positions, submodule
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.discover import HEAD_SPACE
from trueaxis.model.graph import Route, route, trace
from trueaxis.parallel import default_threads, one_thread
from trueaxis.types import Array, CalibrationError, CheckpointError, Weight

Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what was done)

MINIMUM_TOKENS = 1024
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def calibrate(
    checkpoint: Checkpoint,
    tokens: Array,
    *,
    seed: int,
    progress: Progress | None = None,
    sequences: range | None = None,
    device: str = "cpu",
    threads: int | None = None,
    journal: NoJournal = NO_JOURNAL,
    engine: Local = LOCAL,
) -> Statistics:
    """Sum the activations of a checkpoint over calibration text.

    Args:
        checkpoint: The model to run, in float32.
        tokens: Token ids, integers [sequences, length].
        seed: For models that draw random numbers as they run; the global generator is left as it was.
        progress: Called after every block.
        sequences: Part of `tokens` to read, so that several machines share a text; all of it by default.
            Statistics of separate parts merge.
        device: Where blocks run, one at a time; hidden states of the whole text stay there between blocks.
        threads: Batches side by side, on a CPU; all processors by default. The sums do not depend on it.
        journal: Knows blocks that an earlier run calibrated.
        engine: Where batches run, unless they run on a device. The sums do not depend on it.

    Returns:
        Statistics without sensitivities.

    Raises:
        CalibrationError: The tokens do not fit the model or are too few.
        CheckpointError: The checkpoint cannot be run, or its activations are not finite.
    """
    weights = trace(checkpoint)
    part = _checked_part(checkpoint, weights, tokens, sequences)
    for name in checkpoint.entries:
        check_finite(name, checkpoint.tensor(name))
    places = route(checkpoint)
    batches = list(split_sequences(tokens[part.start : part.stop]))
    unrun = ""
    random_devices = [] if device == "cpu" else [device]
    with torch.random.fork_rng(random_devices), torch.inference_mode(), one_thread():
        torch.manual_seed(seed)
        if places.blocks:
            side_by_side = 1 if device != "cpu" else threads or default_threads()
            found = _Recalled(journal, f"{hash_tokens(tokens)} {part}")
            used = LOCAL if device != "cpu" else engine
            sums = _run_by_blocks(checkpoint, places, batches, device, side_by_side, progress, found, used)
        else:
            sums, unrun = _run_whole(checkpoint, places, batches, device, progress)
    _check_sums(checkpoint, sums)
    spaces = {weight.space for weight in weights if weight.space is not None}
    return _as_statistics(checkpoint, tokens, part, sums, tuple(sorted(spaces - sums.keys())), unrun)


def _run_by_blocks(
    checkpoint: Checkpoint,
    places: Route,
    batches: list[torch.Tensor],
    device: str,
    threads: int,
    progress: Progress | None,
    recalled: _Recalled,
    engine: Local,
) -> dict[str, Sum]:
    model, hearing = load_model(checkpoint), Hearing(checkpoint.scratch)
    steps = Steps(model, places.blocks, batches, device, checkpoint.scratch)
    count = len(places.blocks) + 1
    for index, block in list(enumerate(places.blocks))[recalled.resume(steps, hearing, len(places.blocks)) :]:
        ear = Ear(submodule(model, block), hearing)

        def heard(_block: Any, *given: Any, ear: Ear = ear) -> tuple[torch.Tensor, dict[str, Sum]]:
            return engine.call(hear, ear, *given)

        with listening(model, places.inside[index], hearing), steps.block(index, heard) as run:
            hearing.gather(run, len(batches), engine.side_by_side(threads))
        engine.forget(ear)
        recalled.keep(index, steps, hearing)
        if progress is not None:
            progress(index + 1, count, block)
    at_the_end = _hearing_the_head(model, places, hearing, stop=True)
    with listening(model, places.outside, hearing), at_the_end, steps.finish() as run:
        hearing.over(run, len(batches), threads)
    if progress is not None:
        progress(count, count, HEAD_SPACE)
    return hearing.sums


class Ear(NamedTuple):
    """A block, and what its hooks tell."""

    block: torch.nn.Module
    hearing: Hearing


def hear(ear: Ear, state: torch.Tensor, rest: Arguments) -> tuple[torch.Tensor, dict[str, Sum]]:
    """A batch through a block: hidden states behind it, and sums of what its modules read."""
    return ear.hearing.during(lambda: through(ear.block, state, rest))


class _Recalled:
    """Blocks of one text in a journal: the sums of each, and the states that the last one left."""

    def __init__(self, journal: NoJournal, text: str) -> None:
        self._journal, self._text = journal, text
        self._known: set[str] = set()

    def resume(self, steps: Steps, hearing: Hearing, blocks: int) -> int:
        """Blocks that need not run again; their sums and what they left are put in place."""
        done = next((n for n in range(blocks, 0, -1) if self._journal.recall(self._states_after(n)) is not None), 0)
        sums = [self._journal.recall(self._sums_of(index)) for index in range(done)]
        left = self._journal.recall(self._states_after(done)) if done else None
        if left is None or not all(sums):
            return 0
        for entry in sums:
            hearing.sums |= {} if entry is None else unpacked(*entry)
        self._known |= hearing.sums.keys()
        steps.skip_to([torch.from_numpy(left.arrays[str(number)]) for number in range(len(left.arrays))], done)
        return done

    def keep(self, index: int, steps: Steps, hearing: Hearing) -> None:
        """Sums and states of the block that has just run."""
        if self._journal is NO_JOURNAL:
            return
        own = {space: one for space, one in hearing.sums.items() if space not in self._known}
        self._known |= own.keys()
        self._journal.keep(self._sums_of(index), *packed(own))
        states = {str(number): state.cpu().numpy() for number, state in enumerate(steps.states)}
        self._journal.keep(self._states_after(index + 1), states)
        self._journal.forget(self._states_after(index))

    def _sums_of(self, index: int) -> str:
        return f"sums {self._text} {index}"

    def _states_after(self, blocks: int) -> str:
        return f"states {self._text} {blocks}"


def _run_whole(
    checkpoint: Checkpoint,
    places: Route,
    batches: list[torch.Tensor],
    device: str,
    progress: Progress | None,
) -> tuple[dict[str, Sum], str]:
    """Run a model whose blocks are not known, one batch after another, since it may draw random numbers; the sums, and
    why there are none."""
    hearing = Hearing(checkpoint.scratch)

    def run(number: int) -> None:
        forward(model, batches[number].to(device))
        if progress is not None:
            progress(number + 1, len(batches), "forward")

    try:
        model = load_model(checkpoint).to(device)
        with listening(model, places.outside, hearing), _hearing_the_head(model, places, hearing, stop=False):
            hearing.over(run, len(batches), 1)
    except Exception as error:  # an unknown model may want other inputs than tokens and fail in any way
        return {}, f"{type(error).__name__}: {error}"
    return hearing.sums, ""


@contextmanager
def _hearing_the_head(model: Any, places: Route, hearing: Hearing, stop: bool) -> Iterator[None]:
    """Add what the head reads; with `stop` its output, the largest of all, is not computed."""
    if places.head is None:
        yield
        return

    def add(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        hearing.add(HEAD_SPACE, args[0])
        if stop:
            raise StoppedError

    handle = submodule(model, places.head).register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _as_statistics(
    checkpoint: Checkpoint, tokens: Array, part: range, sums: dict[str, Sum], unheard: tuple[str, ...], unrun: str
) -> Statistics:
    read = tokens[part.start : part.stop]
    chunk = Chunk(hash_tokens(tokens), part.start, part.stop - 1, tokens.shape[1])
    return Statistics(
        {space: total.outer.cpu().numpy() for space, total in sums.items()},
        {space: total.linear.cpu().numpy() for space, total in sums.items()},
        {space: total.tokens for space, total in sums.items()},
        np.bincount(read.ravel().astype(np.int64), minlength=_vocabulary(checkpoint) or 0).astype(np.int64),
        checkpoint.fingerprint,
        (chunk,),
        keep_smallest(shingle_hashes(read)),
        unheard=unheard,
        unrun=unrun,
        scratch=checkpoint.scratch,
    )


def _check_sums(checkpoint: Checkpoint, sums: dict[str, Sum]) -> None:
    for space, total in sums.items():
        if not bool(torch.isfinite(total.outer).all()):
            raise CheckpointError(f"{space}: activations of {checkpoint.path} are not finite in float32")


def split_sequences(tokens: Array, limit: int = CHUNK_TOKENS) -> Iterator[torch.Tensor]:
    """Yield int64 [sequences, length] pieces of at most `limit` tokens, or one sequence where that is longer."""
    count = max(1, limit // tokens.shape[1])
    for start in range(0, tokens.shape[0], count):
        yield torch.from_numpy(tokens[start : start + count].astype(np.int64))


def check_tokens(checkpoint: Checkpoint, tokens: Array) -> None:
    """Raise CalibrationError unless tokens are integers [sequences, length] of the model's vocabulary and positions."""
    check_ids(tokens, _vocabulary(checkpoint), positions(checkpoint.config), checkpoint.path)


def check_ids(tokens: Array, vocabulary: int | None, most: int | None, model: str | Path) -> None:
    """Raise CalibrationError unless tokens are integers [sequences, length ≤ most] from 0 to vocabulary − 1."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise CalibrationError(f"token ids: expected integers, found {tokens.dtype}; give ids, not embeddings or text")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise CalibrationError(f"token ids: expected shape [sequences, length], found {list(tokens.shape)}")
    if most is not None and tokens.shape[1] > most:
        raise CalibrationError(
            f"token ids: found sequences of {tokens.shape[1]} tokens, but {model} was made for at most {most} "
            "(max_position_embeddings); cut them"
        )
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or (vocabulary is not None and largest >= vocabulary):
        raise CalibrationError(
            f"token ids: found {smallest if smallest < 0 else largest}, but the vocabulary of {model} has "
            f"{vocabulary} tokens; use its own tokenizer"
        )


def hash_tokens(tokens: Array) -> str:
    """Hash of a token array, the same for every integer dtype: 32 hex digits."""
    digest = hashlib.blake2b(repr(tokens.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tokens, "<i8").data)
    return digest.hexdigest()


def minimum_tokens(weights: Sequence[Weight]) -> int:
    """Tokens below which calibration is refused: with under two per input, much of H would rest on no data at all."""
    return max(MINIMUM_TOKENS, 2 * max((weight.shape[1] for weight in weights if weight.space is not None), default=0))


def _checked_part(checkpoint: Checkpoint, weights: Sequence[Weight], tokens: Array, sequences: range | None) -> range:
    check_tokens(checkpoint, tokens)
    part = range(tokens.shape[0]) if sequences is None else sequences
    if part.step != 1 or part.start < 0 or part.stop > tokens.shape[0]:
        raise CalibrationError(f"sequences: expected a range within 0 to {tokens.shape[0]}, found {part}")
    minimum = minimum_tokens(weights)
    if len(part) * tokens.shape[1] < minimum:
        raise CalibrationError(
            f"too little calibration text: {len(part) * tokens.shape[1]} tokens, at least {minimum}; give more text"
        )
    return part


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    """Rows of the embedding; where none is known, what config.json says, if anything."""
    rows = [weight.shape[0] for weight in trace(checkpoint) if weight.role in ("embedding", "tied")]
    stated = checkpoint.config.get("vocab_size")
    return rows[0] if rows else (stated if isinstance(stated, int) else None)


def load_tokens(path: str | Path) -> Array:
    """Read token ids [sequences, length] from an .npy file of integers.

    Raises:
        CalibrationError: The file is missing, damaged, pickled, or holds something else.
    """
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "its beginning is not that of an array of numbers" if "pickle" in str(error) else error
        raise CalibrationError(
            f"{path}: expected an .npy file of token ids, which cannot be read ({reason}); check the path"
        ) from error
    if not isinstance(tokens, np.ndarray) or not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else "an archive"
        raise CalibrationError(f"{path}: expected integer token ids [sequences, length], found {found}")
    return tokens


def tokenize(checkpoint_dir: str | Path, texts: Sequence[str | Path], length: int) -> Array:
    """Cut text files into sequences with the checkpoint's own tokenizer.

    The files are strung together; a last piece shorter than `length` is dropped. A tokenizer that starts text
    with a token of its own gets that token at the start of every sequence, as the model is used to.

    Returns:
        int64 [sequences, length].

    Raises:
        CalibrationError: There is no tokenizer, a file is not UTF-8 text, or the text is shorter than `length`.
    """
    from transformers import AutoTokenizer

    directory = Path(checkpoint_dir)
    if not any((directory / file).is_file() for file in _TOKENIZER_FILES):
        raise CalibrationError(f"{directory}: the checkpoint has no tokenizer; give token ids (.npy)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a tokenizer file can break in transformers, the remedy is the same
        raise CalibrationError(
            f"{directory}: the tokenizer cannot be loaded ({error}); give token ids (.npy)"
        ) from error
    ids: list[int] = []
    for file in texts:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"{file}: expected a UTF-8 text file ({error})") from error
        ids.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    opening = tokenizer("")["input_ids"][:1]
    prefix = opening if tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id] else []
    body = length - len(prefix)
    count = len(ids) // body if body > 0 else 0
    if count == 0:
        raise CalibrationError(f"too little text: {len(ids)} tokens make no sequence of {length}; give more text")
    pieces = np.asarray(ids[: count * body], np.int64).reshape(count, body)
    return np.concatenate([np.tile(np.asarray(prefix, np.int64), (count, 1)), pieces], axis=1)
