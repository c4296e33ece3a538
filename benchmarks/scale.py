"""A random Llama of any size compressed under a limit on memory that the system enforces: time and peak by stage.

    python benchmarks/scale.py [--millions 1000] [--limit 8GB] [--bits 3] [--tokens 8192] [--log FILE] …

    checkpoint in shards, made one at a time ─▶ compress in a process under RLIMIT_DATA ─▶ verify ─▶ one row per stage

The limit counts everything that cannot be dropped and read again: heap and private pages, not files that are mapped.
Resident memory is sampled five times a second, of both kinds. `--folder` is for a disk with room. With `--resume` what
was made there stays, and the same command goes on where it was stopped; stages then are those since the last start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.arguments import parse_size
from trueaxis.model.checkpoint import Checkpoint

VOCABULARY = 8192
INDEX = "model.safetensors.index.json"  # written last
SAMPLE_SECONDS = 0.2


def shape_of(millions: float) -> tuple[int, int]:
    """Width and number of blocks."""
    width = max(128, round((millions * 1e6 / 170) ** 0.5 / 128) * 128)  # two query heads of 64 per KV head
    return width, max(1, round((millions * 1e6 - 2 * VOCABULARY * width) / (11 * width**2)))


def make_checkpoint(path: Path, millions: float) -> None:
    """Llama of about `millions` · 10⁶ parameters in bfloat16, a shard per block; weights are Student-t, 5 degrees."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    width, blocks = shape_of(millions)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=round(width * 8 / 3 / 128) * 128,
        num_hidden_layers=blocks, num_attention_heads=width // 64, num_key_value_heads=width // 128,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0, architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(path)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    torch.manual_seed(0)
    tails, index = torch.distributions.StudentT(5.0), {}
    for group in sorted({_shard(name) for name in shapes}):
        shard = {}
        for name, shape in shapes.items():
            if _shard(name) == group:
                drawn = (
                    torch.ones(shape) if len(shape) == 1 else 0.02 * tails.sample(shape) * (0.5 + torch.rand(shape[1]))
                )
                shard[name], index[name] = drawn.to(torch.bfloat16), group
        save_file(shard, path / group, metadata={"format": "pt"})
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shard(name: str) -> str:
    parts = name.split(".")
    return f"model-{int(parts[2]) + 1 if parts[1] == 'layers' else 0:05d}.safetensors"


class Sampler(threading.Thread):
    """Most memory of each stage: resident, of its own and of files that are mapped, and what the limit counts."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.stage, self.begun, self._log = "start", time.perf_counter(), log.open("a", buffering=1)
        self.rows: dict[str, dict[str, float]] = {}

    def enter(self, stage: str) -> None:
        """A stage reports progress: what was since the last report belongs to it."""
        self.sample(stage)

    def run(self) -> None:
        while True:
            self.sample(self.stage)
            time.sleep(SAMPLE_SECONDS)

    def sample(self, stage: str) -> None:
        """Notes what is resident now."""
        self.stage = stage
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now = {key: int(status[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "VmData")}
        seconds = time.perf_counter() - self.begun
        row = self.rows.setdefault(stage, {"from": seconds})
        row |= {"to": seconds} | {key: max(row.get(key, 0), value) for key, value in now.items()}
        print(f"{seconds:.1f}", stage, *now.values(), sep="\t", file=self._log)


def compress_limited(model: Path, out: Path, tokens: Path, options: argparse.Namespace) -> None:
    """In a process of its own: prints one JSON object."""
    import torch  # libraries are loaded before the limit counts
    import transformers

    import trueaxis

    del torch, transformers
    resource.setrlimit(resource.RLIMIT_DATA, (options.limit, options.limit))
    sampler = Sampler(Path(options.log))
    sampler.start()
    report = trueaxis.compress(
        model, out, bits=options.bits, recipe=options.recipe, calibration=[tokens], threads=options.threads,
        memory=options.limit, resume=options.resume, progress=lambda stage, _done, _total: sampler.enter(stage),
    )  # fmt: skip
    sampler.enter("write, verify, report")
    trueaxis.verify(out)
    sampler.enter("verify again")
    found: dict[str, Any] = {"stages": sampler.rows, "bits": report.bits_per_param}
    found["seconds"] = time.perf_counter() - sampler.begun
    print(json.dumps({**found, "processor_seconds": time.process_time()}))


def main() -> None:
    """Prints the machine, the command and every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millions", type=float, default=1000.0, help="parameters, in millions")
    parser.add_argument("--limit", type=parse_size, default=8 * 10**9, help="of memory: 8GB")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--resume", action="store_true", help="work in --folder itself, and go on from what is there")
    parser.add_argument("--log", default=os.devnull, help="a line per sample: seconds, stage, own, mapped, counted")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        model, out, tokens = map(Path, options.inside)
        compress_limited(model, out, tokens, options)
        return
    if options.resume and options.folder is None:
        parser.error("--resume needs --folder")
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine before:", *os.getloadavg(), flush=True)
    work = nullcontext(options.folder) if options.resume else tempfile.TemporaryDirectory(dir=options.folder)
    with work as folder:
        model, out, tokens = (Path(folder) / name for name in ("model", "out", "tokens.npy"))
        if not (model / INDEX).exists():
            make_checkpoint(model, options.millions)
        checkpoint = Checkpoint.open(model)
        if (checkpoint.config["hidden_size"], checkpoint.config["num_hidden_layers"]) != shape_of(options.millions):
            sys.exit(f"{model}: was made for another number of parameters; give the same --millions, or another folder")
        print(f"checkpoint: {checkpoint.parameters:,} parameters, limit {options.limit / 1e9:g} GB", flush=True)
        np.save(tokens, np.random.default_rng(0).integers(0, VOCABULARY, (max(1, options.tokens // 256), 256)))
        inside = [sys.executable, *sys.argv, "--inside", str(model), str(out), str(tokens)]
        done = subprocess.run(inside, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"failed under the limit:\n{done.stderr[-4000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
    for stage, row in found["stages"].items():
        kinds = (("VmData", "under the limit"), ("RssAnon", "resident, own"), ("RssFile", "resident, mapped"))
        sizes = ", ".join(f"{row[key] / 1e9:.2f} GB {kind}" for key, kind in kinds)
        print(f"  {stage:24} {row['to'] - row['from']:8.1f} s   {sizes}")
    print(f"{found['bits']:.4f} bits in {found['seconds']:.0f} s, {found['processor_seconds']:.0f} s of processor time")


if __name__ == "__main__":
    main()
