"""What a function beside the residual is worth: bits saved at equal D, candidate by candidate.

    python benchmarks/function.py [MODEL …] [--layers FILE.safetensors …] [--recipes identity gauge] [--bits 1.5 2 3]
                                  [--candidates NAME …]

    plans of all matrices, c of the rate ─▶ every candidate's f ─▶ estimated bits of f + r against W
    where that saves ─▶ W and W − f coded, tables fitted ─▶ bytes of records at the D that W reached

"measured" counts bytes: residual records and tables of matrices coded alone with the scalar quantizer, and the record
of f. "estimated" are the energies in steps that the selection goes by; candidates without a format (marked *) have no
other number, their parameters counted at the resolution they need. A matrix saves nothing where a candidate would cost
more than it brings: f is then left out. Totals are over all matrices of a model, in bits per weight of all of them.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench import DEMO, split_tokens
from limit import layers
from scipy.sparse.csgraph import shortest_path

from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import fit_tables, pack_tables
from trueaxis.entropy.stream import decode_indices, dequantize, pack_residual, unpack_residual
from trueaxis.function.member import STEP_ENERGY, Member
from trueaxis.function.select import CANDIDATES, kinds_of, saved_bits
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import prepare
from trueaxis.progress import silent
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.terms import hats
from trueaxis.stages import Feedback, Rans
from trueaxis.types import Array, Quantized, Weight

MODELS = Path(__file__).parents[2] / "shared" / "models"
NEIGHBOURING = (0.8, 1.25)  # of c: where else W is coded, so that its bits at another D are known
FEATURES = 64
HEADS = 8
COORDINATES, ROUNDS, LANDMARKS, NEIGHBOURS = 3, 40, 512, 12
Guess = Callable[[Member, Member | None, Array | None], tuple[Array, int]]
"""(matrix, the same one block before, token counts) ─▶ (f, numbers that describe it); no f costs nothing."""


@dataclass(frozen=True, eq=False)
class Case:
    """Matrices of a model with their plans; `counts` of tokens, where there are some."""

    label: str
    plans: Mapping[str, Plan]
    counts: Array | None = None


def scaled(member: Member) -> Array:
    """W in steps."""
    return member.matrix / member.row_steps[:, None] / member.column_steps


def in_place(member: Member, found: Array) -> Array:
    return found * member.row_steps[:, None] * member.column_steps


def from_before(member: Member, before: Member | None, counts: Array | None, groups: int = 1) -> tuple[Array, int]:
    """A gain times the layer before, one for each of some groups of rows."""
    if before is None or groups > member.matrix.shape[0]:
        return np.zeros_like(member.matrix), 0
    found, steps = scaled(member), before.matrix / member.row_steps[:, None] / member.column_steps
    parts = [
        (mine * theirs).sum() / max((theirs**2).sum(), 1e-30) * theirs
        for mine, theirs in zip(np.array_split(found, groups), np.array_split(steps, groups), strict=True)
    ]
    return in_place(member, np.concatenate(parts)), groups


def heads_from_before(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    return from_before(member, before, counts, HEADS)


def mixed_from_before(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """A square matrix times the layer before, least squares in the metric."""
    if before is None:
        return np.zeros_like(member.matrix), 0
    theirs = before.matrix / member.row_steps[:, None] @ member.root
    mix = np.linalg.lstsq(theirs.T, member.whitened.T, rcond=None)[0].T
    return mix @ (before.matrix / member.row_steps[:, None]) * member.row_steps[:, None], mix.size


def cosines(member: Member, before: Member | None, counts: Array | None, waves: int = 8) -> tuple[Array, int]:
    """DCT over the index of rows."""
    size = member.matrix.shape[0]
    basis = np.cos(np.pi * (np.arange(size)[:, None] + 0.5) * np.arange(waves) / size)
    found = np.linalg.lstsq(basis, scaled(member), rcond=None)[0]
    return in_place(member, basis @ found), found.size


def heads_as_members(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """Heads as turned copies of their mean, after Procrustes; the turns are numbers too."""
    rows, columns = member.matrix.shape
    size = rows // HEADS
    if rows % HEADS or size < 2 or rows > 2 * columns:
        return np.zeros_like(member.matrix), 0
    heads = scaled(member).reshape(HEADS, size, columns)
    mean = heads[0]
    for _ in range(4):
        turns = [np.linalg.svd(head @ mean.T) for head in heads]
        mean = np.mean([(u @ v).T @ head for (u, _, v), head in zip(turns, heads, strict=True)], axis=0)
    turned = np.concatenate([u @ v @ mean for u, _, v in turns])
    return in_place(member, turned), mean.size + HEADS * size * (size - 1) // 2


def token_frequency(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """Rows of tables as splines of how often their token occurs."""
    if counts is None or len(counts) != member.matrix.shape[0]:
        return np.zeros_like(member.matrix), 0
    basis = hats(8, len(counts))[np.argsort(np.argsort(counts, kind="stable"))]
    found = np.linalg.lstsq(basis, scaled(member), rcond=None)[0]
    return in_place(member, basis @ found), found.size


def neighbouring_rows(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """Rows of tables from the row before."""
    if counts is None or len(counts) != member.matrix.shape[0]:
        return np.zeros_like(member.matrix), 0
    found = scaled(member)
    above = np.concatenate([np.zeros_like(found[:1]), found[:-1]])
    return in_place(member, (found * above).sum() / (above**2).sum() * above), 1


def coordinate_network(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """One hidden layer of waves over (row, column), its first layer drawn from a seed."""
    rows, columns = member.matrix.shape
    rng, found = np.random.default_rng(0), scaled(member)
    total, places = np.zeros_like(found), (np.arange(rows) / rows, np.arange(columns) / columns)
    for down, across, phase in rng.normal(size=(FEATURES, 3)) * (8, 8, 3):
        wave = np.cos(down * places[0][:, None] + across * places[1] + phase)
        total += ((found - total) * wave).sum() / (wave**2).sum() * wave
    return in_place(member, total), FEATURES


def quadratic_rows(member: Member, before: Member | None, counts: Array | None) -> tuple[Array, int]:
    """Rows as points of a curved 3-manifold: 1, x_a and x_a x_b of three coordinates, refined by Gauss and Newton."""
    white, size = member.whitened, COORDINATES
    places = charted(white)
    for _ in range(ROUNDS):
        basis = lifted(places)
        maps = np.linalg.lstsq(basis, white, rcond=None)[0]
        error = white - basis @ maps
        slopes = np.stack([(lifted(places + 0.5 * one) - lifted(places - 0.5 * one)) @ maps for one in np.eye(size)], 1)
        normal = np.einsum("mkn,mln->mkl", slopes, slopes)
        normal += 0.01 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(size)
        moved = places + np.linalg.solve(normal, np.einsum("mkn,mn->mk", slopes, error)[..., None])[..., 0]
        better = np.square(white - lifted(moved) @ maps).sum(axis=1) < np.square(error).sum(axis=1)
        places = np.where(better[:, None], moved, places)
    basis = lifted(places)
    fitted = basis @ np.linalg.lstsq(basis, white, rcond=None)[0]
    found = np.linalg.solve(member.root.T, fitted.T).T * member.row_steps[:, None]
    return found, places.size + basis.shape[1] * white.shape[1]


def charted(points: Array) -> Array:
    """Coordinates [m, 3] that keep distances along the rows' own manifold (Isomap); others are put at landmarks."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(LANDMARKS, len(points))).astype(int))
    squares = np.square(points).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[chosen] - 2 * points @ points[chosen].T, 0))
    inside = apart[chosen]
    near = inside <= np.sort(inside, axis=1)[:, min(NEIGHBOURS, len(chosen) - 1)][:, None]
    paths = shortest_path(np.where(near | near.T, np.maximum(inside, 1e-9), 0), directed=False)
    paths[~np.isfinite(paths)] = paths[np.isfinite(paths)].max()
    centre = np.eye(len(paths)) - 1 / len(paths)
    axes = np.linalg.eigh(-0.5 * centre @ np.square(paths) @ centre)[1][:, -COORDINATES:]
    return axes[apart.argmin(axis=1)] * np.sqrt(len(axes))


def lifted(places: Array) -> Array:
    """1, x_a and x_a x_b of coordinates [m, k]."""
    pairs = [places[:, a] * places[:, b] for a in range(places.shape[1]) for b in range(a, places.shape[1])]
    return np.column_stack([np.ones(len(places)), places, *pairs])


GUESSES: dict[str, Guess] = {
    "layer before, one gain *": from_before, "layer before, gains of heads *": heads_from_before,
    "layer before, mixed in the metric *": mixed_from_before, "DCT over rows *": cosines,
    "heads after Procrustes *": heads_as_members, "token frequency *": token_frequency,
    "row before in tables *": neighbouring_rows, "coordinate network *": coordinate_network,
    "quadratic of three coordinates *": quadratic_rows,
}  # fmt: skip


def guessed_saving(member: Member, before: Member | None, counts: Array | None, guess: Guess) -> float:
    """Estimated bits that a candidate without a format saves: its numbers at the resolution they need."""
    found, numbers = guess(member, before, counts)
    if not numbers:
        return 0.0
    energy = float(np.square(scaled(member)).mean() / (member.steps_squared(found).mean() + 1 / STEP_ENERGY))
    each = 0.5 * np.log2(1 + energy * member.matrix.size / numbers)
    return max(0.0, member.bits - member.residual_bits(found) - numbers * each)


def decoded(plan: Plan, c: float) -> tuple[Quantized, int, Array]:
    """(a matrix quantized alone, bytes of its residual record and its tables, float32 values that they decode to)."""
    tables = settled_tables(plan.trellis, plan.rate_weight)
    for _ in range(2):
        outcome = quantize(plan, c, tables)
        fitted = fit_tables(count_symbols([outcome.quantized]), tables.offsets)
        tables = fitted
    payload = pack_residual(outcome.quantized, fitted, Rans().lanes, Rans().chain)
    header = unpack_residual(payload, *plan.weight.shape)
    values = dequantize(header, decode_indices(header, fitted), fitted)
    return outcome.quantized, len(payload) + len(pack_tables(fitted)), values


def coded(plan: Plan, c: float, mean: Array | None = None) -> tuple[float, float]:
    """(bits of a residual record and its tables, log₂ D in squared steps)."""
    plan = plan if mean is None else replace(plan, weight=np.ascontiguousarray(plan.weight - mean))
    _, size, values = decoded(plan, c)
    member = Member.planned("", plan, 1.0)
    lost = float(np.square((values - plan.weight) / member.row_steps[:, None] @ member.root).sum())
    return 8.0 * size, float(np.log2(max(lost, 1e-30)))


def measured_savings(case: Case, c: float, fits: Mapping[str, Mapping[str, tuple[Array, float]]]) -> dict[str, float]:
    """Candidate ─▶ measured bits saved over all matrices whose f saves any."""
    total: dict[str, float] = {}
    for name, plan in case.plans.items():
        wanted = {candidate: rows[name] for candidate, rows in fits.items() if name in rows}
        if not wanted:
            continue
        own = [coded(plan, c * factor) for factor in (NEIGHBOURING[1], 1.0, NEIGHBOURING[0])]
        bits, levels = np.array(own).T
        for candidate, (mean, function_bits) in wanted.items():
            paid, level = coded(plan, c, mean)
            slope = (bits[0] - bits[2]) / (levels[0] - levels[2])
            there = bits[1] + slope * (level - levels[1])
            total[candidate] = total.get(candidate, 0.0) + there - paid - function_bits
    return total


def report(case: Case, rates: Sequence[float], wanted: Collection[str]) -> None:
    """A table of one model."""
    size = sum(plan.weight.size for plan in case.plans.values())
    candidates = {label: one for label, one in CANDIDATES.items() if label in wanted}
    guesses = {label: one for label, one in GUESSES.items() if label in wanted}
    print(
        f"\n### {case.label}\n\n| bits | candidate | matrices with f | estimated saved | measured saved |\n"
        + "|---" * 5
        + "|"
    )
    for rate in rates:
        c = first_c(list(case.plans.values()), rate * size)
        members = [Member.planned(name, plan, c) for name, plan in case.plans.items()]
        fits: dict[str, dict] = {}
        estimated: dict[str, float] = {}
        for candidate, fit_all in candidates.items():
            for kind in kinds_of(members):
                found = list(zip(kind, fit_all(kind), strict=False))
                gains = [saved_bits(member, fit) for member, fit in found]
                if candidate == "shared":  # all or none
                    gains = [sum(gains) / max(len(gains), 1)] * len(gains)
                for gain, (member, fit) in zip(gains, found, strict=True):
                    if gain > 0:
                        fits.setdefault(candidate, {})[member.name] = fit.mean, fit.function_bits
                        estimated[candidate] = estimated.get(candidate, 0.0) + gain
        measured = measured_savings(case, c, fits)
        for candidate in candidates:
            count = len(fits.get(candidate, ()))
            print(f"| {rate} | {candidate} | {count} of {len(members)} | {estimated.get(candidate, 0) / size:.4f} | "
                  f"{measured.get(candidate, 0) / size:.4f} |", flush=True)  # fmt: skip
        for label, guess in guesses.items():
            gains = [
                guessed_saving(member, before, case.counts, guess)
                for kind in kinds_of(members)
                for before, member in zip([None, *kind[:-1]], kind, strict=True)
            ]
            print(f"| {rate} | {label} | {sum(gain > 0 for gain in gains)} of {len(members)} | "
                  f"{sum(gains) / size:.4f} | no format |", flush=True)  # fmt: skip


def of_model(model: Path, name: str, folder: Path) -> Case:
    """Its matrices in the axes of a recipe, planned for the scalar quantizer; the demo model reads its own text."""
    checkpoint, chosen = Checkpoint.open(model), find_recipe(name)
    chosen = replace(chosen, quantize=Feedback(effort="scalar"))
    tokens, statistics = folder / f"{model.name}.npy", folder / f"{model.name}.safetensors"
    if not tokens.exists():
        np.save(tokens, split_tokens(model, "calibration"))
    found = prepare(
        checkpoint, chosen, checkpoint.bytes_at(2), [tokens], statistics,
        seed=0, threads=1, device="cpu", progress=silent,
    )  # fmt: skip
    plans = {job.coded.name: job.plan for job in found.jobs if job.coded.slice is None}
    label = "demo" if model.resolve() == DEMO.resolve() else model.name
    return Case(f"{label}, {name}", plans, found.statistics.token_counts)


def of_layers(file: Path) -> Case:
    """The layers of a set in their own axes."""
    planner = Planner(Feedback(effort="scalar"))
    plans = {}
    for source in layers(file):
        weight = Weight(source.name, source.weight.shape, "F32", "linear", source.name)
        plans[source.name] = planner.plan(weight, source.weight, source.metric)
    return Case(file.stem, plans)


def asked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Options, with recipes and rates among them; prints the machine and the command."""
    parser.add_argument("--recipes", nargs="+", default=["identity", "gauge"])
    parser.add_argument("--bits", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    return options


def cases(options: argparse.Namespace) -> Iterator[tuple[Path, Case]]:
    """Every model in the axes of every recipe."""
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for name in options.recipes:
                yield model, of_model(model, name, Path(folder))


def main() -> None:
    """Prints the machine, the command and every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--layers", type=Path, nargs="+", default=[])
    parser.add_argument("--candidates", nargs="+", default=[*CANDIDATES, *GUESSES], help="all unless they are named")
    options = asked(parser)
    for file in options.layers:
        report(of_layers(file), options.bits, options.candidates)
    for _, case in cases(options):
        report(case, options.bits, options.candidates)


if __name__ == "__main__":
    main()
