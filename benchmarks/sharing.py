"""Sharing: bytes of a family whose members are coded together, with what they share, against each by itself.

    python benchmarks/sharing.py run [--steps 100] [--rate 1e-4] [--bits 0.5 1] [--alone 0.5 1 1.5] [--text 60000]
    python benchmarks/sharing.py apart

The members of `run` are three checkpoints along one fine-tune of the demo model, after half, three quarters and all of
its steps; those of `apart` are fine-tunes on three texts, as in family.py. A family's bytes are those of all its files
but the base; a member's are its own and an equal part of the directions. By themselves, members go into families of
their own, at rates between which bytes are interpolated (logarithm of bytes over logarithm of KL). How alike members
are is the cosine of their differences to the base, over all matrices.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from tuning import tune

import trueaxis
from family import SOURCES, kl, moved_share, ratio, texts
from trueaxis.demo.run import MODEL


def along_a_run(folder: Path, steps: int, rate: float) -> dict[str, Path]:
    """Name of a member ─▶ its directory."""
    train = texts("documents", folder)[0].read_text(encoding="utf-8")
    found = {f"after-{part}": folder / f"after-{part}" for part in (steps // 2, steps * 3 // 4, steps)}
    *earlier, last = found.values()
    tune(MODEL, train, last, steps, rate, earlier=dict(zip((steps // 2, steps * 3 // 4), earlier, strict=True)))
    return found


def on_other_texts(folder: Path, steps: int, rate: float) -> dict[str, Path]:
    """The same of members that share nothing but the base."""
    found = {}
    for name in SOURCES:
        found[name] = tune(MODEL, texts(name, folder)[0].read_text(encoding="utf-8"), folder / name, steps, rate)
    return found


CASES = {"run": along_a_run, "apart": on_other_texts}


def cosine(one: Path, other: Path) -> float:
    """Of the differences of two members to the base."""
    base = load_file(MODEL / "model.safetensors")
    left, right = (load_file(path / "model.safetensors") for path in (one, other))
    names = [name for name, value in base.items() if value.dim() == 2]
    a, b = (
        torch.cat([(found[name].float() - base[name].float()).reshape(-1) for name in names]) for found in (left, right)
    )
    return float(a @ b / (a.norm() * b.norm()))


def measure(
    members: dict[str, Path],
    texts_of: dict[str, tuple[Path, Path]],
    folder: Path,
    bits: list[float],
    alone: list[float],
) -> None:
    """Prints every point of every member, together and by itself."""
    for (one, left), (other, right) in itertools.combinations(members.items(), 2):
        print(f"cosine of {one} and {other}: {cosine(left, right):.3f}", flush=True)
    calibration = list({train.read_text(encoding="utf-8"): train for train, _ in texts_of.values()}.values())
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in members}
    for rate in alone:
        for name, path in members.items():
            shutil.rmtree(folder / "alone", ignore_errors=True)
            report = trueaxis.compress_family(MODEL, [path], folder / "alone", bits_delta=rate, calibration=calibration)
            size, found = report.members[name].file_bytes, kl(folder / "alone/members" / name, path, texts_of[name][1])
            points[name].append((size, found))
            print(f"  by itself {rate:5g} bits {name:12} {size:10,} bytes, KL {found:.5f}", flush=True)
    for rate in bits:
        shutil.rmtree(folder / "together", ignore_errors=True)
        report = trueaxis.compress_family(
            MODEL, list(members.values()), folder / "together", bits_delta=rate, calibration=calibration
        )
        part = sum(report.directions) // len(members)
        total = sum(report.directions) + sum(one.file_bytes for one in report.members.values())
        shown = ", ".join(f"{size:,}" for size in report.directions) or "none"
        print(f"  together  {rate:5g} bits: {total:,} bytes in all, directions {shown}", flush=True)
        for name, path in members.items():
            size, found = (
                report.members[name].file_bytes + part,
                kl(folder / "together/members" / name, path, texts_of[name][1]),
            )
            print(f"            {rate:5g} bits {name:12} {size:10,} bytes, KL {found:.5f}: "
                  f"{ratio(points[name], size, found)}", flush=True)  # fmt: skip


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--bits", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--alone", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--text", type=int, default=60_000, help="characters of training text that calibrate")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine before:", *os.getloadavg())
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        members = CASES[options.case](folder, options.steps, options.rate)
        texts_of = {}
        for name, path in members.items():
            train, test = texts("documents" if options.case == "run" else name, folder)
            short = folder / f"{train.stem}.short.txt"
            short.write_text(train.read_text(encoding="utf-8")[: options.text], encoding="utf-8")
            texts_of[name] = short, test
            print(f"{name}: moved by {moved_share(path):.4f} of the base's norm; KL from member to base "
                  f"{kl(MODEL, path, test):.4f}", flush=True)  # fmt: skip
        measure(members, texts_of, folder, options.bits, options.alone)


if __name__ == "__main__":
    main()
