"""Adapters: LoRA in the format of PEFT, merged into the base as peft itself does it.

    adapter_config.json, A [r, n], B [m, r] ─▶ W + (alpha / r) · B A, rounded to the dtype of W ─▶ a plain checkpoint

Only what that sum needs is read; an adapter that does more (other weights, biases, DoRA, a rank or alpha per module) is
refused by name. Reference: Hu et al., arXiv:2106.09685.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueaxis.family.matching import write_checkpoint
from trueaxis.model.checkpoint import Checkpoint, read_json
from trueaxis.types import CheckpointError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
UNREAD = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices")


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter instead of a checkpoint."""
    return (path / CONFIG).is_file() and not (path / "config.json").exists()


def dearer_than_adapter(adapter: Path, file_bytes: int) -> list[str]:
    """A note where a member takes more bytes than the adapter it was made of.

    Args:
        adapter: Directory of the adapter.
        file_bytes: Of the member.
    """
    own = (adapter / WEIGHTS).stat().st_size
    if file_bytes <= own:
        return []
    return [
        f"the member takes {file_bytes:,} bytes, {adapter.name} itself {own:,}: at this rate the adapter is the "
        f"smaller file, and exact; ask for fewer bits, or keep the adapter"
    ]


def merged(adapter: Path, base: Path, out: Path) -> Path:
    """Writes the base with an adapter added to it.

    Args:
        adapter: Directory with adapter_config.json and adapter_model.safetensors.
        base: Directory of a plain checkpoint.
        out: Directory that exists; takes the checkpoint.

    Raises:
        CheckpointError: The adapter is of another kind, damaged, or of another base.
    """
    config, checkpoint = read_json(adapter / CONFIG), Checkpoint.open_all(base)
    updates = _updates(adapter, config)
    if strange := sorted(updates.keys() - checkpoint.entries.keys()):
        raise CheckpointError(f"{adapter}: adapts {strange[0]}, which the base {base} lacks")
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.entries if name not in checkpoint.aliases}
    for name, update in updates.items():
        value = tensors.get(name)
        if value is None or update.shape != value.shape:
            found = "a tied tensor" if value is None else list(value.shape)
            raise CheckpointError(f"{name}: adapter {adapter} adds {list(update.shape)} to {found}; is this its base?")
        tensors[name] = (value.float() + update).to(value.dtype)
    return write_checkpoint(checkpoint, tensors, out)


def _updates(adapter: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Name of a weight → what is added to it, float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kind = str(config.get("peft_type")).upper()
    if kind != "LORA" or config.get("bias", "none") != "none" or any(config.get(key) for key in UNREAD):
        more = next((key for key in UNREAD if config.get(key)), "bias")
        what = f"peft_type {kind}" if kind != "LORA" else f"{more} {config.get(more)}"
        raise CheckpointError(f"{adapter / CONFIG}: {what[:120]} is not read; merge the adapter and give the result")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{adapter / CONFIG}: expected numbers r and lora_alpha, found {rank!r} and {alpha!r}")
    try:
        tensors = load_file(adapter / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{adapter / WEIGHTS}: cannot be read ({error}); fetch the file again") from error
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    found: dict[str, torch.Tensor] = {}
    for name, left in tensors.items():
        stem, ending, tail = name.removeprefix(PREFIX).rpartition(".lora_B.")
        other = tensors.get(name.replace(".lora_B.", ".lora_A."))
        if ending and other is not None and tail == "weight" and left.shape[1:] == other.shape[:1]:
            update = scale * (left.float() @ other.float())
            found[f"{stem}.weight"] = update.T if config.get("fan_in_fan_out") else update
    if 2 * len(found) != len(tensors):
        raise CheckpointError(f"{adapter / WEIGHTS}: expected pairs lora_A and lora_B, found other tensors too")
    return found
