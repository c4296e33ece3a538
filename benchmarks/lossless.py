"""Lossless compression: size against zipnn on the same files, size beside a base, speed of decoding.

    python benchmarks/lossless.py [MODEL ...] [--runs 5]

Models are taken as they are and as copies in bfloat16, float16 and float32 (a copy in a wider dtype has zeros at the
end of every entry); without any, the demo model. Every compression decodes and compares all bits before it ends.
`zipnn` runs where `make bench-peers` installed it, tensor by tensor as here. The base is the demo model, and beside it
go fine-tunes of it on this repository's documents, made on the spot. Speeds are of processor time on one thread: of the
record's bytes to the tensor, and of the file to the tensor with its checksum.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tuning import tune

import trueaxis
from trueaxis import _core
from trueaxis.comparison.peer import PeerError, find_peers, python_of, run_peer
from trueaxis.demo.run import MODEL
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.planes import unpack_planes

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
RATES = ((2e-5, 100), (2e-4, 100))  # learning rate, steps
SIDE = 4096  # of the matrix that is timed
ZIPNN = """
import sys, time
from zipnn import ZipNN
data = bytearray(open(sys.argv[1], "rb").read())
zipper = ZipNN(bytearray_dtype=sys.argv[2], input_format="byte", threads=1)
coded = zipper.compress(bytearray(data))
for _ in range(int(sys.argv[3])):
    begun = time.process_time()
    found = zipper.decompress(coded)
    print(len(data) / (time.process_time() - begun) / 1e9)
assert bytes(found) == bytes(data)
"""


def copies(model: Path, folder: Path) -> list[tuple[str, Path]]:
    """(name, directory) of a model as it is and in other dtypes."""
    found = [(model.name, model)]
    for dtype in DTYPES:
        tensors: dict[str, torch.Tensor] = {}
        for file in model.glob("*.safetensors"):
            tensors |= load_file(file)
        if all(value.dtype == dtype for value in tensors.values()):
            continue
        name = str(dtype).removeprefix("torch.")
        path = folder / f"{model.name}-{name}"
        path.mkdir()
        save_file({key: value.to(dtype) for key, value in tensors.items()}, path / "model.safetensors")
        shutil.copyfile(model / "config.json", path / "config.json")
        found.append((path.name, path))
    return found


def tensor_bytes(checkpoint: Checkpoint) -> int:
    """Of all tensors, tied ones once."""
    return sum(checkpoint.tensor(name).nbytes for name in checkpoint.entries if name not in checkpoint.aliases)


def compare_sizes(name: str, model: Path, folder: Path) -> None:
    """Prints a row."""
    checkpoint = Checkpoint.open_all(model)
    dtypes = sorted({entry.dtype for entry in checkpoint.entries.values()})
    whole = tensor_bytes(checkpoint)
    report = trueaxis.compress_lossless(model, folder / "out", overwrite=True)
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        size = run_peer(find_peers(["zipnn"])[0], "lossless", Checkpoint.open(model), work).file_bytes
        peer = f"{size:12,} {size / whole:7.4f}"
    except PeerError as error:
        peer = str(error)
    print(f"{name:28} {'+'.join(dtypes):5} {whole:12,} {report.file_bytes:12,} {report.file_bytes / whole:7.4f} {peer}")


def compare_with_base(folder: Path) -> None:
    """Prints a row per fine-tune."""
    documents = Path(__file__).parents[1].glob("docs/*.md")
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(documents))
    for rate, steps in RATES:
        model = tune(MODEL, text, folder / f"tuned-{rate:g}", steps, rate)
        whole = tensor_bytes(Checkpoint.open_all(model))
        alone = trueaxis.compress_lossless(model, folder / "alone", overwrite=True).file_bytes
        beside = trueaxis.compress_lossless(model, folder / "beside", base=MODEL, overwrite=True).file_bytes
        print(f"rate {rate:g}, {steps} steps: {whole:,} bytes, alone {alone / whole:.4f}, beside {beside / whole:.4f}")


def speeds(work: Callable[[], int], runs: int) -> list[float]:
    """GB/s of processor time, a run each."""
    work()
    found = []
    for _ in range(runs):
        begun = time.process_time()
        size = work()
        found.append(size / (time.process_time() - begun) / 1e9)
    return found


def show(name: str, found: list[float]) -> None:
    """Prints the median and every run."""
    print(f"{name:44} {np.median(found):6.2f} GB/s   runs " + " ".join(f"{one:.2f}" for one in found))


def time_decoding(dtype: torch.dtype, folder: Path, runs: int) -> None:
    """A matrix whose rows and columns differ in scale, on every instruction set, and with zipnn."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.exp(0.3 * torch.randn(SIDE, 1, generator=generator) + 0.3 * torch.randn(SIDE, generator=generator))
    weight = (0.02 * scales * torch.randn(SIDE, SIDE, generator=generator)).to(dtype)
    name, model, out = str(dtype).removeprefix("torch."), folder / "matrix", folder / "coded"
    model.mkdir(exist_ok=True)
    save_file({"weight": weight}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    size = trueaxis.compress_lossless(model, out, overwrite=True, threads=1).file_bytes
    print(f"\n[{SIDE}, {SIDE}] {name}: {size / weight.nbytes:.4f} of its size")
    payload, count, width = Decoder(out).container.records("weight")[-1].payload, weight.numel(), weight.itemsize
    for instructions in _core.instruction_sets():
        _core.use_instruction_set(instructions)
        show(f"record to tensor, {instructions}", speeds(lambda: unpack_planes(payload, count, width).nbytes, runs))
        show(f"file to tensor, {instructions}", speeds(lambda: Decoder(out, 1).tensor("weight").nbytes, runs))
    plain = folder / "plain.bin"
    plain.write_bytes(weight.view(torch.uint8).numpy().tobytes())
    python = python_of(find_peers(["zipnn"])[0])
    told = subprocess.run([python, "-c", ZIPNN, plain, name, str(runs)], capture_output=True, text=True, check=False)
    if told.returncode == 0:
        show("zipnn, memory to memory", [float(line) for line in told.stdout.split()])


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[MODEL], metavar="MODEL")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        print(f"{'model':28} {'dtype':5} {'bytes':>12} {'trueaxis':>12} {'':7} {'zipnn':>12}")
        for model in options.models:
            for name, path in copies(model.resolve(), folder):
                compare_sizes(name, path, folder)
        print("\nbeside the demo model, its fine-tunes:")
        compare_with_base(folder)
        for dtype in DTYPES:
            time_decoding(dtype, folder, options.runs)


if __name__ == "__main__":
    main()
