"""What coordinates are worth: bits saved at equal D against `identity`, tensor by tensor.

    python benchmarks/coordinates.py [MODEL …] [--bits 1 1.5 2 3 4] [--recipes rotation pca gauge] [--planted]

    a recipe at every rate ─▶ (bits, D) of every tensor ─▶ its bits at the D that `identity` reached, by
    interpolation in log D ─▶ saved = bits of identity − those

D is the same number in every gauge, measured on the decoded file. Bits are file bytes with tables, scales and the
share of shared streams. A model is a directory with calibration_tokens.npy; the planted checkpoint is a random Llama
whose residual stream has axes of very different energy, turned by a random rotation: `planted` is what identity pays
for the rotation, `recovered` the share of it that a recipe finds again. KL at equal bytes:

    python benchmarks/baselines.py --recipes identity rotation pca gauge --out benchmarks/coordinates_kl.md
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import trueaxis

MODELS = Path(__file__).parents[2] / "shared" / "models"
BITS = [1.0, 1.5, 2.0, 3.0, 4.0]
RECIPES = ["rotation", "pca", "gauge"]
Curves = dict[str, list[tuple[float, float]]]  # tensor ─▶ (log₂ D, bits) by rate


def curves(model: Path, statistics: Path, recipe: str, rates: Sequence[float], folder: Path) -> Curves:
    """Bits and distortion of every quantized tensor at every rate."""
    found: Curves = {}
    for bits in rates:
        report = trueaxis.compress(
            model, folder / "out", bits=bits, statistics=statistics, recipe=recipe, overwrite=True,
            calibration=[model / "calibration_tokens.npy"],
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
    wide = sorted({*rates, max(0.6, min(rates) - 0.3), max(rates) + 0.5})
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


def controls(recipes: Sequence[str], rates: Sequence[float], folder: Path) -> None:
    """Planted: which share of the planted bits comes back; i.i.d.: what is chosen and paid."""
    wide = sorted({*rates, max(0.6, min(rates) - 0.3), max(rates) + 1.5})
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
    white = plant(folder, 0.0, False)
    saved = {}
    own = curves(white, folder / "white.safetensors", "identity", wide, folder)
    for recipe in recipes:
        other = curves(white, folder / "white.safetensors", recipe, wide, folder)
        saved[recipe] = {rate: saved_bits(own, other, wide.index(rate)) for rate in rates}
    tabulate("i.i.d. weights", saved, False)


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--planted", action="store_true", help="planted and i.i.d. checkpoints as well")
    parser.add_argument("--every", action="store_true", help="a line for every tensor")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models or sorted(path for path in MODELS.iterdir() if path.is_dir()):
            saved = measure(model, options.recipes, options.bits, Path(folder))
            tabulate(model.name, saved, options.every)
        if options.planted:
            controls(options.recipes, options.bits, Path(folder))


if __name__ == "__main__":
    main()
