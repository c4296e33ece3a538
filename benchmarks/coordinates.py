"""What coordinates are worth: bits saved at equal D against `identity`, tensor by tensor.

    python benchmarks/coordinates.py [MODEL …] [--bits 1 1.5 2 3 4] [--recipes rotation pca gauge …] [--planted]
                                     [--layers FILE.safetensors …]

    a recipe at every rate ─▶ (bits, D) of every tensor ─▶ its bits at the D that `identity` reached, by
    interpolation in log D ─▶ saved = bits of identity − those

D is the same number in every gauge, measured on the decoded file; weights are not corrected for what earlier layers
lost, so that it is each matrix's own. Bits are file bytes with tables, scales and the share of shared streams. A model
is a directory with calibration_tokens.npy, or the demo model; the planted checkpoint is a random Llama whose residual
stream has axes of very different energy, turned by a random rotation: `planted` is what identity pays for the rotation,
`recovered` the share of it that a recipe finds again. `i.i.d. weights` has none in its weights,
`white` none in its statistics either: there a recipe should keep the own axes. The layers of a set are one block and
share the axes of its stream, as a network would have to; `structured` there turns the checkpoint's own axes, and
`gauge+structured` those of `gauge`. KL at equal bytes: benchmarks/divergences.py.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from baselines import chosen_models, texts
from limit import code, layers

import trueaxis
from trueaxis.align.basis import AXES, Term
from trueaxis.align.described import Described
from trueaxis.align.structured import found_for, paid_bits, turned_metric
from trueaxis.metric.metric import distance
from trueaxis.metric.statistics import load_statistics
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.plan import Planner, factorize
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.orthogonal import Orthogonal
from trueaxis.runtime.transforms import undone
from trueaxis.stages import NoDrift
from trueaxis.types import Array, Metric, Weight

BITS = [1.0, 1.5, 2.0, 3.0, 4.0]
RECIPES = ["rotation", "pca", "gauge", "structured", "learned", "lowrank"]
WRITERS = ("attention_output", "ffn_down")
LAYER_AXES = {"identity": "identity", "rotation": "hadamard", "pca": "pca-metric", "gauge": "joint"}
STORED = "structured"  # after axes and a plus sign, or in the checkpoint's own
Curves = dict[str, list[tuple[float, float]]]  # tensor ─▶ (log₂ D, bits) by rate


def curves(model: Path, statistics: Path, recipe: str, rates: Sequence[float], folder: Path) -> Curves:
    """Bits and distortion of every quantized tensor at every rate."""
    found: Curves = {}
    chosen, (calibration, _) = replace(find_recipe(recipe), drift=NoDrift()), texts(model, folder)
    for bits in rates:
        report = trueaxis.compress(
            model, folder / "out", bits=bits, statistics=statistics, recipe=chosen, overwrite=True,
            calibration=[calibration],
        )  # fmt: skip
        print(f"  {recipe:10} {bits:5.2f}: {report.file_bytes:>10,} bytes, {report.seconds:6.1f} s", flush=True)
        heads = [row for row in report.tensors if row.coordinates.endswith(":head")]
        for row in report.tensors:
            if row.relative_distortion > 0 and row not in heads:
                # the matrix that makes a head of a tied embedding is paid for by the embedding
                paid = sum(head.bits_per_weight for head in heads) if "embed_tokens" in row.name else 0.0
                found.setdefault(row.name, []).append((np.log2(row.relative_distortion), row.bits_per_weight + paid))
    return found


def saved_bits(own: Curves, other: Curves, index: int) -> dict[str, float]:
    """Bits saved by `other` at the D of `own`'s rate number `index`, for tensors whose curve reaches it."""
    saved = {}
    for name, points in own.items():
        log_d, bits = np.array(sorted(other[name])).T
        level, paid = points[index]
        if log_d[0] <= level <= log_d[-1]:
            saved[name] = paid - float(np.interp(level, log_d, bits))
    return saved


def tabulate(label: str, saved: Mapping[str, Mapping[float, Mapping[str, float]]], every: bool) -> None:
    """Median, extremes and, if asked for, every tensor."""
    print(f"\n### {label}\n\n| recipe | identity's bits | tensors | median saved | least | most |\n" + "|---" * 6 + "|")
    for recipe, by_rate in saved.items():
        for rate, values in by_rate.items():
            numbers = np.array(list(values.values()) or [np.nan])
            print(f"| {recipe} | {rate} | {len(values)} | {np.median(numbers):.3f} | {numbers.min():.3f} | "
                  f"{numbers.max():.3f} |")  # fmt: skip
    if every:
        for recipe, by_rate in saved.items():
            for rate, values in by_rate.items():
                for name, value in values.items():
                    print(f"{recipe} {rate} {name} {value:.3f}")


def measure(model: Path, recipes: Sequence[str], rates: Sequence[float], folder: Path) -> dict:
    """Bits saved: recipe ─▶ rate ─▶ tensor ─▶ bits. Curves go beyond the rates on both sides."""
    statistics = folder / f"{model.name}.safetensors"
    wide = sorted({*rates, max(0.6, min(rates) - 0.8), max(rates) + 0.5})
    own = curves(model, statistics, "identity", wide, folder)
    saved = {}
    for recipe in recipes:
        other = curves(model, statistics, recipe, wide, folder)
        saved[recipe] = {rate: saved_bits(own, other, wide.index(rate)) for rate in rates}
    return saved


def plant(folder: Path, spread_octaves: float, turned: bool) -> Path:
    """A random Llama: residual axes whose energies differ by `spread_octaves` (standard deviation), turned or not."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.08, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    rng = np.random.default_rng(1)
    scale = torch.from_numpy(2.0 ** rng.normal(0, spread_octaves, 128)).float()
    axes = np.linalg.qr(rng.normal(size=(128, 128)))[0] if turned else np.eye(128)
    rotation = torch.from_numpy(axes).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                continue
            if "o_proj" in name or "down_proj" in name:
                value.copy_(rotation @ (scale[:, None] * value))
            else:
                value.copy_((value * scale) @ rotation.T)
    place = folder / f"planted-{spread_octaves}-{'turned' if turned else 'own'}"
    model.save_pretrained(place)
    np.save(place / "calibration_tokens.npy", rng.integers(0, 1024, (256, 128)).astype(np.uint16))
    return place


def layer_set(file: Path, recipes: Sequence[str], rates: Sequence[float]) -> None:
    """The layers of one block in axes of the stream that all share, coded alone with 8 states: records and tables."""
    wide, chosen = sorted({*rates, max(0.6, min(rates) - 0.8), max(rates) + 0.5}), find_recipe("fast")
    members = [
        (one.name, one.weight, replace(one.metric, sensitivity=one.weight.size / distance(one.weight, one.metric)))
        for one in layers(file)
    ]
    planner = Planner(chosen.quantize)
    plans = [planner.plan(Weight(name, weight.shape, "F32", "linear", name), weight, metric)
             for name, weight, metric in members]  # fmt: skip
    water = first_c(plans, 2.0 * sum(weight.size for _, weight, _ in members)) ** 2
    terms = [stream_term(name, weight.astype(np.float64), metric) for name, weight, metric in members]
    found: dict[str, Curves] = {}
    for recipe in dict.fromkeys(["identity", *recipes]):
        axes, _, rest = recipe.partition("+")
        turn = AXES[LAYER_AXES["identity" if axes == STORED else axes]](terms, water, 0, 1)
        for name, weight, metric in members:
            moment = metric.second_moment
            assert moment is not None
            rotated = (turn @ weight, moment) if name in WRITERS else (weight @ turn.T, turn @ moment @ turn.T)
            there = rotated[0].astype(np.float32), replace(metric, second_moment=rotated[1])
            own = stored(name, *there, planner) if STORED in (axes, rest) else []
            matrix, cost = undone(rotated[0], own).astype(np.float32), turned_metric(Metric(rotated[1]), own)
            for bits in wide:
                paid, decoded = code(matrix, cost, chosen, bits - paid_bits(own) / weight.size)
                lost = distance(decoded - matrix, cost) / distance(matrix, cost)
                paid += paid_bits(own) / weight.size
                found.setdefault(recipe, {}).setdefault(name, []).append((float(np.log2(lost)), paid))
        print(f"  {recipe}", flush=True)
    own = found.pop("identity")
    tabulate(file.stem, {recipe: {rate: saved_bits(own, other, wide.index(rate)) for rate in rates}
                         for recipe, other in found.items()}, False)  # fmt: skip


def stored(name: str, weight: Array, metric: Metric, planner: Planner) -> list[Orthogonal]:
    """Transforms of one layer that pay at 2 bits, by estimate."""
    plan = planner.plan(Weight(name, weight.shape, "F32", "linear", name), weight, metric)
    found = found_for(Described.planned(plan, first_c([plan], 2.0 * weight.size)))
    kinds, own = ", ".join(kind for kind, _ in found) or "nothing", [one for _, one in found]
    print(f"    {name}: {kinds}, {paid_bits(own):,.0f} bits", flush=True)
    return own


def stream_term(name: str, weight: Array, metric: Metric) -> Term:
    """A layer as the stream sees it."""
    assert metric.second_moment is not None
    if name not in WRITERS:
        return Term(weight.T @ weight / len(weight), len(weight), metric.second_moment, metric.sensitivity)
    energies = np.square(factorize(metric.second_moment, 1e-3).diagonal)
    level = metric.sensitivity * float(np.exp(np.log(energies).mean()))
    return Term(weight @ weight.T / weight.shape[1], weight.shape[1], None, level)


def whitened(statistics: Path) -> None:
    """Every metric becomes that of white noise, as many tokens of it as there were."""
    found, rng = load_statistics(statistics), np.random.default_rng(2)
    sums = {}
    for space, tokens in found.tokens.items():
        noise = rng.standard_normal((tokens, found.sums[space].shape[0]))
        sums[space] = noise.T @ noise
    replace(found, sums=sums).save(statistics)


def controls(recipes: Sequence[str], rates: Sequence[float], folder: Path) -> None:
    """Planted: which share of the planted bits comes back; i.i.d.: what is chosen and paid."""
    wide = sorted({*rates, max(0.6, min(rates) - 0.8), max(rates) + 1.5})
    print("\n### planted rotation\n\n| recipe | bits | planted | recovered (median) |\n|---|---|---|---|")
    rows = []
    turned, straight = plant(folder, 1.0, True), plant(folder, 1.0, False)
    lost = curves(turned, folder / "turned.safetensors", "identity", wide, folder)
    ideal = curves(straight, folder / "straight.safetensors", "identity", wide, folder)
    for recipe in recipes:
        found = curves(turned, folder / "turned.safetensors", recipe, wide, folder)
        for rate in rates:
            planted, back = (saved_bits(lost, other, wide.index(rate)) for other in (ideal, found))
            shares = [back[name] / planted[name] for name in planted if name in back and planted[name] > 0.05]
            rows.append(f"| {recipe} | {rate} | {np.median(list(planted.values())):.3f} | {np.median(shares):.1%} |")
    print("\n".join(rows))
    plain, statistics = plant(folder, 0.0, False), folder / "plain.safetensors"
    for label in ("i.i.d. weights", "white"):
        saved = {}
        own = curves(plain, statistics, "identity", wide, folder)
        for recipe in recipes:
            other = curves(plain, statistics, recipe, wide, folder)
            saved[recipe] = {rate: saved_bits(own, other, wide.index(rate)) for rate in rates}
            print(f"  {recipe}: {', '.join(Decoder(folder / 'out').container.header['gauge'])}")
        tabulate(label, saved, False)
        whitened(statistics)


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--planted", action="store_true", help="planted and i.i.d. checkpoints as well")
    parser.add_argument("--layers", type=Path, nargs="+", default=[], help="layer sets; models only if named as well")
    parser.add_argument("--every", action="store_true", help="a line for every tensor")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as folder:
        for file in options.layers:
            layer_set(
                file, [one for one in options.recipes if one.split("+")[0] in (*LAYER_AXES, STORED)], options.bits
            )
        alone = not (options.layers or options.planted)
        for model in chosen_models(options) if alone else options.models:
            saved = measure(model, options.recipes, options.bits, Path(folder))
            tabulate(model.name, saved, options.every)
        if options.planted:
            controls(options.recipes, options.bits, Path(folder))


if __name__ == "__main__":
    main()
