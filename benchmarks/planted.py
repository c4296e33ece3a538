"""Planted functions: which candidate is chosen, and how much of what was planted comes back.

    python benchmarks/planted.py [--draws 3]

    f of a known kind + noise, in steps ─▶ select ─▶ its candidate, saved bits / bits that who knows f would save

That is M × N matrices over LAYERS blocks with step 0.25 and noise of 0.3. Who knows f pays for the numbers that it was
drawn with, each at the resolution it needs. "Best without a format": the same share for candidates that no file holds.
Estimates, as the selection goes by; for noise, the number of matrices for which anything is chosen.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Mapping

import numpy as np

from function import GUESSES, guessed_saving, lifted
from trueaxis.function.member import Member
from trueaxis.function.select import saved_bits, select
from trueaxis.types import Array

M, N, LAYERS, STEP, NOISE = 192, 160, 8, 0.25, 0.3
Rule = Callable[[np.random.Generator], tuple[list[Array], float]]
"""Draws ─▶ (f of every block, bits of the numbers it was drawn with)."""


def number_bits(count: int, energy: float, moved: int) -> float:
    """Of so many numbers that each change `moved` entries: as good as their error stays below noise and steps."""
    return count * 0.5 * np.log2(1 + moved * energy / (NOISE**2 + STEP**2 / 12))


def low_rank(rng: np.random.Generator) -> tuple[list[Array], float]:
    found = [rng.normal(size=(M, 3)) @ rng.normal(size=(3, N)) for _ in range(LAYERS)]
    return found, LAYERS * (number_bits(3 * M, 1.0, N) + number_bits(3 * N, 1.0, M))


def smooth_rows(rng: np.random.Generator) -> tuple[list[Array], float]:
    place = np.linspace(0, 1, M)
    found = [np.stack([place, 1 - place], 1) @ rng.normal(size=(2, N)) * 2 for _ in range(LAYERS)]
    return found, LAYERS * number_bits(2 * N, 4.0, M // 3)


def smooth_depth(rng: np.random.Generator) -> tuple[list[Array], float]:
    return tangent(rng, 1.5 * np.cos(np.pi * np.arange(LAYERS) / LAYERS))


def drawn_depth(rng: np.random.Generator) -> tuple[list[Array], float]:
    return tangent(rng, 1.5 * rng.normal(size=LAYERS))


def tangent(rng: np.random.Generator, theta: Array) -> tuple[list[Array], float]:
    """W̄ + J θ_l: both matrices are numbers, each of which all blocks share."""
    mean, direction = 2 * rng.normal(size=(M, N)), rng.normal(size=(M, N))
    bits = number_bits(M * N, 4.0, LAYERS) + number_bits(M * N, 1.0, max(1, int(theta @ theta)))
    return [mean + one * direction for one in theta], bits


def quadratic(rng: np.random.Generator) -> tuple[list[Array], float]:
    """Rows on a 3-manifold: 1, x_a and x_a x_b of three coordinates, ten directions in all."""
    found = [lifted(rng.normal(size=(M, 3))) @ rng.normal(size=(10, N)) for _ in range(LAYERS)]
    return found, LAYERS * (number_bits(3 * M, 7.0, N) + number_bits(10 * N, 1.0, M))


def waves(rng: np.random.Generator) -> tuple[list[Array], float]:
    """Rows on a 3-manifold: a sine of three coordinates in every column, which no few directions span."""
    found = [
        2 * np.sin(0.5 * rng.normal(size=(M, 3)) @ rng.normal(size=(3, N)) + rng.uniform(0, 6, N))
        for _ in range(LAYERS)
    ]
    return found, LAYERS * (number_bits(3 * M, 0.5, N) + number_bits(3 * N, 0.5, M) + number_bits(N, 2.0, M))


RULES: Mapping[str, Rule] = {
    "rank 3": low_rank, "smooth over rows": smooth_rows, "tangent, smooth in depth": smooth_depth,
    "tangent, drawn": drawn_depth, "curved 3-manifold, quadratic": quadratic, "curved 3-manifold, sines": waves,
}  # fmt: skip


def member(number: int, matrix: Array) -> Member:
    """A matrix of one block, under the identity metric."""
    name = f"layers.{number}.up.weight"
    return Member(name, matrix.astype(np.float32), np.ones(M), np.full(N, STEP), np.arange(N), None)


def row(label: str, rule: Rule, draw: int) -> str:
    """One draw of one rule."""
    rng = np.random.default_rng(draw)
    planted, bits = rule(rng)
    members = [member(place, f + NOISE * rng.normal(size=(M, N))) for place, f in enumerate(planted)]
    whole = sum(one.bits - one.residual_bits(f) for one, f in zip(members, planted, strict=True)) - bits
    chosen = select(members)
    saved = sum(saved_bits(one, chosen[one.name]) for one in members if one.name in chosen)
    names = ", ".join(sorted({fit.candidate for fit in chosen.values()})) or "none"
    guesses = {
        name: sum(guessed_saving(one, before, None, guess)
                  for before, one in zip([None, *members[:-1]], members, strict=True))
        for name, guess in GUESSES.items()
    }  # fmt: skip
    best = max(guesses, key=lambda name: guesses[name])
    other = f"{best.removesuffix(' *')} {guesses[best] / whole:.3f}" if guesses[best] > 0 else "none"
    return f"| {label} | {draw} | {whole / (LAYERS * M * N):.3f} | {names} | {saved / whole:.3f} | {other} |"


def noise(draw: int) -> str:
    """I.i.d. matrices."""
    rng = np.random.default_rng(draw)
    members = [member(place, NOISE * rng.normal(size=(M, N))) for place in range(LAYERS)]
    return f"| i.i.d. | {draw} | 0 | {len(select(members))} of {LAYERS} chosen | | |"


def main() -> None:
    """Prints the machine, the command and a row per rule and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print(
        "\n| planted | draw | bits per weight planted | chosen | share back | best without a format |\n"
        + "|---" * 6
        + "|"
    )
    for draw in range(options.draws):
        for label, rule in RULES.items():
            print(row(label, rule, draw), flush=True)
        print(noise(draw), flush=True)


if __name__ == "__main__":
    main()
