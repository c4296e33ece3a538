"""Train the model that `trueaxis demo` compresses, on text that every Python installation has.

    standard library's source ─▶ byte-level BPE ─▶ Llama, 2 M parameters ─▶ src/trueaxis/demo/model/
      training split                                 Muon + AdamW             bf16, tokenizer, card

    python tools/train_demo_model.py --minutes 30

The schedule follows the clock, not a number of steps: warm-up, then a cosine that reaches zero when the time is over.
A step is data-parallel over threads with one replica each, and every replica computes on one core: small matrices
leave nothing to share within an operation, and threads that wait for one another at every operation lose
most of a busy machine. `--card` only evaluates a model that is there and writes its card again.

Muon: K. Jordan et al., 2024; its rate is matched to AdamW's as in arXiv:2502.16982.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_card import write_card
from trueaxis.demo.corpus import texts

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "src/trueaxis/demo/model"
END = "<|endoftext|>"
CONTEXT, VOCABULARY = 512, 2048
REPLICAS, SEQUENCES = 2, 4  # a step reads REPLICAS · SEQUENCES · CONTEXT tokens
MUON_RATE, ADAM_RATE, DECAY, WARMUP = 5e-3, 4e-3, 0.1, 0.03
REPORT_SECONDS = 60.0


@dataclass
class Log:
    """What the card tells about the training."""

    seconds: float = 0.0
    core_seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    loss: float = math.nan
    python: str = platform.python_version()


def train_tokenizer(out: Path) -> Tokenizer:
    """Byte-level BPE on the training split, saved as a transformers tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts("training"), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(out)
    return tokenizer


def token_stream(tokenizer: Tokenizer, split: str) -> np.ndarray:
    """All texts of a split, each opened by the end-of-text token: int64 [tokens]."""
    end = tokenizer.token_to_id(END)
    documents = [encoding.ids for encoding in tokenizer.encode_batch(texts(split))]
    return np.array([token for ids in documents for token in (end, *ids)], np.int64)


def batches(stream: np.ndarray, generator: np.random.Generator) -> Iterator[torch.Tensor]:
    """Without end: [REPLICAS, SEQUENCES, CONTEXT + 1] pieces of the stream, cut elsewhere in every epoch."""
    need = REPLICAS * SEQUENCES
    while True:
        start = int(generator.integers(CONTEXT))
        cuts = np.arange(start, len(stream) - CONTEXT - 1, CONTEXT)
        generator.shuffle(cuts)
        for first in range(0, len(cuts) - need + 1, need):
            rows = np.stack([stream[cut : cut + CONTEXT + 1] for cut in cuts[first : first + need]])
            yield torch.from_numpy(rows).view(REPLICAS, SEQUENCES, CONTEXT + 1)


def new_model() -> LlamaForCausalLM:
    """Llama with RMSNorm, RoPE, GQA and SwiGLU; embedding and head are one matrix."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean nats per token of rows [sequences, CONTEXT + 1], products in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def replicate(model: LlamaForCausalLM) -> list[LlamaForCausalLM]:
    """The model and copies that share its weights and have gradients of their own."""
    replicas = [model] + [copy.deepcopy(model) for _ in range(REPLICAS - 1)]
    for replica in replicas[1:]:
        for mine, original in zip(replica.parameters(), model.parameters(), strict=True):
            mine.data = original.data
    return replicas


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between spaces of the network, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(share: float) -> float:
    """Factor of the rates when a share of the time is over."""
    return share / WARMUP if share < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (share - WARMUP) / (1 - WARMUP))


def train(model: LlamaForCausalLM, stream: np.ndarray, held_out: torch.Tensor, minutes: float, out: Path) -> Log:
    """Trains in place until the time is over; saves to `out` on the way.

    Args:
        stream: Tokens of the training split.
        held_out: Rows [sequences, CONTEXT + 1] of the calibration split, to watch only.
    """
    replicas, steppers, log = replicate(model), optimizers(model), Log()
    rates = [(group, group["lr"]) for stepper in steppers for group in stepper.param_groups]
    begun, core_begun, reported, losses = time.monotonic(), time.process_time(), 0.0, []

    def backward(replica: LlamaForCausalLM, rows: torch.Tensor) -> float:
        loss = loss_of(replica, rows)
        (loss / REPLICAS).backward()
        return float(loss.detach())

    with ThreadPoolExecutor(REPLICAS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for rows in batches(stream, np.random.default_rng(0)):
            log.seconds, log.core_seconds = time.monotonic() - begun, time.process_time() - core_begun
            share = log.seconds / (60 * minutes)
            if share >= 1:
                break
            losses += pool.map(backward, replicas, rows)
            for group, rate in rates:
                group["lr"] = rate * schedule(share)
            add_gradients(replicas)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
            for replica in replicas:
                replica.zero_grad()
            log.steps, log.tokens = log.steps + 1, log.tokens + rows[..., 1:].numel()
            if log.seconds - reported > REPORT_SECONDS:
                reported = log.seconds
                log.loss = float(np.mean(losses[-100 * REPLICAS :]))
                with torch.inference_mode():
                    watched = float(loss_of(model, held_out))
                print(json.dumps(asdict(log) | {"held_out": watched}), flush=True)
                save(model, out)
    log.loss = float(np.mean(losses[-100 * REPLICAS :]))
    return log


def add_gradients(replicas: list[LlamaForCausalLM]) -> None:
    """Sums the gradients of all replicas into the first."""
    for first, *others in zip(*(replica.parameters() for replica in replicas), strict=True):
        for other in others:
            first.grad += other.grad


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Writes the weights in bfloat16."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.95, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    half.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    """Trains, saves, evaluates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, by the clock (default 30)")
    parser.add_argument("--out", type=Path, default=MODEL, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", action="store_true", help="train nothing, write the card of the model in --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if options.card:
        tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
        stream = token_stream(tokenizer, "training")
    else:
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.mkdir(parents=True)
        tokenizer = train_tokenizer(options.out)
        stream, other = token_stream(tokenizer, "training"), token_stream(tokenizer, "calibration")
        held_out = torch.from_numpy(other[: 16 * (CONTEXT + 1)]).view(16, -1)
        model = new_model()
        print(f"{len(stream):,} tokens, {model.num_parameters():,} parameters", file=sys.stderr, flush=True)
        log = train(model, stream, held_out, options.minutes, options.out)
        save(model, options.out)
        record = {"minutes": options.minutes, **asdict(log)}
        (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(write_card(options.out, stream, token_stream(tokenizer, "evaluation"), CONTEXT))


if __name__ == "__main__":
    main()
