"""Decoding on a GPU in weights per second, beside copies of the decoded size; and generation by every form of weights.

    python benchmarks/gpu.py [--bits 2 3 4] [--matrices 32] [--size 4096] [--runs 5]
                             [--layers 22] [--tokens 16] [--batches 1 16] [--forms …]

Decoding: Gaussian weights, rows and columns of spread scales, one matrix coded per rate; every matrix of a launch is a
copy of its bytes in memory of its own, and is decoded into memory of its own. `streams` decodes them, `places` puts
every column in its place, `both` is what a loader pays. Share: coded bytes read and decoded bytes written over the
time of `both`, by the bytes per second of a device-to-device copy, read and written.

Generation: a Llama of random weights, made and compressed on the spot (recipe rtn, with both kinds of strips); greedy,
after 32 tokens; the original is what transformers loads. Every form runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_core import spread_matrix
from transformers import AutoModelForCausalLM

import trueaxis
from runtime import make_original
from trueaxis.entropy.model import Tables
from trueaxis.entropy.stream import decode_values, described, pack_residual, parts, unpack_residual
from trueaxis.recipe import with_strips
from trueaxis.stages import CPU_CHAIN, GPU_CHAIN
from trueaxis.types import Array

CHAINS = {"cpu": CPU_CHAIN, "gpu": GPU_CHAIN}
FORMS = ("original", "dense", "int8", "compressed, strips cpu", "compressed, strips gpu")


def timed(work: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of every run on the device after one for warming up."""
    work()
    found = []
    for _ in range(runs):
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        done.record()
        torch.cuda.synchronize()
        found.append(begun.elapsed_time(done))
    return found


def coded(size: int, bits: float) -> tuple[float, Tables, dict[str, bytes]]:
    """A matrix at about `bits`, coded with either kind of strips."""
    quantized, tables = spread_matrix(size, bits)
    payloads = {strips: pack_residual(quantized, tables, 32, chain) for strips, chain in CHAINS.items()}
    return bits, Tables(tables.frequencies, tables.escape_orders, tables.offsets), payloads


def show(label: str, milliseconds: list[float], weights: int) -> float:
    """Prints every run; returns the best rate."""
    best = weights / min(milliseconds) / 1e6
    print(f"  {label:8} {' '.join(f'{one:.3f}' for one in milliseconds)} ms, {best:.1f} G weights/s", flush=True)
    return best


def decoding(tables: Tables, payload: bytes, size: int, matrices: int, runs: int, copied: float) -> None:
    """Times one rate and kind of strips; the first matrix is compared with the CPU's, the others with the first."""
    from trueaxis.runtime.gpu import launch
    from trueaxis.runtime.gpu.plan import Coded, Described, DeviceTables, Plan, Work

    device = torch.device("cuda")
    header = unpack_residual(payload, size, size)
    streams = Coded(list(header.streams) * matrices, device)
    ranges = list(enumerate(parts(size, header.lanes, header.strips_per_stream) * matrices))
    work = [
        Work(span, header.lanes, ((number // len(header.streams), part.start, part.stop - part.start),))
        for (number, part), span in zip(ranges, streams.spans, strict=True)
    ]
    plan = Plan(DeviceTables(tables, device), work, [Described(*described(header, tables))] * matrices, False, device)
    outs = [torch.empty(size, size, dtype=torch.bfloat16, device=device) for _ in range(matrices)]
    scratch, statuses = launch.new_scratch(plan), torch.empty(len(work), dtype=torch.int32, device=device)
    placed = launch.Placed.on(plan, list(enumerate(outs)), False)
    print(f"  {len(work)} streams, {len(payload) * 8 / size**2:.3f} bits, K = {tables.largest_magnitude}")
    weights = matrices * size * size
    decode = partial(launch.decode, plan, streams, scratch, statuses)
    place = partial(launch.place, plan, scratch, placed)
    show("streams", timed(decode, runs), weights)
    show("places", timed(place, runs), weights)
    both = timed(lambda: (decode(), place()), runs)
    show("both", both, weights)
    moved = (streams.size_bytes + 2 * weights) / (min(both) / 1e3)
    print(f"  share    {moved / copied:.1%} of the copy's bytes per second")
    bits = outs[0].cpu().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(bits, decode_values(header, tables, True, 1)) and not statuses.any()
    assert all(torch.equal(one, outs[0]) for one in outs)


def copying(matrices: int, size: int, runs: int) -> float:
    """Times a copy of the decoded size, and of 4 GiB; returns bytes per second of the better one, read and written."""
    best = 0.0
    for label, size_bytes in (("decoded", 2 * matrices * size * size), ("4 GiB", 4 << 30)):
        source = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        found = timed(partial(target.copy_, source), runs)
        rate = 2 * size_bytes / (min(found) / 1e3)
        print(f"copy of {label}: {' '.join(f'{one:.3f}' for one in found)} ms, {rate / 1e12:.3f} TB/s", flush=True)
        best = max(best, rate)
    return best


def make(directory: Path, layers: int, forms: list[str]) -> None:
    """Writes `original`, and `compressed, strips cpu` and `gpu` as forms need them, below a directory."""
    make_original(directory, layers)
    needed = {"cpu"} if "compressed, strips cpu" in forms else set()
    needed |= {"gpu"} if set(forms) - {"original", "compressed, strips cpu"} else set()
    for strips in sorted(needed):
        begun = time.perf_counter()
        report = trueaxis.compress(
            directory / "original", directory / f"compressed, strips {strips}", bits=4,
            recipe=with_strips("rtn", strips), statistics=directory / "statistics.safetensors",
        )  # fmt: skip
        print(
            f"strips {strips}: {report.parameters:,} parameters, {report.file_bytes:,} bytes, "
            f"{time.perf_counter() - begun:.1f} s",
            flush=True,
        )


def open_form(form: str, directory: Path) -> Any:
    """The model in one form, on the GPU."""
    if form == "original":
        model = AutoModelForCausalLM.from_pretrained(directory / "original").eval()
        return model.to("cuda")  # type: ignore[arg-type]
    if form.startswith("compressed"):
        return trueaxis.load(directory / form, resident="compressed", device="cuda")
    return trueaxis.load(directory / "compressed, strips gpu", resident=form, device="cuda")


def measure(form: str, directory: Path, tokens: int, runs: int, batches: list[int]) -> dict[str, Any]:
    """All figures of one form, in this process."""
    seconds = []
    for _ in range(2):  # the first one compiles kernels
        torch.cuda.synchronize()
        begun = time.perf_counter()
        model = open_form(form, directory)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    found: dict[str, Any] = {"load, s": seconds}
    settings: dict[str, Any] = {"do_sample": False, "min_new_tokens": 1, "pad_token_id": 0, "eos_token_id": None}
    for batch in batches:
        ids = torch.arange(32, device="cuda").repeat(batch, 1)
        model.generate(ids, max_new_tokens=2, **settings)
        first, rest = [], []
        for _ in range(runs):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            model.generate(ids, max_new_tokens=1, **settings)
            torch.cuda.synchronize()
            middle = time.perf_counter()
            model.generate(ids, max_new_tokens=1 + tokens, **settings)
            torch.cuda.synchronize()
            first.append(middle - begun)
            rest.append(batch * tokens / max(1e-9, time.perf_counter() - middle - first[-1]))
        found |= {f"first token, s, batch {batch}": first, f"tokens/s, batch {batch}": rest}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        model(torch.arange(32, device="cuda")[None])
    found["MB on the GPU"] = torch.cuda.memory_allocated() // 1_000_000
    found["peak of a pass"] = torch.cuda.max_memory_allocated() // 1_000_000
    return found


def generation(directory: Path, options: argparse.Namespace) -> None:
    """Every form, in a process of its own."""
    make(directory, options.layers, options.forms)
    for form in options.forms:
        command = [sys.executable, __file__, "--form", form, "--directory", str(directory)]
        command += ["--tokens", str(options.tokens), "--runs", str(options.runs)]
        command += ["--batches", *map(str, options.batches)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{form:22} failed: {done.stderr[-2000:]}", flush=True)
            continue
        for key, value in json.loads(done.stdout.splitlines()[-1]).items():
            runs: Array | list[Any] = value if isinstance(value, list) else [value]
            shown = " ".join(f"{run:.3f}" if isinstance(run, float) else str(run) for run in runs)
            print(f"{form:22} {key:26} {shown}", flush=True)


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bits", type=float, nargs="*", default=[2, 3, 4])
    parser.add_argument("--matrices", type=int, default=32)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=22, help="of the model that generates; 0 for none")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS), help="of weights, that generate")
    parser.add_argument("--form", choices=FORMS, help="measure one form of what --directory holds")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.directory, options.tokens, options.runs, options.batches)))
        return
    print("machine:", torch.cuda.get_device_name(), platform.platform(), "torch", torch.__version__)
    print("command:", " ".join(sys.argv))
    if options.bits:
        with ProcessPoolExecutor(len(options.bits)) as pool:
            made = list(pool.map(partial(coded, options.size), options.bits))
        copied = copying(options.matrices, options.size, options.runs)
        for bits, tables, payloads in made:
            for strips, payload in payloads.items():
                print(f"{bits:g} bits asked for, strips {strips}", flush=True)
                decoding(tables, payload, options.size, options.matrices, options.runs, copied)
    if options.layers:
        with tempfile.TemporaryDirectory() as work:
            generation(Path(work), options)


if __name__ == "__main__":
    main()
