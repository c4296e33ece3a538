"""Compare: recipes at the rates asked for, peers at their own settings, and this project at each peer's very size.

MODEL ─▶ recipes at every rate ──────────────▶ files ─▶ KL, perplexity ─▶ rows
      └▶ peers, each in its own environment ─▶ files ─▶ dense weights ─▶ KL, perplexity ─▶ rows
                                                  └──── bytes ─▶ the default recipe at that size ─▶ rows
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from trueaxis.accounting import forget_peak
from trueaxis.comparison.peer import PEERS, Made, Original, Peer, PeerError, find_peers, run_peer
from trueaxis.evaluation import Comparison, read_ids, require_unseen
from trueaxis.lossless.journey import compress_lossless
from trueaxis.metric.source import obtain_statistics
from trueaxis.metric.statistics import load_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import Progress, silent
from trueaxis.recipe import COMPARED
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.load import load
from trueaxis.sweep import checked_rates
from trueaxis.types import CompressionReport, Evaluation, TargetError

REFERENCE_RECIPE = "default"
LOSSLESS = "lossless"


@dataclass(frozen=True)
class ComparisonRow:
    """One file on one text.

    Attributes:
        name: Recipe or peer.
        setting: The peer's own word for its setting; for a recipe the target, "3 bits" or "as hqq 4 bits".
        file_bytes, bits_per_param: Every byte of the weight files.
        kl_nats, kl_interval: KL(original ‖ compressed) per token and its 95 % interval, None for one sequence.
        perplexity, top1_agreement: Of the compressed model; with the original.
        seconds: To make the file from weights and statistics; all of the preparation, which rates of a recipe share.
        peak_memory_bytes: Of the process that made it, while it did; for a recipe that is this one, with the original.
        load_seconds: From the files to a model that can run; of a peer to plain weights, by its own decoder.
        limit_bits_per_param: What the limits of all tensors add up to at the distortion of this file; None for a peer.
        fallbacks: Tensors that a peer kept in another type than its setting says, with the reason.
    """

    name: str
    setting: str
    file_bytes: int
    bits_per_param: float
    kl_nats: float
    kl_interval: tuple[float, float] | None
    perplexity: float
    top1_agreement: float
    seconds: float
    peak_memory_bytes: int
    load_seconds: float
    limit_bits_per_param: float | None = None
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparisonReport:
    """What a comparison found.

    Attributes:
        model, parameters: Directory, and how many.
        tokens, perplexity: Predicted; of the original on them.
        rows: In the order of their making.
        absent: Of what gave no row why, by name and setting.
        statistics_seconds: To measure the statistics that all recipes share; None where a file had them.
    """

    model: str
    parameters: int
    tokens: int
    perplexity: float
    rows: tuple[ComparisonRow, ...]
    absent: dict[str, str]
    statistics_seconds: float | None = None


def compare(
    model: str | Path,
    *,
    bits: Sequence[float],
    text: Sequence[str | Path] = (),
    tokens: str | Path | None = None,
    recipes: Sequence[str] = COMPARED,
    peers: Sequence[str] = tuple(PEERS),
    calibration: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> ComparisonReport:
    """Recipes and peers through the same evaluation.

    Axes are judged at the mean of the rates, as in `trueaxis.sweep`: `trueaxis.compress` at one of them gives a
    slightly other file.

    Args:
        model: Directory of a Hugging Face checkpoint of a causal language model.
        bits: Rates of the recipes, bits per parameter.
        text: Text files to evaluate on, apart from the calibration text; or
        tokens: an .npy file of token ids. Exactly one of the two.
        recipes: Names of recipes.
        peers: Names of peers; a peer that is not installed is listed as absent.
        calibration, statistics, seed, threads, device, progress: As in `trueaxis.compress`.

    Returns:
        Rows of recipes, then of peers, each followed by the default recipe at the peer's size, or by a lossless file
        where the peer is lossless.

    Raises:
        CalibrationError: The evaluation text was calibrated on.
        TrueaxisError: Bad input, by name.

    Example:
        >>> trueaxis.compare("llama", bits=[3, 4], text=["test.txt"], calibration=["text.txt"])   # doctest: +SKIP
    """
    others, rates = find_peers(peers), checked_rates(bits)
    checkpoint = Checkpoint.open(model)
    chosen = {name: find_recipe(name) for name in (REFERENCE_RECIPE, *recipes)}
    ids = read_ids(checkpoint.path, text, tokens)
    with tempfile.TemporaryDirectory(prefix="trueaxis.") as folder:
        work = Path(folder)
        file = Path(statistics) if statistics is not None else work / "statistics.safetensors"
        measuring = None
        if not file.exists():
            begun = time.perf_counter()
            obtain_statistics(checkpoint, trace(checkpoint), calibration, None, seed, device, progress).save(file)
            measuring = time.perf_counter() - begun
        prepared_by = partial(
            _prepared, checkpoint, expected=checkpoint.bytes_at(sum(rates) / len(rates)), calibration=calibration,
            statistics=file, seed=seed, threads=threads or default_threads(), device=device, progress=progress,
        )  # fmt: skip
        trial = _Trial(checkpoint, Comparison(checkpoint.path, ids, device, progress), work)
        require_unseen(ids, load_statistics(file))
        reference = cache(partial(prepared_by, chosen[REFERENCE_RECIPE]))
        for name in recipes:
            prepared = reference() if chosen[name] == chosen[REFERENCE_RECIPE] else prepared_by(chosen[name])
            trial.recipe(name, prepared, [(f"{rate:g} bits", checkpoint.bytes_at(rate)) for rate in rates])
        for peer in others:
            trial.peer(peer, peer.settings_at(rates), reference(), calibration)
        original = trial.compare(checkpoint.path)
    return ComparisonReport(
        str(model), checkpoint.parameters, original.tokens, original.perplexity, tuple(trial.rows), trial.absent,
        measuring,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Timed:
    """A preparation, and how long it took."""

    prepared: Prepared
    seconds: float


def _prepared(*arguments: Any, **options: Any) -> _Timed:
    begun = time.perf_counter()
    return _Timed(prepare(*arguments, **options), time.perf_counter() - begun)


class _Trial:
    """Rows as they are found."""

    def __init__(self, checkpoint: Checkpoint, compare: Callable[[str | Path], Evaluation], work: Path) -> None:
        self.checkpoint, self.compare, self._work = checkpoint, compare, work
        self.rows: list[ComparisonRow] = []
        self.absent: dict[str, str] = {}

    def recipe(self, name: str, timed: _Timed, targets: Sequence[tuple[str, int]]) -> None:
        """A row for every (setting, target in bytes); each counts the preparation as its own."""
        prepared, out = timed.prepared, self._work / "out"
        for setting, target in targets:
            begun = time.perf_counter() - timed.seconds
            forget_peak()
            try:
                report = prepared.save(prepared.fit(target), out, overwrite=True, begun=begun, target=target)
            except TargetError as error:
                self.absent[f"{name} {setting}"] = str(error)
                continue
            self._add_own(name, setting, report)

    def peer(self, peer: Peer, settings: Sequence[str], reference: _Timed, calibration: Sequence[str | Path]) -> None:
        """A row for every setting of the peer, each followed by what of ours stands beside it."""
        for setting, made, dense in self._made(peer, settings, Original(reference.prepared, calibration)):
            self._add(peer.name, setting, made, dense)
            if peer.beside == LOSSLESS:
                self._lossless(f"as {peer.name} {setting}", reference.prepared.threads)
            else:
                self.recipe(REFERENCE_RECIPE, reference, [(f"as {peer.name} {setting}", made.file_bytes)])

    def _lossless(self, setting: str, threads: int) -> None:
        """A row of the checkpoint bit for bit."""
        out = self._work / "out"
        forget_peak()
        self._add_own(LOSSLESS, setting, compress_lossless(self.checkpoint.path, out, threads=threads, overwrite=True))

    def _made(self, peer: Peer, settings: Sequence[str], original: Original) -> Iterator[tuple[str, Made, Path]]:
        for setting in settings:
            with tempfile.TemporaryDirectory(dir=self._work) as folder:
                try:
                    made = run_peer(peer, setting, original, Path(folder))
                except PeerError as error:
                    self.absent[peer.name if error.whole else f"{peer.name} {setting}"] = str(error)
                    if error.whole:
                        return
                    continue
                yield setting, made, Path(folder) / "dense"

    def _add_own(self, name: str, setting: str, report: CompressionReport) -> None:
        out, begun = self._work / "out", time.perf_counter()
        load(out)
        loaded = time.perf_counter() - begun
        made = Made(report.file_bytes, report.seconds, loaded, report.peak_memory_bytes, ())
        self._add(name, setting, made, out, report.limit_bits_per_param)

    def _add(
        self,
        name: str,
        setting: str,
        made: Made,
        directory: Path,
        limit: float | None = None,
    ) -> None:
        found = self.compare(directory)
        assert found.kl_nats is not None and found.top1_agreement is not None  # compared with the original
        self.rows.append(ComparisonRow(
            name, setting, made.file_bytes, made.file_bytes * 8 / self.checkpoint.parameters, found.kl_nats,
            found.kl_interval, found.perplexity, found.top1_agreement, made.seconds, made.peak_memory_bytes,
            made.load_seconds, limit, made.fallbacks,
        ))  # fmt: skip
