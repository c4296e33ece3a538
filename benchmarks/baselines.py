"""The default recipe against the baselines on whole models: KL at equal file bytes, on text not calibrated on.

    python benchmarks/baselines.py [MODEL …] [--kl 0.5 0.1 0.03 0.01] [--out benchmarks/baselines.md]

    bits at which `identity` has each KL, found by secants ─▶ every recipe at that target ─▶ KL, perplexity, bytes

A model is a Hugging Face directory with calibration_tokens.npy and evaluation_tokens.npy; one without them (the demo
model) is calibrated and judged on its own splits of the standard library. KL is in nats per token; intervals are 95 %
over sequences, and the difference to `identity` is paired: both recipes on the same sequences.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import trueaxis
from trueaxis.demo.corpus import modules
from trueaxis.likelihood import kl_nats, target_nats
from trueaxis.metric.calibrate import load_tokens, tokenize
from trueaxis.types import Array

ROOT = Path(__file__).parents[1]
PLACES = [ROOT.parent / "shared" / "models", ROOT / "src" / "trueaxis" / "demo"]
RECIPES = [
    "identity", "watersic", "watersic-classed", "watersic-core", "watersic-core-classed", "gptq", "gptq-uniform", "rtn",
]  # fmt: skip
KL_NATS = [0.5, 0.1, 0.03, 0.01]
CLOSE = 0.1  # of ln KL: a rate is found when identity's KL is this near
TRIES = 6
LENGTH = 512
FIRST_BITS = 4.0
HEAD = [
    "| bits/parameter | recipe | bytes | KL (nats/token) | difference | perplexity |",
    "|---|---|---|---|---|---|",
]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its texts; `reference` holds the original's logits, one array per sequence."""

    path: Path
    calibration: Path
    evaluation: Array
    reference: list[torch.Tensor]
    statistics: Path


@dataclass(frozen=True, eq=False)
class Run:
    """One compressed model; `kl` and `loss` are nats per token of each sequence."""

    recipe: str
    bits: float
    file_bytes: int
    kl: Array
    loss: Array


def logits_of(model: torch.nn.Module, tokens: Array) -> Iterator[torch.Tensor]:
    """Logits of the next token, float32 [length − 1, vocabulary], per sequence."""
    with torch.inference_mode():
        for row in tokens:
            yield model(torch.from_numpy(row.astype(np.int64))[None], use_cache=False).logits[0, :-1]


def losses(tokens: Array, found: Iterable[torch.Tensor]) -> Array:
    """Mean −ln p of the true next token per sequence."""
    targets = torch.from_numpy(tokens[:, 1:].astype(np.int64))
    return np.array([float(target_nats(one, row).mean()) for one, row in zip(found, targets, strict=True)])


def divergences(reference: Iterable[torch.Tensor], found: Iterable[torch.Tensor]) -> Array:
    """Mean KL(reference ‖ found) in nats per token of each sequence, from logits."""
    return np.array([float(kl_nats(*pair).mean()) for pair in zip(reference, found, strict=True)])


def texts(path: Path, scratch: Path) -> tuple[Path, Path]:
    """Calibration and evaluation tokens of a model; those of one without, from its own splits, lie in `scratch`."""
    calibration, evaluation = path / "calibration_tokens.npy", path / "evaluation_tokens.npy"
    if not calibration.is_file():
        calibration, evaluation = scratch / f"{path.name}_calibration.npy", scratch / f"{path.name}_evaluation.npy"
        np.save(calibration, tokenize(path, modules("calibration"), LENGTH))
        np.save(evaluation, tokenize(path, modules("evaluation"), LENGTH))
    return calibration, evaluation


def subject(path: Path, scratch: Path, statistics: Path, sequences: int) -> Subject:
    """Loads a model's texts and runs the original once."""
    from transformers import AutoModelForCausalLM

    calibration, evaluation = texts(path, scratch)
    tokens = load_tokens(evaluation)
    tokens = tokens[np.linspace(0, len(tokens) - 1, min(sequences, len(tokens))).astype(int), :LENGTH]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    reference = list(logits_of(model, tokens))
    return Subject(path, calibration, tokens, reference, statistics / f"{path.name}.safetensors")


def run(model: Subject, recipe: str, bits: float, scratch: Path) -> Run:
    """Compresses, loads the file in float32 and compares it with the original."""
    out = scratch / "out"
    report = trueaxis.compress(
        model.path, out, bits=bits, calibration=[model.calibration], statistics=model.statistics, recipe=recipe,
        overwrite=True,
    )  # fmt: skip
    found = list(logits_of(trueaxis.load(out).float(), model.evaluation))
    return Run(recipe, bits, report.file_bytes, divergences(model.reference, found), losses(model.evaluation, found))


def half_width(values: Array) -> float:
    """Half of the 95 % interval of the mean over sequences."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def slope_of(found: Sequence[Run]) -> float:
    """d ln KL / d bits between the last rate and its nearest; −2 ln 2, the high-rate law, before there are two."""
    if len(found) < 2:
        return -2 * np.log(2)
    last, near = found[-1], min(found[:-1], key=lambda other: abs(other.bits - found[-1].bits))
    return float(np.log(last.kl.mean() / near.kl.mean())) / (last.bits - near.bits)


def rates(model: Subject, targets: Sequence[float], scratch: Path) -> Iterator[Run]:
    """Runs of `identity` whose KL is near each target, every try printed."""
    found: list[Run] = []
    bits = FIRST_BITS
    for target in targets:
        for _ in range(TRIES):
            if found:
                nearest = min(found, key=lambda one: abs(np.log(one.kl.mean() / target)))
                found.append(found.pop(next(i for i, one in enumerate(found) if one is nearest)))
                if abs(np.log(nearest.kl.mean() / target)) < CLOSE:
                    break
                bits = nearest.bits + np.log(target / nearest.kl.mean()) / min(slope_of(found), -0.3)
            found.append(run(model, "identity", round(float(np.clip(bits, 0.3, 12.0)), 3), scratch))
            print(f"  identity at {found[-1].bits:.3f} bits: KL {found[-1].kl.mean():.5f}", flush=True)
        yield min(found, key=lambda one: abs(np.log(one.kl.mean() / target)))


def rows(model: Subject, references: Iterator[Run], recipes: Sequence[str], scratch: Path) -> Iterator[list[Run]]:
    """All recipes at the rate of each reference, a run of `identity`, which comes first."""
    for reference in references:
        others = [run(model, name, reference.bits, scratch) for name in recipes if name != "identity"]
        yield [reference, *others]


def table(model: Subject, group: Sequence[Run]) -> list[str]:
    """Lines of one rate; `difference` is KL minus that of `identity`, paired over sequences."""
    before = float(np.exp(losses(model.evaluation, model.reference).mean()))
    lines = []
    for one in group:
        difference = one.kl - group[0].kl
        paired = f"{difference.mean():+.5f} ± {half_width(difference):.5f}" if one is not group[0] else ""
        lines.append(
            f"| {one.bits:.3f} | `{one.recipe}` | {one.file_bytes:,} | "
            f"{one.kl.mean():.5f} ± {half_width(one.kl):.5f} | {paired} | "
            f"{before:.3f} → {np.exp(one.loss.mean()):.3f} |"
        )
    return lines


def verdict(group: Sequence[Run]) -> list[str]:
    """A sentence for every baseline that is not clearly above `identity`."""
    lines = []
    for one in group[1:]:
        difference = one.kl - group[0].kl
        if difference.mean() - half_width(difference) <= 0:
            word = (
                "is below `identity`"
                if difference.mean() + half_width(difference) < 0
                else "is not told from `identity`"
            )
            lines.append(f"- {group[0].bits:.3f} bits: `{one.recipe}` {word}.")
    return lines


def arguments(text: str | None, recipes: Sequence[str]) -> argparse.ArgumentParser:
    """Options of every benchmark that has recipes at the rates where `identity` has some KL."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--kl", type=float, nargs="+", default=KL_NATS)
    parser.add_argument("--bits", type=float, nargs="+", help="rates to run at instead of searching for those KL")
    parser.add_argument("--recipes", nargs="+", default=recipes)
    parser.add_argument("--sequences", type=int, default=64, help="evaluation sequences of at most 512 tokens")
    parser.add_argument("--statistics", type=Path, help="directory that keeps statistics for the next run")
    return parser


def chosen_models(options: argparse.Namespace) -> list[Path]:
    """Models asked for, or all that are known; looked for only where none is named."""
    return options.models or [file.parent for place in PLACES for file in sorted(place.glob("*/config.json"))]


def main() -> None:
    """Prints and writes the machine, the command and every run."""
    parser = arguments(__doc__, RECIPES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        "# `identity` against the baselines at equal file bytes",
        "",
        f"Machine: {platform.processor() or platform.machine()}, {platform.platform()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        f"Command: `python {' '.join(sys.argv)}`",
        "",
        (__doc__ or "").split("\n\n")[-1].strip(),
        "Embeddings, head and norms are coded alike under every recipe.",
    ]
    with tempfile.TemporaryDirectory() as directory:
        for path in chosen_models(options):
            model = subject(path, Path(directory), options.statistics or Path(directory), options.sequences)
            lines += ["", f"## {path.name}: {model.evaluation.size:,} evaluation tokens", "", *HEAD]
            print("\n".join(lines[-5:]), flush=True)
            lost: list[str] = []
            fixed = (run(model, "identity", bits, Path(directory)) for bits in options.bits or ())
            references = fixed if options.bits else rates(model, options.kl, Path(directory))
            for group in rows(model, references, options.recipes, Path(directory)):
                lines += table(model, group)
                lost += verdict(group)
                print("\n".join(lines[-len(group) :]), flush=True)
            lines += ["", *(lost or ["`identity` is below every baseline at every rate, beyond the interval."])]
            if options.out:
                options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
