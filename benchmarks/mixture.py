"""What correcting drift inside experts is worth: KL at equal file bytes on a mixture that is made of a dense model.

    dense model ─┬─▶ experts of a random half of its channels each ─▶ trained on text it sampled ─▶ mixture
                 └─▶ its calibration and evaluation text ─▶ compress with and without ─▶ KL on the evaluation text

    python benchmarks/mixture.py make BASE OUT [--family mixtral] [--steps 150]
    python benchmarks/mixture.py compare OUT CALIBRATION.npy EVALUATION.npy [--bits 2 3 4] [--tokens 32768]

BASE is a Llama. Ratios are to `as they are` (experts aim at themselves), paired over sequences, with the 95 % interval
of 2,000 resamplings.

References: Komatsuzaki et al. 2023 (a mixture from a dense model), Nakamura et al. 2025 (whose experts differ).
"""

from __future__ import annotations

import argparse
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from model_level import scored, spread, told

from trueaxis.evaluation import load_model
from trueaxis.metric.calibrate import load_tokens
from trueaxis.metric.sample import sample_tokens
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import NAMED
from trueaxis.stages import InTurn, NoDrift

BATCH_TOKENS, RATE, SAMPLED_TOKENS = 2048, 3e-3, 1 << 16
EXPERTS, CHOSEN = 8, 2
FAMILIES: dict[str, tuple[str, str]] = {  # class, keys of the numbers of channels
    "mixtral": ("Mixtral", "intermediate_size"),
    "qwen2_moe": ("Qwen2Moe", "moe_intermediate_size"),
    "qwen3_moe": ("Qwen3Moe", "moe_intermediate_size"),
}


def new_mixture(base: Any, family: str) -> Any:
    """A mixture whose experts are random halves of the channels of a dense model; a shared expert is another half.

    Two experts of weights that add up to 1 put out what the dense model does, on average over the halves: what their
    second matrix holds is doubled.
    """
    name, key = FAMILIES[family]
    half = base.config.intermediate_size // 8 * 4  # products of many experts at once want whole vectors
    told = {
        one: getattr(base.config, one)
        for one in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                    "head_dim", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
                    "rms_norm_eps", "rope_parameters")
    }  # fmt: skip
    told |= {"num_local_experts" if family == "mixtral" else "num_experts": EXPERTS, key: half}
    told |= {"num_experts_per_tok": CHOSEN, "norm_topk_prob": True, "router_aux_loss_coef": 0.01}
    if family == "qwen2_moe":
        told["shared_expert_intermediate_size"] = half
    mixture = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**told))
    mixture.load_state_dict(base.state_dict(), strict=False)
    for dense, sparse in zip(base.model.layers, mixture.model.layers, strict=True):
        matrices = [one.weight.detach() for one in (dense.mlp.gate_proj, dense.mlp.up_proj, dense.mlp.down_proj)]
        for index in range(EXPERTS):
            chosen = torch.randperm(len(matrices[0]))[:half]
            gate, up, down = matrices[0][chosen], matrices[1][chosen], matrices[2][:, chosen]
            sparse.mlp.experts.gate_up_proj.data[index] = torch.cat([gate, up])
            sparse.mlp.experts.down_proj.data[index] = 2 * down
    return mixture


def make(base: Path, out: Path, family: str, steps: int, seed: int) -> None:
    """Writes a mixture in float32, trained on text that the dense model sampled."""
    torch.manual_seed(seed)
    dense = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = sample_tokens(Checkpoint.open(base), 1024, seed=seed, tokens=SAMPLED_TOKENS, threads=1)
    mixture = new_mixture(dense, family).train()
    optimizer = torch.optim.AdamW(mixture.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.95))
    generator, begun, losses = np.random.default_rng(seed), time.monotonic(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        ids = torch.from_numpy(rows[generator.integers(len(rows), size=BATCH_TOKENS // rows.shape[1])].astype(np.int64))
        found = mixture(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(mixture.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found.loss.detach()))
        if step % 20 == 19 or step == 0:
            print(f"{step + 1} steps, {time.monotonic() - begun:.0f} s, {np.mean(losses[-20:]):.3f} nats", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    mixture.save_pretrained(out)


def as_they_are(prepared: Prepared) -> Prepared:
    """Drift corrected everywhere but in experts: calibration does not know what they read."""
    jobs = [
        job if job.weight.pool is None else replace(job, weight=replace(job.weight, pool=None, space=None))
        for job in prepared.jobs
    ]
    return replace(prepared, jobs=jobs)


def compare(model: Path, texts: Sequence[Path], bits: Sequence[float], drift: InTurn, sequences: int) -> None:
    """Prints a line per rate and way.

    Args:
        model: Of experts.
        texts: Tokens for calibration, and for evaluation.
        bits: Rates.
        drift: How it is corrected.
        sequences: Of the evaluation text.
    """
    held_out = spread(load_tokens(texts[1]), sequences)
    checkpoint = Checkpoint.open(model)
    original = load_model(checkpoint)
    with tempfile.TemporaryDirectory() as work:
        for rate in bits:
            target, base = checkpoint.bytes_at(rate), None
            prepared = prepare(
                checkpoint, replace(NAMED["default"], drift=drift), target, [texts[0]],
                model / "statistics.safetensors",
                seed=0, threads=1, device="cpu", progress=silent,
            )  # fmt: skip
            plain = replace(prepared, recipe=replace(prepared.recipe, drift=NoDrift()))
            ways = {"at once": plain, "as they are": as_they_are(prepared), "corrected": prepared}
            for name, one in ways.items():
                begun = time.process_time()
                files = one.fit(target)
                seconds = time.process_time() - begun
                prepared.save(files, Path(work) / "out", overwrite=True, begun=0.0)
                found, perplexity = scored(f"{work}/out", original, held_out)
                base = found if base is None or name == "as they are" else base
                print(
                    f"{rate:g} bits  {name:12} {files.file_bytes:9,} bytes  {told(base, found)}  "
                    f"perplexity {perplexity:.4f}  {seconds:.0f} s",
                    flush=True,
                )


def main() -> None:
    """Prints the machine, the command and a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    acts = parser.add_subparsers(dest="act", required=True)
    making = acts.add_parser("make")
    making.add_argument("base", type=Path)
    making.add_argument("out", type=Path)
    making.add_argument("--family", choices=sorted(FAMILIES), default="mixtral")
    making.add_argument("--steps", type=int, default=150)
    making.add_argument("--seed", type=int, default=0)
    comparing = acts.add_parser("compare")
    comparing.add_argument("model", type=Path)
    comparing.add_argument("texts", type=Path, nargs=2)
    comparing.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    comparing.add_argument("--tokens", type=int, default=InTurn().tokens, help="that both models read")
    comparing.add_argument("--sequences", type=int, default=64)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    torch.set_num_threads(1)
    if options.act == "make":
        make(options.base, options.out, options.family, options.steps, options.seed)
    else:
        compare(options.model, options.texts, options.bits, InTurn(options.tokens), options.sequences)


if __name__ == "__main__":
    main()
