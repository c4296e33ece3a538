"""Seconds to load a compressed model, against transformers loading its bfloat16 original.

    python benchmarks/load.py [--runs 7] [--bits 4]

The model is a Llama of 100 M random weights, made and compressed on the spot (recipe rtn, the quickest). Loads
alternate in one process; the files are in the page cache. `auto` is AutoModelForCausalLM.from_pretrained on the
compressed directory.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import trueaxis
import trueaxis.hf
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace


def make(directory: Path, bits: float) -> int:
    """Writes ORIGINAL and COMPRESSED below a directory; returns the number of parameters."""
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=11,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory / "original")
    statistics_of(Checkpoint.open(directory / "original")).save(directory / "statistics.safetensors")
    report = trueaxis.compress(
        directory / "original",
        directory / "compressed",
        bits=bits,
        recipe="rtn",
        statistics=directory / "statistics.safetensors",
    )
    print(f"{report.parameters:,} parameters, {report.file_bytes:,} bytes, {report.bits_per_param:.3f} bits each")
    return report.parameters


def statistics_of(checkpoint: Checkpoint) -> Statistics:
    """What calibration would have found on white activations: loading does not depend on it."""
    widths = {weight.space: weight.shape[1] for weight in trace(checkpoint) if weight.space is not None}
    return Statistics(
        {space: np.eye(width) for space, width in widths.items()},
        {space: np.zeros(width) for space, width in widths.items()},
        dict.fromkeys(widths, 1),
        np.ones(checkpoint.config["vocab_size"], np.int64),
        checkpoint.fingerprint,
        (),
        np.empty(0, np.uint64),
    )


def main() -> None:
    """Prints the machine, the command, every run, medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--bits", type=float, default=4.0)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), options.bits)
        loaders: dict[str, Callable[[], Any]] = {
            "original": lambda: AutoModelForCausalLM.from_pretrained(Path(work) / "original"),
            "load": lambda: trueaxis.load(Path(work) / "compressed"),
            "auto": lambda: AutoModelForCausalLM.from_pretrained(Path(work) / "compressed"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(options.runs + 1):
            for name, loader in loaders.items():
                started = time.perf_counter()
                loader()
                if number:  # the first round fills caches
                    seconds[name].append(time.perf_counter() - started)
    for name, runs in seconds.items():
        print(f"{name:9} median {statistics.median(runs):7.3f} s   runs " + " ".join(f"{run:.3f}" for run in runs))
    base = statistics.median(seconds["original"])
    print("ratio to the original:", *(f"{name} {statistics.median(runs) / base:.2f}" for name, runs in seconds.items()))


if __name__ == "__main__":
    main()
