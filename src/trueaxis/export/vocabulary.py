"""Vocabulary: byte-level BPE of tokenizer.json, as the metadata of a GGUF file has it.

tokenizer.json ─▶ tokens in order of their ids, their types, merges, name of the pre-tokenizer ─▶ Vocabulary, or why not

llama.cpp splits text by rules of its own, which a file names; only tokenizers that split by a rule of that list are
taken over, so that both give the same tokens.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens there
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    Attributes:
        tokens, types: Of every id.
        merges: "left right", in order.
        splitter: What llama.cpp calls the rule that splits text before merges.
        begins: Whether the token that begins a text is put before it.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    splitter: str
    begins: bool


def read_vocabulary(directory: Path, size: int) -> Vocabulary | str:
    """The vocabulary of a checkpoint, or a sentence that says why it has none for llama.cpp.

    Args:
        directory: Of the checkpoint.
        size: Rows of the embedding; ids without a token get one that is marked as unused.
    """
    try:
        document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = document["model"], document["added_tokens"]
        if model["type"] != "BPE" or model.get("byte_fallback"):
            return f"tokenizer.json holds {model['type']} and not byte-level BPE"
        if document.get("normalizer") not in (None, {"type": "NFC"}):
            return f"tokenizer.json changes text by {document['normalizer']['type']} first"
        splitter = _splitter(document["pre_tokenizer"])
        if splitter is None:
            return "tokenizer.json splits text by a rule that is not one of llama.cpp's known here"
        ids: dict[str, int] = {**model["vocab"], **{one["content"]: one["id"] for one in added}}
        kinds = {one["id"]: CONTROL if one["special"] else USER_DEFINED for one in added}
        merges = tuple(one if isinstance(one, str) else " ".join(one) for one in model["merges"])
        begins = _begins(document.get("post_processor"))
    except FileNotFoundError:
        return "the checkpoint has no tokenizer.json"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"tokenizer.json is not readable ({error!r})"
    if max(ids.values(), default=0) >= size:
        return f"tokenizer.json has ids up to {max(ids.values())}, the embedding {size} rows"
    names = {number: token for token, number in ids.items()}
    tokens = tuple(names.get(number, f"[unused{number}]") for number in range(size))
    types = tuple(kinds.get(number, NORMAL if number in names else UNUSED) for number in range(size))
    return Vocabulary(tokens, types, merges, splitter, begins)


def _splitter(found: Mapping[str, Any]) -> str | None:
    """Name of the rule; None where llama.cpp may have none."""
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    if [step["type"] for step in steps] == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if [step["type"] for step in steps] == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        return SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    return None


def _begins(found: Mapping[str, Any] | None) -> bool:
    """Whether a template puts a special token before every text."""
    steps = (found or {}).get("processors", [found or {}])
    return any("SpecialToken" in (step.get("single") or [{}])[0] for step in steps)
