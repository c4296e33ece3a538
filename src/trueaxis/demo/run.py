"""The demonstration: a model that comes with the package, compressed at several rates beside two baselines.

calibration split ─▶ statistics ─▶ compress (rates × recipes) ─▶ new processes: load, evaluate, write
                     once                                                         ▲
evaluation split ─────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueaxis.compress import compress
from trueaxis.demo.corpus import Split, modules
from trueaxis.demo.trial import Trial, attempt
from trueaxis.metric.calibrate import tokenize
from trueaxis.metric.source import obtain_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads
from trueaxis.progress import Progress, silent
from trueaxis.types import CompressionReport

MODEL = Path(__file__).parent / "model"
RATES = (6.0, 5.0, 4.0, 3.0)
RECIPES = ("default", "rtn", "gptq")
SEQUENCES, LENGTH = 24, 512
CALIBRATION_SHARE = 4  # sequences calibrated on for every one evaluated on
PROMPT = '''def read_lines(path, encoding="utf-8"):
    """Return the lines of a file.
'''
SHOWN_RATE = 4.0  # whose completion is printed, or else the highest rate


@dataclass(frozen=True)
class Row:
    """One compressed directory.

    Attributes:
        target_bits: Bits per parameter asked for; `bits_per_param` are those of the file.
        kl_nats: KL(original ‖ compressed) per token, with its 95 % interval over sequences.
        perplexity_before: Of the original, on the same tokens.
        seconds: Compression, without the statistics that all share.
        load_seconds: In a new process, imports aside.
    """

    recipe: str
    target_bits: float
    file_bytes: int
    bits_per_param: float
    kl_nats: float
    kl_interval: tuple[float, float] | None
    top1_agreement: float
    perplexity_before: float
    perplexity_after: float
    seconds: float
    load_seconds: float


@dataclass(frozen=True)
class Demonstration:
    """All rows, by rate and then recipe, and what they have in common.

    Attributes:
        file_bytes: Weights of the original.
        load_seconds: Of the original, in a new process.
        evaluation_tokens: Tokens predicted for every row.
        statistics_seconds: Calibration, once for all rows.
        completions: Text by what wrote it, all from one prompt and one seed.
        seconds: All of it.
    """

    parameters: int
    file_bytes: int
    load_seconds: float
    evaluation_tokens: int
    statistics_seconds: float
    rows: tuple[Row, ...]
    completions: dict[str, str]
    seconds: float


def demonstrate(
    rates: Sequence[float] = RATES,
    *,
    sequences: int = SEQUENCES,
    seed: int = 0,
    progress: Progress = silent,
) -> Demonstration:
    """Compresses the embedded model at every rate with every recipe and tries the results in new processes.

    Args:
        rates: Bits per parameter.
        sequences: Evaluation sequences of 512 tokens; four times as many are calibrated on.
        seed: Of the calibration and the sampled text.
        progress: Told of every compression and trial.

    Raises:
        TrueaxisError: The installation lacks the model or the library's source, or a rate cannot be reached.

    Example:
        >>> demonstrate((4,), sequences=2).rows[0].recipe   # doctest: +SKIP
        'default'
    """
    begun = time.perf_counter()
    keys = [(rate, recipe) for rate in dict.fromkeys(rates) for recipe in RECIPES]
    shown = keys.index((SHOWN_RATE if SHOWN_RATE in rates else max(rates), RECIPES[0]))
    steps = itertools.count(1)

    def step() -> None:
        progress("demo", next(steps), 2 + 2 * len(keys))

    with tempfile.TemporaryDirectory(prefix="trueaxis-demo-") as name:
        work = Path(name)
        calibration = _write_tokens(work, "calibration", CALIBRATION_SHARE * sequences)
        tokens = _write_tokens(work, "evaluation", sequences)
        statistics, statistics_seconds = _measure(work, calibration, seed)
        step()
        directories, reports = [MODEL], []
        for rate, recipe in keys:
            directories.append(work / f"{recipe}-{rate:g}")
            reports.append(compress(MODEL, directories[-1], bits=rate, recipe=recipe, statistics=statistics, seed=seed))
            step()
        prompts = [PROMPT if place in (0, 1 + shown) else "" for place in range(len(directories))]
        original, *trials = _tried(directories, prompts, tokens, seed, step)
    return Demonstration(
        parameters=reports[0].parameters,
        file_bytes=sum(file.stat().st_size for file in MODEL.glob("*.safetensors")),
        load_seconds=original.load_seconds,
        evaluation_tokens=original.evaluation.tokens,
        statistics_seconds=statistics_seconds,
        rows=tuple(_row(*each, original) for each in zip(keys, reports, trials, strict=True)),
        completions={"original": original.completion, f"{keys[shown][0]:g} bits": trials[shown].completion},
        seconds=time.perf_counter() - begun,
    )


def _tried(
    directories: Sequence[Path], prompts: Sequence[str], tokens: Path, seed: int, step: Callable[[], None]
) -> list[Trial]:
    """Of every directory, in order; each of some processes tries its share of them."""
    workers = min(default_threads(), len(directories))

    def share(number: int) -> list[Trial]:
        found = []
        for trial in attempt(directories[number::workers], prompts[number::workers], MODEL, tokens, seed):
            found.append(trial)
            step()
        return found

    with ThreadPoolExecutor(workers) as pool:
        shares = list(pool.map(share, range(workers)))
    return [shares[place % workers][place // workers] for place in range(len(directories))]


def _measure(work: Path, calibration: Path, seed: int) -> tuple[Path, float]:
    """(statistics file that every compression reads, seconds it took)."""
    begun, file = time.perf_counter(), work / "statistics.safetensors"
    checkpoint = Checkpoint.open(MODEL)
    obtain_statistics(checkpoint, trace(checkpoint), [calibration], file, seed, "cpu", silent)
    return file, time.perf_counter() - begun


def _write_tokens(work: Path, split: Split, sequences: int) -> Path:
    """An .npy file of tokens [sequences, LENGTH], spread evenly over a split of the library's text."""
    tokens = tokenize(MODEL, modules(split), LENGTH)
    chosen = np.linspace(0, len(tokens) - 1, min(sequences, len(tokens))).astype(int)
    file = work / f"{split}.npy"
    np.save(file, tokens[chosen])
    return file


def _row(key: tuple[float, str], report: CompressionReport, trial: Trial, original: Trial) -> Row:
    found = trial.evaluation
    assert found.kl_nats is not None and found.top1_agreement is not None  # evaluated against a reference
    return Row(
        recipe=key[1],
        target_bits=key[0],
        file_bytes=report.file_bytes,
        bits_per_param=report.bits_per_param,
        kl_nats=found.kl_nats,
        kl_interval=found.kl_interval,
        top1_agreement=found.top1_agreement,
        perplexity_before=original.evaluation.perplexity,
        perplexity_after=found.perplexity,
        seconds=report.seconds,
        load_seconds=trial.load_seconds,
    )
