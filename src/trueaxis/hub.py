"""Hub: a compressed directory as a repository of the Hugging Face Hub, with a card that says what it costs and loses.

OUT ─▶ card: real bytes, rate, KL where it was measured, how to load ─▶ README.md
    └▶ every file as it is, shards of at most 5 GB ──────────────────▶ one commit
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trueaxis.container import Container
from trueaxis.inspection import REPORT
from trueaxis.recipe import name_of
from trueaxis.types import Evaluation, TrueaxisError

CARD = "README.md"
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")  # of the original's card


def push_to_hub(
    path: str | Path,
    repository: str,
    *,
    base_model: str | None = None,
    evaluation: Evaluation | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a model compressed by trueaxis",
) -> str:
    """Uploads a compressed directory in one commit; the repository is created if it is not there.

    Args:
        path: Directory written by `trueaxis.compress`.
        repository: "owner/name".
        base_model: Repository of the original, for the card.
        evaluation: Of this directory, by `trueaxis.evaluate`, for the card.
        private: Of a repository that is created.
        token: Of the Hub; by default the one that is logged in.
        message: Of the commit.

    Returns:
        Address of the repository.

    Raises:
        TrueaxisError: `path` is damaged or not compressed, the evaluation is of another model, or the Hub refuses.

    Example:
        >>> trueaxis.push_to_hub("llama-3bit", "me/llama-3bit", base_model="meta-llama/…")   # doctest: +SKIP
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    card = model_card(path, base_model=base_model, evaluation=evaluation, repository=repository)
    container, api = Container(path), HfApi(token=token)
    container.check_hashes()
    files = [
        *container.files,
        *(container.path / name for name in ("config.json", REPORT, *container.header["copied"])),
    ]
    operations = [
        CommitOperationAdd(file.name, str(file)) for file in files if file.is_file() and file.name != CARD
    ]  # a link or a stray file beside them is not uploaded
    operations.append(CommitOperationAdd(CARD, card.encode()))
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, operations, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise TrueaxisError(f"{repository}: the Hub did not take it: {error}") from error
    return str(address)


def model_card(
    path: str | Path,
    *,
    base_model: str | None = None,
    evaluation: Evaluation | None = None,
    repository: str | None = None,
) -> str:
    """README.md for the Hub: figures of the files as they are, and of text only what was measured.

    Args:
        path: Directory written by `trueaxis.compress`.
        base_model: Repository of the original.
        evaluation: Of this directory; by default the one that compression left in trueaxis.json, if any.
        repository: What loading names; by default the directory.

    Raises:
        TrueaxisError: `path` is damaged or no compressed directory, or the evaluation is of another one.
    """
    from huggingface_hub import ModelCardData

    container = Container(path)
    known = None if evaluation is None else evaluation.fingerprint
    if known is not None and known != container.fingerprint:
        raise TrueaxisError(f"{path}: the evaluation is of another compressed model; evaluate this one")
    name = repository or container.path.resolve().name
    tags = {**_original_tags(container.path), "library_name": "trueaxis", "tags": ["trueaxis", "compressed"]}
    data = ModelCardData(base_model=base_model, **tags)
    size, parameters = container.file_bytes, container.header["parameters"]
    rows = [
        ("bytes of the weight files", f"{size:,}"),
        ("parameters of the original", f"{parameters:,}"),
        ("bits per parameter, every byte counted", f"{size * 8 / parameters:.4f}"),
        ("recipe", name_of(container.header["recipe"])),
        ("calibrated on", _calibrated(container.header["calibration"])),
        ("KL(original ‖ compressed) per token", _kl(container.path, evaluation)),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    of = f" of [{base_model}](https://huggingface.co/{base_model})" if base_model else ""
    return f"""---
{data.to_yaml()}
---

# {name.rpartition("/")[2]}

A compressed copy{of}, made by trueaxis. It loads as an ordinary, dense transformers model.

| | |
|---|---|
{table}

```python
import trueaxis.hf
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```
"""


def _original_tags(directory: Path) -> dict[str, Any]:
    """What the original's card says of licence and the like; nothing where it has no card, or none that can be read."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard.load(directory / CARD).data.to_dict()
    except (OSError, ValueError):
        return {}
    return {key: found[key] for key in KEPT if key in found}


def _calibrated(found: dict[str, Any]) -> str:
    tokens = found.get("tokens")
    return f"{tokens:,} tokens ({found.get('source')})" if tokens else "nothing"


def _kl(directory: Path, evaluation: Evaluation | None) -> str:
    found = None if evaluation is None else vars(evaluation)
    if found is None:
        try:
            found = json.loads((directory / REPORT).read_text(encoding="utf-8")).get("evaluation")
        except (OSError, ValueError, AttributeError):
            found = None
    if not isinstance(found, dict) or found.get("kl_nats") is None:
        return "not measured"
    return f"{max(found['kl_nats'], 0.0):.5f} nats, on {found['tokens']:,} tokens"
