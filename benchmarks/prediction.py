"""What a layer could be told of from the decoded layers before it, and what the telling takes.

    python benchmarks/prediction.py MODEL … [--recipes identity gauge] [--bits 1.5 2 3]

    every matrix quantized and decoded at the rate ─▶ of each, the same matrix of up to CHAIN blocks before, decoded
    ─▶ gains, or a mixture of rows, by least squares in the metric ─▶ θ rounded and counted ─▶ W − f against W

Share: of the energy of W in the metric that f removes, over all matrices that have one before them; by chance: what a
mixture of as many random rows removes, for rows of m mixed by m² numbers span m of n directions whatever they are.
θ takes 16 bits for each gain, and for a mixture the bytes of its factor at the steps that products use. A matrix for
which f does not pay by estimate stays whole; where it does, W and W − f are coded by the scalar quantizer at one c.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from function import Case, asked, cases, decoded
from trueaxis.function.member import STEP_ENERGY, Member
from trueaxis.function.select import kinds_of
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.passes import coded_bits
from trueaxis.quantize.budget import first_c
from trueaxis.runtime.terms import Rows
from trueaxis.types import Array

CHAIN = 4
GAIN_BITS = 16.0
Predictor = Callable[[Member, Sequence[Array], int], tuple[Array, float, float]]
"""(matrix, the decoded ones before it, the last first, rows of a head) ─▶ (f, bits of θ, share by chance)."""


@dataclass
class Total:
    """Sums over matrices: energies and bits."""

    matrices: int = 0
    energy: float = 0.0
    left: float = 0.0
    chance: float = 0.0
    theta_bits: float = 0.0
    paying: int = 0
    estimated: float = 0.0
    measured: float = 0.0


def gains(member: Member, before: Sequence[Array], rows: int) -> tuple[Array, float, float]:
    """One number for each of the earlier matrices, for every group of so many rows."""
    white = [one / member.row_steps[:, None] @ member.root for one in before]
    found = np.zeros(member.matrix.shape)
    count = 0
    for start in range(0, len(found), rows):
        part = slice(start, start + rows)
        basis = np.stack([one[part].reshape(-1) for one in white], axis=1)
        weights = np.linalg.lstsq(basis, member.whitened[part].reshape(-1), rcond=None)[0].astype(np.float16)
        found[part] = sum(float(weight) * one[part] for weight, one in zip(weights, before, strict=True))
        count += len(weights)
    return found.astype(np.float32), GAIN_BITS * count, count / member.matrix.size


def one_gain(member: Member, before: Sequence[Array], rows: int) -> tuple[Array, float, float]:
    return gains(member, before[:1], len(member.matrix))


def four_gains(member: Member, before: Sequence[Array], rows: int) -> tuple[Array, float, float]:
    return gains(member, before, len(member.matrix))


def gains_of_heads(member: Member, before: Sequence[Array], rows: int) -> tuple[Array, float, float]:
    return gains(member, before, rows)


def mixture(member: Member, before: Sequence[Array], rows: int, heads: bool = False) -> tuple[Array, float, float]:
    """Each row of a group out of all rows of that group in the layer before; the numbers rounded as products' are."""
    found, bits, chance = np.zeros(member.matrix.shape, np.float32), 0.0, 0.0
    size = rows if heads else len(found)
    energy = np.square(member.whitened)
    for start in range(0, len(found), size):
        part = slice(start, start + size)
        theirs, mine = before[0][part], member.whitened[part] * member.row_steps[part, None]
        mix = np.linalg.lstsq((theirs @ member.root).T, mine.T, rcond=None)[0]  # [rows before, rows]
        guess = member.matrix.copy()
        guess[part] = mix.T @ theirs
        step = np.sqrt(12 * (member.steps_squared(guess)[part].mean() + 1 / STEP_ENERGY))
        spread = np.maximum(np.linalg.norm(theirs / member.column_steps, axis=1), 1e-12)
        factor = Rows.rounded(mix, step / spread, member.row_steps[part])
        found[part] = factor.values().T @ theirs
        bits += 8.0 * len(factor.payload())
        chance += min(1.0, len(theirs) / theirs.shape[1]) * float(energy[part].sum())
    return found, bits, chance / float(energy.sum())


def mixture_of_heads(member: Member, before: Sequence[Array], rows: int) -> tuple[Array, float, float]:
    return mixture(member, before, rows, heads=True)


PREDICTORS: Mapping[str, Predictor] = {
    "one gain": one_gain, "a gain for each of 4 layers": four_gains, "gains of heads, 4 layers": gains_of_heads,
    "rows of a head mixed": mixture_of_heads, "all rows mixed": mixture,
}  # fmt: skip


def chains(members: Sequence[Member], values: Mapping[str, Array]) -> Iterator[tuple[Member, list[Array]]]:
    """Every matrix that has one before it, and what is decoded by then, the last first."""
    for kind in kinds_of(members):
        for place in range(1, len(kind)):
            yield kind[place], [values[one.name] for one in reversed(kind[max(0, place - CHAIN) : place])]


def report(case: Case, rates: Sequence[float], rows: int) -> None:
    """A table of one model."""
    size = sum(plan.weight.size for plan in case.plans.values())
    print(
        f"\n### {case.label}\n\n| bits | predictor | share removed | by chance | bits of θ | pays for |"
        " estimated saved | measured saved |\n" + "|---" * 8 + "|"
    )
    for rate in rates:
        c = first_c(list(case.plans.values()), rate * size)
        members = [Member.planned(name, plan, c) for name, plan in case.plans.items()]
        values = {name: decoded(plan, c)[2] for name, plan in case.plans.items()}
        totals = {label: Total() for label in PREDICTORS}
        for member, before in chains(members, values):
            for label, predictor in PREDICTORS.items():
                add(totals[label], case, member, predictor(member, before, rows), c)
        for label, one in totals.items():
            print(
                f"| {rate} | {label} | {1 - one.left / one.energy:.4f} | {one.chance / one.energy:.4f} | "
                f"{one.theta_bits / size:.4f} | {one.paying} of {one.matrices} | {one.estimated / size:.4f} | "
                f"{one.measured / size:.4f} |",
                flush=True,
            )


def add(total: Total, case: Case, member: Member, found: tuple[Array, float, float], c: float) -> None:
    """One matrix more."""
    mean, bits, chance = found
    energy = float(np.square(member.whitened).sum())
    total.matrices += 1
    total.energy += energy
    total.left += float(np.square((member.matrix - mean) / member.row_steps[:, None] @ member.root).sum())
    total.chance += chance * energy
    total.theta_bits += bits
    saved = member.bits - member.residual_bits(mean) - bits
    if saved > 0:
        plan = case.plans[member.name]
        apart = replace(plan, weight=np.ascontiguousarray(plan.weight - mean))
        total.paying += 1
        total.estimated += saved
        total.measured += coded_bits(plan, c) - coded_bits(apart, c) - bits


def main() -> None:
    """Prints the machine, the command and every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    options = asked(parser)
    for model, case in cases(options):
        config = Checkpoint.open(model).config
        rows = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        report(case, options.bits, rows)


if __name__ == "__main__":
    main()
