"""The statistics of a checkpoint's activations: sums that can be saved, merged and reused.

    calibrate ─▶ Statistics ─▶ metric_for(weight) ─▶ align, quantize
                    │  ▲
                  save, load_statistics, merge

Everything is a float64 *sum* over tokens, so parts of a text calibrated apart merge into the whole. A file says
which checkpoint and which sequences it was made from; it is refused for any other checkpoint, and two files that
share sequences do not merge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueaxis.metric.sketch import keep_smallest
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.types import Array, CalibrationError

_FORMAT = "trueaxis-statistics"
_VERSION = 3


class Chunk(NamedTuple):
    """Sequences first to last (inclusive) of the token file with this hash, each of `length` tokens."""

    text: str
    first: int
    last: int
    length: int


@dataclass(frozen=True)
class Statistics:
    """What calibration measured.

    Attributes:
        sums: Space → Σ x xᵀ, float64 [n, n].
        totals: Space → Σ x, float64 [n].
        tokens: Space → number of tokens summed.
        token_counts: int64 [vocabulary], how often each token was read.
        fingerprint: `Checkpoint.fingerprint` of the model that was run.
        chunks: The sequences that were read.
        shingles: uint64, sorted hashes of the text's shingles, see sketch.py.
        sensitivities: Name of a weight → KL in nats per unit of D; for a tied matrix under "NAME#embedding"
            and "NAME#head"; for experts under their group. May be empty.
        gradients: The keys of sensitivities → Σ g gᵀ of outputs, float64 [m, m], or sums for every row [m]; see
            gradient.py. Empty where the model has no KL.
        gradient_tokens: Tokens that these are summed over.
        unheard: Spaces that the model has but calibration could not listen to, sorted.
        unrun: Why the model could not be run at all; empty if it was.
        predictions: Σ p float64 [vocabulary], how often the model says that each token comes next, over tokens of
            gradients; none where it has no KL.
        source: "text" that was given, "sampled" from the model, or "text, sampled" where both were merged.
        scratch: Where moments are held.
        text: Token ids [sequences, length] that were read first, where they were measured in this run.
    """

    sums: Mapping[str, Array]
    totals: Mapping[str, Array]
    tokens: Mapping[str, int]
    token_counts: Array
    fingerprint: str
    chunks: tuple[Chunk, ...]
    shingles: Array
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    gradients: Mapping[str, Array] = field(default_factory=dict)
    gradient_tokens: int = 0
    unheard: tuple[str, ...] = ()
    unrun: str = ""
    source: str = "text"
    predictions: Array = field(default_factory=lambda: np.zeros(0))
    scratch: NoScratch = field(default=NO_SCRATCH, repr=False, compare=False)
    text: Array | None = field(default=None, repr=False, compare=False)
    _moments: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def text_hashes(self) -> tuple[str, ...]:
        """Hashes of the token files read, sorted."""
        return tuple(sorted({chunk.text for chunk in self.chunks}))

    def second_moment(self, space: str) -> Array:
        """H = Σ x xᵀ / tokens, float64 [n, n]; one array for all who ask, not to be written to.

        Raises:
            CalibrationError: The space was not calibrated.
        """
        if space not in self.sums:
            raise CalibrationError(f"{space}: the statistics hold no such input space; calibrate with the same model")
        if space not in self._moments:
            self._moments[space] = self.scratch.hold(self.sums[space] / max(self.tokens[space], 1))
        return self._moments[space]

    def mean(self, space: str) -> Array:
        """E[x], float64 [n]."""
        if space not in self.totals:
            raise CalibrationError(f"{space}: the statistics hold no such input space; calibrate with the same model")
        return self.totals[space] / max(self.tokens[space], 1)

    def output_moment(self, key: str) -> Array | None:
        """G = Σ g gᵀ / tokens [m, m], or its diagonal [m] where only that was summed; None where nothing was."""
        return self.gradients[key] / self.gradient_tokens if key in self.gradients else None

    def require(self, checkpoint: Checkpoint) -> None:
        """Raise CalibrationError unless these statistics are of this checkpoint."""
        if self.fingerprint != checkpoint.fingerprint:
            raise CalibrationError(
                f"the statistics are of another checkpoint: expected {checkpoint.fingerprint} ({checkpoint.path}), "
                f"found {self.fingerprint}; calibrate again with this one"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; `load_statistics` reads it back bit for bit."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {f"sum/{space}": value for space, value in self.sums.items()}
        tensors |= {f"total/{space}": value for space, value in self.totals.items()}
        tensors |= {f"gradient/{key}": value for key, value in self.gradients.items()}
        tensors |= {"token_counts": self.token_counts, "shingles": self.shingles}
        if self.predictions.size:
            tensors["predictions"] = self.predictions
        header = {
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "tokens": dict(self.tokens),
            "chunks": self.chunks,
            "sensitivities": dict(self.sensitivities),
            "gradient_tokens": self.gradient_tokens,
            "unheard": self.unheard,
            "unrun": self.unrun,
            "source": self.source,
        }
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        partial = Path(path).with_name(f".{Path(path).name}.partial")
        try:
            save_file(contiguous, partial, metadata={_FORMAT: json.dumps(header, sort_keys=True)})
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{path}: the statistics cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


def load_statistics(path: str | Path, scratch: NoScratch = NO_SCRATCH) -> Statistics:
    """Read a file that `Statistics.save` wrote; call `require` before using it with a checkpoint.

    Args:
        path: The file.
        scratch: Where sums and moments are held; in memory by default.

    Raises:
        CalibrationError: The file is missing, damaged, or no statistics file of this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(_FORMAT, "null"))
            tensors = {name: scratch.hold(file.get_tensor(name)) for name in file.offset_keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CalibrationError(f"{path}: is missing or no readable statistics file ({error})") from error
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        found = header.get("version") if isinstance(header, dict) else None
        raise CalibrationError(f"{path}: expected statistics of version {_VERSION}, found {found}; calibrate again")
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CalibrationError(f"{path}: {name} holds NaN or Inf; calibrate again")
    try:
        found = replace(_assemble(header, tensors), scratch=scratch)
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{path}: the statistics are incomplete ({error!r}); calibrate again") from error
    for name, sensitivity in found.sensitivities.items():
        if not 0 < sensitivity < np.inf:
            raise CalibrationError(f"{path}: the sensitivity of {name} is {sensitivity}; calibrate again")
    return found


def _assemble(header: dict[str, Any], tensors: dict[str, Array]) -> Statistics:
    tokens = {str(space): int(count) for space, count in header["tokens"].items()}
    sums = {space: tensors[f"sum/{space}"] for space in tokens}
    totals = {space: tensors[f"total/{space}"] for space in tokens}
    for space, count in tokens.items():
        width = totals[space].shape[0]
        if sums[space].shape != (width, width) or count < 0:
            raise ValueError(f"{space}: Σ x xᵀ is {list(sums[space].shape)}, Σ x [{width}], over {count} tokens")
    gradients = {
        name.removeprefix("gradient/"): value for name, value in tensors.items() if name.startswith("gradient/")
    }
    _check_gradients(gradients, int(header["gradient_tokens"]))
    predictions = tensors.get("predictions", np.zeros(0))
    _check_row("token_counts", tensors["token_counts"])
    _check_row("predictions", predictions)
    if predictions.size and not predictions.sum() > 0:
        raise ValueError("Σ p is zero")
    if tensors["shingles"].dtype != np.uint64 or tensors["shingles"].ndim != 1:
        raise ValueError(f"shingles: expected uint64 [n], found {_told(tensors['shingles'])}")
    return Statistics(
        sums,
        totals,
        tokens,
        tensors["token_counts"],
        str(header["fingerprint"]),
        tuple(Chunk(str(text), int(first), int(last), int(length)) for text, first, last, length in header["chunks"]),
        tensors["shingles"],
        {str(name): float(value) for name, value in header["sensitivities"].items()},
        gradients,
        int(header["gradient_tokens"]),
        tuple(str(space) for space in header["unheard"]),
        str(header["unrun"]),
        str(header.get("source", "text")),
        predictions,
    )


def _check_gradients(gradients: Mapping[str, Array], tokens: int) -> None:
    """Refuses what is neither Σ g gᵀ nor a sum for every row, and sums over no token."""
    if gradients and tokens <= 0:
        raise ValueError(f"gradients over {tokens} tokens")
    for key, found in gradients.items():
        if found.ndim == 2 and found.shape[0] == found.shape[1]:
            _check_row(f"gradient/{key}", found.diagonal())
        else:
            _check_row(f"gradient/{key}", found)


def _check_row(name: str, found: Array) -> None:
    """Refuses what is no row of numbers that are not negative."""
    if found.ndim != 1 or found.dtype.kind not in "iuf" or (found.size and found.min() < 0):
        raise ValueError(f"{name}: expected numbers [m], none of them negative, found {_told(found)}")


def _told(found: Array) -> str:
    return (
        f"{found.dtype} {list(found.shape)}, from {found.min()}" if found.size else f"{found.dtype} {list(found.shape)}"
    )


def merge(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of two texts as if they had been calibrated on as one.

    Sums, counts and chunk lists add up; sensitivities measured on both are averaged by their numbers of tokens. Where
    one has no gradients, or no predictions, those of the other stand for both.

    Raises:
        CalibrationError: They are of different checkpoints, or some sequence is in both.
    """
    if first.fingerprint != second.fingerprint:
        raise CalibrationError(
            f"cannot merge statistics of different checkpoints: {first.fingerprint} and {second.fingerprint}"
        )
    if first.sums.keys() != second.sums.keys():
        raise CalibrationError("cannot merge statistics of different input spaces; calibrate both the same way")
    for one in first.chunks:
        for other in second.chunks:
            if one.text == other.text and one.first <= other.last and other.first <= one.last:
                raise CalibrationError(
                    f"cannot merge statistics that share text: sequences {max(one.first, other.first)} to "
                    f"{min(one.last, other.last)} of {one.text} are in both; calibrate on separate sequences"
                )
    gradients, gradient_tokens = _added_gradients(first, second)
    return Statistics(
        {space: first.sums[space] + second.sums[space] for space in first.sums},
        {space: first.totals[space] + second.totals[space] for space in first.totals},
        {space: first.tokens[space] + second.tokens[space] for space in first.tokens},
        first.token_counts + second.token_counts,
        first.fingerprint,
        tuple(sorted(first.chunks + second.chunks)),
        keep_smallest(np.union1d(first.shingles, second.shingles)),
        _average_sensitivities(first, second),
        gradients,
        gradient_tokens,
        first.unheard,
        first.unrun,
        first.source if first.source == second.source else "text, sampled",
        _added(first.predictions, second.predictions),
    )


def without(whole: Statistics, part: Statistics) -> Statistics:
    """The sums of `whole` less those of a part of its text; sensitivities stay.

    Args:
        whole: Of a text.
        part: Of sequences of the same text, all of them in `whole`.

    Raises:
        CalibrationError: They do not go together, or nothing would be left.
    """
    left = {space: whole.tokens[space] - part.tokens.get(space, 0) for space in whole.tokens}
    if whole.fingerprint != part.fingerprint or whole.sums.keys() != part.sums.keys() or min(left.values()) < 0:
        raise CalibrationError("cannot take statistics apart that were not measured together; calibrate both alike")
    return replace(
        whole,
        sums={space: whole.sums[space] - part.sums[space] for space in whole.sums},
        totals={space: whole.totals[space] - part.totals[space] for space in whole.totals},
        tokens=left,
        token_counts=whole.token_counts - part.token_counts,
    )


def _added_gradients(first: Statistics, second: Statistics) -> tuple[Mapping[str, Array], int]:
    """Sums of both, of what both know, and their tokens; those of one where the other has none."""
    if not (first.gradients and second.gradients):
        known = first if first.gradients else second
        return known.gradients, known.gradient_tokens
    both = {key: value + second.gradients[key] for key, value in first.gradients.items() if key in second.gradients}
    return both, first.gradient_tokens + second.gradient_tokens


def _added(first: Array, second: Array) -> Array:
    """Their sum, or the one that there is."""
    return first + second if first.size and second.size else first if first.size else second


def _average_sensitivities(first: Statistics, second: Statistics) -> dict[str, float]:
    averaged = {**first.sensitivities, **second.sensitivities}
    weight = first.token_counts.sum() / (first.token_counts.sum() + second.token_counts.sum())
    for name in first.sensitivities.keys() & second.sensitivities.keys():
        averaged[name] = float(weight * first.sensitivities[name] + (1 - weight) * second.sensitivities[name])
    return averaged
