"""One directory on trial, in a process of its own: load it, evaluate it, let it write.

    python -m trueaxis.demo.trial '{"directory": …, "reference": …, "tokens": …, "prompt": …, "seed": 0}'  ─▶  JSON

A new process shows that the files suffice: nothing that compressed them is in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trueaxis.types import Evaluation, TrueaxisError

COMPLETION_TOKENS = 72


@dataclass(frozen=True)
class Trial:
    """What the process found.

    Attributes:
        load_seconds: From the files to a model that can run, imports aside.
        evaluation: On the tokens asked for, against the reference.
        completion: Text sampled after the prompt; empty without a prompt.
    """

    load_seconds: float
    evaluation: Evaluation
    completion: str


def attempt(directory: Path, reference: Path, tokens: Path, prompt: str, seed: int) -> Trial:
    """Runs the trial of one directory in a new Python process.

    Args:
        directory: Compressed directory, or the reference itself.
        reference: Original checkpoint.
        tokens: Evaluation tokens, .npy [sequences, length].
        prompt: Text to continue; "" for none.
        seed: Of the sampling.

    Raises:
        TrueaxisError: The process failed; the message ends with what it said last.
    """
    request = {"directory": str(directory), "reference": str(reference), "tokens": str(tokens), "prompt": prompt}
    command = [sys.executable, "-m", "trueaxis.demo.trial", json.dumps({**request, "seed": seed})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise TrueaxisError(f"{directory}: cannot be loaded in a new process ({last})")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Trial(**{**answer, "evaluation": Evaluation(**answer["evaluation"])})


def conduct(request: dict[str, Any]) -> Trial:
    """The trial itself, in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import trueaxis

    disable_progress_bar()
    torch.set_num_threads(1)  # other trials run beside this one
    directory, reference = Path(request["directory"]), Path(request["reference"])
    AutoModelForCausalLM.from_pretrained(reference)  # whatever must be imported is imported now
    begun = time.perf_counter()
    compressed = directory != reference
    model = trueaxis.load(directory) if compressed else AutoModelForCausalLM.from_pretrained(reference)
    load_seconds = time.perf_counter() - begun
    found = trueaxis.evaluate(directory, tokens=request["tokens"], reference=reference if compressed else None)
    completion = ""
    if request["prompt"]:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        torch.manual_seed(request["seed"])
        completion = _continue(model, tokenizer, request["prompt"])
    return Trial(load_seconds, found, completion)


def _continue(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=COMPLETION_TOKENS)
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    print(json.dumps(asdict(conduct(json.loads(sys.argv[1])))))
