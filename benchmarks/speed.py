"""Speed of the whole pipeline on a random Llama checkpoint made here: weights per second by stage, peak memory.

    python benchmarks/speed.py [--millions 100] [--bits 3] [--recipes fast default] [--threads N] [--profile] [--whole]

Calibration is timed apart, in tokens per second; compression runs with the statistics it left, which know no gradients
and no text. With --whole every compression starts from the tokens instead, as a user's does: statistics, gradients and
drift are in its time. On a machine that others use, processor time tells more than seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import trueaxis
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.sensitivity import measure_sensitivities
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads

VOCABULARY = 8192
SHARD = "64MB"


def make_checkpoint(path: Path, millions: float) -> None:
    """Llama of about `millions` · 10⁶ parameters, untied, bfloat16, in shards; weights are Student-t, 5 degrees."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = max(128, round((millions * 1e6 / 12 / 8) ** 0.5 / 128) * 128)  # two query heads of 64 per KV head
    blocks = max(1, round((millions * 1e6 - 2 * VOCABULARY * width) / (12.5 * width**2)))
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=blocks,
        num_attention_heads=width // 64, num_key_value_heads=width // 128, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    tails = torch.distributions.StudentT(5.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.02 * tails.sample(parameter.shape) * torch.rand(parameter.shape[1]).add(0.5))
    model.save_pretrained(path, max_shard_size=SHARD)


def random_tokens(count: int) -> np.ndarray:
    """Token ids [sequences, 256]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (max(1, count // 256), 256))


def measure_calibration(model: Path, tokens: int, statistics: Path) -> None:
    """Statistics and sensitivities of random tokens, each timed."""
    from dataclasses import replace

    checkpoint = Checkpoint.open(model)
    weights = trace(checkpoint)
    ids = random_tokens(tokens)
    start = time.perf_counter()
    found = calibrate(checkpoint, ids, seed=0)
    seconds = time.perf_counter() - start
    print(f"calibrate    {ids.size:,} tokens in {seconds:7.1f} s: {ids.size / seconds:12,.0f} tokens/s")
    start = time.perf_counter()
    sensitivities = measure_sensitivities(checkpoint, weights, found, ids[:1], 0)
    seconds = time.perf_counter() - start
    print(f"sensitivity  {len(sensitivities)} matrices in {seconds:7.1f} s, on {ids[:1].size} tokens")
    replace(found, sensitivities=sensitivities).save(statistics)


def measure_compression(
    model: Path, out: Path, known: dict[str, Any], bits: float, recipe: str, threads: int, profile: bool
) -> None:
    """One compression, its stages timed at their progress marks; `known` are its statistics or its text."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    passes = 0

    def mark(stage: str, done: int, _: int) -> None:
        nonlocal passes
        last[stage] = time.perf_counter()
        first.setdefault(stage, last[stage])
        passes += stage == "search"

    start, processor = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        profiler = stack.enter_context(cProfile.Profile()) if profile else None
        report = trueaxis.compress(
            model, out, bits=bits, recipe=recipe, threads=threads, overwrite=True, progress=mark, **known
        )
    end, processor = time.perf_counter(), time.process_time() - processor
    weights = report.parameters
    print(f"{recipe:12} {weights:,} weights to {report.bits_per_param:.4f} bits in {end - start:.1f} s with {threads} "
          f"threads: {weights / (end - start):,.0f} weights/s; {processor:.1f} s of processor time")  # fmt: skip
    at, ends = start, (
        ("measure", last.get("sensitivity", start)), ("open and align", first["prepare"]), ("prepare", last["prepare"]),
        ("pilot", last.get("pilot", last["prepare"])), (f"{passes} passes", last["search"]),
        ("drift", last.get("drift", last["search"])), ("write, verify, report", end),
    )  # fmt: skip
    for stage, until in ends:
        print(f"  {stage:24} {until - at:8.1f} s")
        at = until
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millions", type=float, default=100.0, help="parameters, in millions")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--recipes", nargs="+", default=["fast", "default"])
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--whole", action="store_true", help="every compression measures its statistics itself")
    parser.add_argument("--profile", action="store_true", help="where the main thread spends its time")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine before:", *os.getloadavg())
    with tempfile.TemporaryDirectory() as work:
        model, statistics, text = (Path(work) / name for name in ("model", "statistics.safetensors", "tokens.npy"))
        make_checkpoint(model, options.millions)
        shards = len(list(model.glob("*.safetensors")))
        config = json.loads((model / "config.json").read_text())
        print(f"checkpoint   {shards} shards, width {config['hidden_size']}, {config['num_hidden_layers']} blocks")
        np.save(text, random_tokens(options.tokens))
        if not options.whole:
            measure_calibration(model, options.tokens, statistics)
        known = {"calibration": [text]} if options.whole else {"statistics": statistics}
        out = Path(work) / "out"
        for recipe in options.recipes:
            measure_compression(model, out, known, options.bits, recipe, options.threads, options.profile)
            trueaxis.verify(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory  {peak / 1e9:.2f} GB, making the checkpoint included")


if __name__ == "__main__":
    main()
