"""Time to first token, tokens per second and memory of every form of weights, and seconds to load, beside the original.

    python benchmarks/runtime.py [--tokens 8] [--runs 3] [--batches 1 16] [--layers 22]

The model is a Llama of random weights, made and compressed on the spot (recipe rtn, the quickest); what it says means
nothing, KL is measured where weights were trained (--kl DIR, any compressed directory). Every form runs in a process of
its own: `own MB` is memory that is its own, `mapped MB` files that it maps (libraries, and the original's weights).
`load` reads files from the page cache; `cold` after they were dropped from it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from load import statistics_of
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import trueaxis
from trueaxis.model.checkpoint import Checkpoint

FORMS = ("original", "dense", "int8", "compressed")


def make_original(directory: Path, layers: int) -> None:
    """Writes a Llama of random weights to `original` below a directory, and statistics for it beside that."""
    config = LlamaConfig(
        vocab_size=16384, hidden_size=1024, intermediate_size=2816, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=16, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory / "original")
    statistics_of(Checkpoint.open(directory / "original")).save(directory / "statistics.safetensors")


def make(directory: Path, layers: int) -> None:
    """Writes `original`, and `compressed`, below a directory."""
    make_original(directory, layers)
    report = trueaxis.compress(
        directory / "original", directory / "compressed", bits=4, recipe="rtn",
        statistics=directory / "statistics.safetensors",
    )  # fmt: skip
    print(f"{report.parameters:,} parameters, {report.file_bytes:,} bytes, {report.bits_per_param:.3f} bits each")


def drop(directory: Path) -> None:
    """Takes the files of a directory out of the page cache."""
    for file in directory.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def memory_mb(key: str) -> int:
    """A line of this process's status, in MB: VmHWM is the peak, RssAnon what is its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1000 for line in lines if line.startswith(key))


def open_form(form: str, directory: Path) -> Any:
    """The model in one form."""
    if form == "original":
        return AutoModelForCausalLM.from_pretrained(directory / "original").eval()
    return trueaxis.load(directory / "compressed", resident=form)


def measure(form: str, directory: Path, tokens: int, runs: int, batches: list[int]) -> dict[str, Any]:
    """All figures of one form, in this process."""
    folder = directory / ("original" if form == "original" else "compressed")
    open_form(form, directory)  # imports
    gc.collect()
    before = memory_mb("RssAnon")
    seconds: dict[str, list[float]] = {"cold": [], "load": []}
    for _ in range(runs):
        for kind in seconds:
            if kind == "cold":
                drop(folder)
            started = time.perf_counter()
            open_form(form, directory)
            seconds[kind].append(time.perf_counter() - started)
            gc.collect()  # models hold themselves in circles
    model = open_form(form, directory)
    found: dict[str, Any] = {"form": form, **seconds}
    for batch in batches:
        ids = torch.arange(32).repeat(batch, 1)
        settings = {"do_sample": False, "min_new_tokens": 1, "pad_token_id": 0, "eos_token_id": None}
        first, rest = [], []
        for _ in range(runs):
            begun = time.perf_counter()
            model.generate(ids, max_new_tokens=1, **settings)
            middle = time.perf_counter()
            model.generate(ids, max_new_tokens=1 + tokens, **settings)
            first.append(middle - begun)
            rest.append(batch * tokens / max(1e-9, time.perf_counter() - middle - first[-1]))
        found |= {f"first token, batch {batch}": first, f"tokens/s, batch {batch}": rest}
    return found | {
        "MB before": before,
        "own MB": memory_mb("RssAnon"),
        "mapped MB": memory_mb("RssFile"),
        "peak MB": memory_mb("VmHWM"),
    }


def divergence(directory: Path) -> float:
    """KL(dense ‖ int8) in nats per token on random token ids."""
    dense, packed = trueaxis.load(directory), trueaxis.load(directory, resident="int8")
    ids = torch.randint(0, dense.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        left, right = (model(ids).logits.double().log_softmax(-1) for model in (dense, packed))
    return float((left.exp() * (left - right)).sum(-1).mean())


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--kl", type=Path, help="also the KL of int8 from dense of this compressed directory")
    parser.add_argument("--form", choices=FORMS, help="measure one form of what --directory holds")
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(measure(options.form, options.directory, options.tokens, options.runs, options.batches)))
        return
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine before:", *os.getloadavg())
    with tempfile.TemporaryDirectory() as work:
        directory = options.directory or Path(work)
        if not options.directory:
            make(directory, options.layers)
        for form in FORMS:
            command = [sys.executable, __file__, "--form", form, "--directory", str(directory)]
            command += ["--tokens", str(options.tokens), "--runs", str(options.runs)]
            command += ["--batches", *map(str, options.batches)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                runs = value if isinstance(value, list) else [value]
                print(f"{form:11} {key:22}", *(f"{run:.3f}" if isinstance(run, float) else run for run in runs))
    if options.kl:
        print(f"KL of int8 from dense, nats per token: {divergence(options.kl):.6f}")


if __name__ == "__main__":
    main()
