"""Gap to the rate–distortion limit, all bytes counted: an i.i.d. Gaussian source, and real layers with their metrics.

    python benchmarks/limit.py [--layers FILE.safetensors] [--size 4096] [--bits 1 1.5 2 3 4]

The rate is that of a residual record and its tables, as a file would hold them. "for D" has the rate weight best
for D; the recipes' own is smaller, because shrunken weights cost KL through the layers.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
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
from trueaxis.recipe import Feedback, Rans, Recipe, recipe
from trueaxis.types import Array, Metric, Weight

PASSES = 6
WEIGHT_FOR_D = 0.06
RECIPES = {name: recipe(name) for name in ("identity", "gptq", "gptq-uniform", "rtn")}
EFFORTS = {effort: Recipe(quantize=Feedback(effort=effort)) for effort in ("fast", "default", "best")} | {
    f"{effort} for D": Recipe(quantize=Feedback(effort=effort, rate_weight=WEIGHT_FOR_D))
    for effort in ("fast", "default", "best")
}
Source = tuple[str, Array, Metric]


def code(weight: Array, metric: Metric, chosen: Recipe, target_bits: float) -> tuple[float, float, float]:
    """(bits per weight, relative distortion, limit) of one matrix near a rate, decoded from its own bytes."""
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
    decoded = dequantize(header, decode_indices(header, fitted), fitted)
    lost = distance(decoded - weight, metric)
    return bits, lost / distance(weight, metric), limit_bits(metric.second_moment, weight, lost)


def report(label: str, sources: list[Source], recipes: dict[str, Recipe], rates: list[float]) -> None:
    """One line per source, recipe and rate, then the median gap."""
    print(f"\n{label}\n{'source':34} {'recipe':13} {'bits':>7} {'rel. D':>10} {'limit':>7} {'gap':>7} {'s':>6}")
    for rate in rates:
        for name, chosen in recipes.items():
            gaps = []
            for source, weight, metric in sources:
                start = time.perf_counter()
                bits, lost, limit = code(weight, metric, chosen, rate)
                gaps.append(bits - limit)
                seconds = time.perf_counter() - start
                print(f"{source:34} {name:13} {bits:7.4f} {lost:10.3e} {limit:7.4f} {bits - limit:7.4f} {seconds:6.1f}")
            print(f"{'median at ' + str(rate):34} {name:13} {'':7} {'':10} {'':7} {np.median(gaps):7.4f}", flush=True)


def gaussian(size: int) -> list[Source]:
    """One i.i.d. standard normal matrix under the identity metric."""
    weight = np.random.default_rng(0).standard_normal((size, size), np.float32)
    return [(f"gaussian {size}", weight, Metric(None))]


def layers(file: Path) -> list[Source]:
    """Layers of a file with NAME.weight [m, n] and NAME.input_second_moment [n, n]; key and value share query's."""
    from safetensors.numpy import load_file

    tensors = load_file(file)
    names = sorted(name for name, value in tensors.items() if name.endswith(".weight") and value.ndim == 2)
    found = []
    for name in names:
        layer = {"key": "query", "value": "query"}.get(name.removesuffix(".weight"), name.removesuffix(".weight"))
        moment = tensors[f"{layer}.input_second_moment"].astype(np.float64)
        found.append((name.removesuffix(".weight"), tensors[name], Metric(moment)))
    return found


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    report("i.i.d. Gaussian", gaussian(options.size), EFFORTS, options.bits)
    if options.layers:
        report(str(options.layers.name), layers(options.layers), RECIPES, options.bits)


if __name__ == "__main__":
    main()
