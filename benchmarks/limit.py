"""Gap to the rate–distortion limit, all bytes counted: an i.i.d. Gaussian source, and real layers with their metrics.

    python benchmarks/limit.py [--layers FILE.safetensors] [--size 4096] [--bits 1 1.5 2 3 4]

The rate is that of a residual record and its tables, as a file would hold them. "for D" has the rate weight best
for D; the recipes' own is smaller, because shrunken weights cost KL through the layers. Layers come twice: in the
checkpoint's axes, and in the principal axes of their own inputs. The latter have to be known to the decoder; they are
coded by the same means, what is quantized sees the axes as decoded, and their bytes are printed apart. D and limit are
those of the layer as it was.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import Tables, fit_tables, offsets_from, pack_tables
from trueaxis.entropy.stream import decode_indices, dequantize, pack_residual, unpack_residual
from trueaxis.metric.metric import distance, limit_bits
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.recipe import Recipe, recipe
from trueaxis.stages import Feedback, Rans
from trueaxis.types import Array, Metric, Weight

PASSES = 6
WEIGHT_FOR_D = 0.06
AXES_BITS = 5.0  # per entry of a matrix of axes
RECIPES = {name: recipe(name) for name in ("identity", "gptq", "gptq-uniform", "rtn")}
EFFORTS = {effort: Recipe(quantize=Feedback(effort=effort)) for effort in ("fast", "default", "best")} | {
    f"{effort} for D": Recipe(quantize=Feedback(effort=effort, rate_weight=WEIGHT_FOR_D))
    for effort in ("fast", "default", "best")
}
OWN_AXES = {f"{effort}, own axes": EFFORTS[effort] for effort in ("default", "best")}


@dataclass(frozen=True, eq=False)
class Source:
    """A matrix to code, in whatever coordinates, and what the limit is computed of: (W, H) as they were."""

    name: str
    weight: Array
    metric: Metric
    original: tuple[Array, Array | None]


def code(weight: Array, metric: Metric, chosen: Recipe, target_bits: float) -> tuple[float, Array]:
    """(bits per weight, decoded matrix) near a rate, from its own bytes."""
    stage, entropy = chosen.quantize, Rans()
    plan = Planner(stage).plan(Weight("matrix", weight.shape, "F32", "linear", "space"), weight, metric)
    tables = settled_tables(plan.trellis, plan.rate_weight)
    octaves = np.log2(first_c([plan], target_bits * weight.size))
    for _ in range(PASSES):
        outcome = quantize(plan, 2.0**octaves, tables)
        fitted = fit_tables(count_symbols([outcome.quantized]), tables.offsets)
        payload = pack_residual(outcome.quantized, fitted, entropy.lanes, entropy.chain)
        bits = (len(payload) + len(pack_tables(fitted))) * 8 / weight.size
        tables = Tables(
            fitted.frequencies, fitted.escape_orders, offsets_from([(outcome.residual_sums, outcome.residual_counts)])
        )
        octaves += bits - target_bits
    header = unpack_residual(payload, *weight.shape)
    return bits, dequantize(header, decode_indices(header, fitted), fitted)


def in_own_axes(source: Source) -> Source:
    """W′ = W T⁻ᵀ and H′ = Tᵀ H T for the eigenvectors T of H as they decode; prints what they cost."""
    weight, moment = source.original
    assert moment is not None
    _, axes = np.linalg.eigh(moment)
    bits, decoded = code(axes.astype(np.float32), Metric(None), EFFORTS["default"], AXES_BITS)
    turn = decoded.astype(np.float64)
    size = bits * axes.size / 8
    print(f"{source.name:34} axes: {size:10,.0f} bytes, {size * 8 / weight.size:.4f} bits per weight", flush=True)
    turned = np.linalg.solve(turn, weight.astype(np.float64).T).T.astype(np.float32)
    return replace(source, weight=turned, metric=Metric(turn.T @ moment @ turn))


def report(label: str, sources: list[Source], recipes: dict[str, Recipe], rates: list[float]) -> None:
    """One line per source, recipe and rate, then the median gap."""
    print(f"\n{label}\n{'source':34} {'recipe':17} {'bits':>7} {'rel. D':>10} {'limit':>7} {'gap':>7} {'s':>6}")
    for rate in rates:
        for name, chosen in recipes.items():
            gaps = []
            for source in sources:
                start = time.perf_counter()
                bits, decoded = code(source.weight, source.metric, chosen, rate)
                lost = distance(decoded - source.weight, source.metric)
                limit = limit_bits(source.original[1], source.original[0], lost)
                gaps.append(bits - limit)
                lost /= distance(source.weight, source.metric)
                seconds = time.perf_counter() - start
                print(
                    f"{source.name:34} {name:17} {bits:7.4f} {lost:10.3e} {limit:7.4f} {gaps[-1]:7.4f} {seconds:6.1f}"
                )
            print(f"{'median at ' + str(rate):34} {name:17} {'':7} {'':10} {'':7} {np.median(gaps):7.4f}", flush=True)


def gaussian(size: int) -> list[Source]:
    """One i.i.d. standard normal matrix under the identity metric."""
    weight = np.random.default_rng(0).standard_normal((size, size), np.float32)
    return [Source(f"gaussian {size}", weight, Metric(None), (weight, None))]


def layers(file: Path) -> list[Source]:
    """Layers of a file with NAME.weight [m, n] and NAME.input_second_moment [n, n]; key and value share query's."""
    from safetensors.numpy import load_file

    tensors = load_file(file)
    names = sorted(name for name, value in tensors.items() if name.endswith(".weight") and value.ndim == 2)
    found = []
    for name in names:
        layer = {"key": "query", "value": "query"}.get(name.removesuffix(".weight"), name.removesuffix(".weight"))
        moment = tensors[f"{layer}.input_second_moment"].astype(np.float64)
        found.append(Source(name.removesuffix(".weight"), tensors[name], Metric(moment), (tensors[name], moment)))
    return found


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--only-layers", action="store_true", help="leave the Gaussian source out")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    if not options.only_layers:
        report("i.i.d. Gaussian", gaussian(options.size), EFFORTS, options.bits)
    if options.layers:
        found = layers(options.layers)
        report(options.layers.name, found, RECIPES, options.bits)
        print()
        report(f"{options.layers.name}, own axes", [in_own_axes(source) for source in found], OWN_AXES, options.bits)


if __name__ == "__main__":
    main()
