"""Families: bytes of a member at equal KL against compressing it alone, and KL against other deltas at equal bytes.

    python benchmarks/family.py [--steps 100] [--rate 1e-4] [--bits 0.25 0.5 1] [--alone 2 3 4 5] [--members NAME ...]

Members are fine-tunes of the demo model, trained here on three texts that it has not read: the C++ core of this
repository, its documents, and the help topics of the running Python. The first four fifths train and calibrate, the
rest evaluates. KL is that of the member's original from what is decoded. Bytes alone are interpolated between rates
(logarithm of bytes over logarithm of KL); a member's bytes leave out the base, which all share. At one bit per entry
stand beside: the sign of every difference with one scale per matrix (BitDelta without its distillation, Liu et al.,
arXiv:2402.10193), and the truncated SVD of every difference with factors in float16.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tuning import tune

import trueaxis
from trueaxis.demo.run import MODEL

ROOT = Path(__file__).parents[1]
SOURCES = {
    "core": sorted((ROOT / "cpp").glob("*.?pp")),
    "documents": sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "benchmarks").glob("*.md")),
    "topics": [Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"],
}
TRAINED = 0.8  # of a text
LONGEST = 40_000  # characters that are evaluated on
Difference = Callable[[torch.Tensor], torch.Tensor]


def texts(name: str, folder: Path) -> tuple[Path, Path]:
    """Files of a source: to train on, to evaluate on."""
    whole = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES[name])
    cut = int(len(whole) * TRAINED)
    train, test = folder / f"{name}.train.txt", folder / f"{name}.test.txt"
    train.write_text(whole[:cut], encoding="utf-8")
    test.write_text(whole[cut : cut + LONGEST], encoding="utf-8")
    return train, test


def kl(path: Path, member: Path, test: Path) -> float:
    """Nats per token."""
    found = trueaxis.evaluate(path, text=[test], reference=member).kl_nats
    assert found is not None
    return found


def signs(difference: torch.Tensor) -> torch.Tensor:
    """One bit per entry and a scale."""
    return difference.abs().mean() * torch.where(difference < 0, -1.0, 1.0)


def low_rank(difference: torch.Tensor) -> torch.Tensor:
    """Two factors in float16 that take a bit per entry."""
    rows, columns = difference.shape
    rank = max(1, round(difference.numel() / 16 / (rows + columns)))
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    scale = values[:rank].sqrt()
    return (left[:, :rank] * scale).half().float() @ (scale[:, None] * right[:rank]).half().float()


def written(member: Path, change: Difference, out: Path) -> Path:
    """The base plus changed differences; tensors of one dimension are those of the member."""
    shutil.copytree(member, out)
    base, found = load_file(MODEL / "model.safetensors"), load_file(member / "model.safetensors")
    for name, value in found.items():
        if value.dim() == 2:
            moved = change(value.float() - base[name].float())
            found[name] = (base[name].float() + moved).to(value.dtype)
    save_file(found, out / "model.safetensors", metadata={"format": "pt"})
    return out


def moved_share(member: Path) -> float:
    """|difference| / |base| over all matrices."""
    base, found = load_file(MODEL / "model.safetensors"), load_file(member / "model.safetensors")
    pairs = [(base[name].float(), value.float()) for name, value in found.items() if value.dim() == 2]
    return float(np.sqrt(sum(((b - v) ** 2).sum() for b, v in pairs) / sum((b**2).sum() for b, _ in pairs)))


def measure(
    name: str, member: Path, train: Path, test: Path, folder: Path, bits: list[float], alone: list[float]
) -> None:
    """Prints every point of a member, the ratios, and the other deltas."""
    moved, apart = moved_share(member), kl(MODEL, member, test)
    print(f"\n{name}: moved by {moved:.4f} of the base's norm; KL from member to base {apart:.4f}", flush=True)
    points: list[tuple[int, float]] = []
    for rate in alone:
        size = trueaxis.compress(member, folder / "alone", bits=rate, calibration=[train], overwrite=True).file_bytes
        points.append((size, kl(folder / "alone", member, test)))
        print(f"  alone  {rate:5g} bits {size:10,} bytes, KL {points[-1][1]:.5f}", flush=True)
    for rate in bits:
        shutil.rmtree(folder / "family", ignore_errors=True)
        report = trueaxis.compress_family(MODEL, [member], folder / "family", bits_delta=rate, calibration=[train])
        size, found = report.members[name].file_bytes, kl(folder / "family/members" / name, member, test)
        print(f"  member {rate:5g} bits {size:10,} bytes, KL {found:.5f}: {ratio(points, size, found)}", flush=True)
    for label, change in (("signs", signs), ("SVD", low_rank)):
        found = kl(written(member, change, folder / label), member, test)
        print(f"  {label:6}     1 bit per entry of the matrices, KL {found:.5f}", flush=True)
        shutil.rmtree(folder / label)


def ratio(alone: list[tuple[int, float]], size: int, found: float) -> str:
    """How many times the bytes the member takes alone at the same KL."""
    logs = sorted((np.log(kl_), np.log(bytes_)) for bytes_, kl_ in alone)
    if not logs[0][0] <= np.log(found) <= logs[-1][0]:
        return "outside the rates alone"
    return f"{np.exp(np.interp(np.log(found), *zip(*logs, strict=True))) / size:.2f} times as many alone"


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--bits", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--alone", type=float, nargs="+", default=[2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--members", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine before:", *os.getloadavg())
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in options.members:
            train, test = texts(name, folder)
            member = tune(MODEL, train.read_text(encoding="utf-8"), folder / name, options.steps, options.rate)
            measure(name, member, train, test, folder, options.bits, options.alone)


if __name__ == "__main__":
    main()
