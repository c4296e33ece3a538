"""Directories on trial, in a new process: load each, evaluate it, let it write.

    python -m trueaxis.demo.trial '{"directories": […], "prompts": […], "reference": …, "tokens": …, "seed": 0}'
        ─▶  a line of JSON for every directory, as it is done

A new process shows that the files suffice: nothing that compressed them is in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trueaxis.types import Evaluation, TrueaxisError

COMPLETION_TOKENS = 72


@dataclass(frozen=True)
class Trial:
    """What the process found for one directory.

    Attributes:
        load_seconds: From the files to a model that can run, imports aside.
        evaluation: On the tokens asked for, against the reference.
        completion: Text sampled after the prompt; empty without a prompt.
    """

    load_seconds: float
    evaluation: Evaluation
    completion: str


def attempt(
    directories: Sequence[Path], prompts: Sequence[str], reference: Path, tokens: Path, seed: int
) -> Iterator[Trial]:
    """Runs the trials of some directories, one after another, in one new Python process; yields each when it is done.

    Args:
        directories: Compressed directories, or the reference itself.
        prompts: Text for each to continue; "" for none.
        reference: Original checkpoint.
        tokens: Evaluation tokens, .npy [sequences, length].
        seed: Of the sampling.

    Raises:
        TrueaxisError: The process failed; the message ends with what it said last.
    """
    request = {
        "directories": list(map(str, directories)), "prompts": list(prompts), "reference": str(reference),
        "tokens": str(tokens), "seed": seed,
    }  # fmt: skip
    command = [sys.executable, "-m", "trueaxis.demo.trial", json.dumps(request)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        for directory in directories:
            line = process.stdout.readline()
            if not line:
                status = process.wait()
                said.seek(0)
                last = (said.read().strip().splitlines() or [f"exit status {status}"])[-1]
                raise TrueaxisError(f"{directory}: cannot be loaded in a new process ({last})")
            answer = json.loads(line)
            yield Trial(**{**answer, "evaluation": Evaluation(**answer["evaluation"])})


def conduct(request: dict[str, Any]) -> Iterator[Trial]:
    """The trials themselves, in this process."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)  # other trials run beside these
    reference = Path(request["reference"])
    AutoModelForCausalLM.from_pretrained(reference)  # whatever must be imported is imported now
    for directory, prompt in zip(map(Path, request["directories"]), request["prompts"], strict=True):
        yield _try(directory, reference, request["tokens"], prompt, request["seed"])


def _try(directory: Path, reference: Path, tokens: str, prompt: str, seed: int) -> Trial:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import trueaxis

    begun = time.perf_counter()
    compressed = directory != reference
    model = trueaxis.load(directory) if compressed else AutoModelForCausalLM.from_pretrained(reference)
    load_seconds = time.perf_counter() - begun
    found = trueaxis.evaluate(directory, tokens=tokens, reference=reference if compressed else None)
    completion = ""
    if prompt:
        torch.manual_seed(seed)
        completion = _continue(model, AutoTokenizer.from_pretrained(directory), prompt)
    return Trial(load_seconds, found, completion)


def _continue(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=COMPLETION_TOKENS)
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    for trial in conduct(json.loads(sys.argv[1])):
        print(json.dumps(asdict(trial)), flush=True)
