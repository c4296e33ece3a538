"""Load, verify, unpack: compressed directories as models, as verdicts, as plain checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueaxis.progress import hidden_bars
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.plain import write_plain
from trueaxis.staging import staged_directory
from trueaxis.types import FormatError, TrueaxisError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16")
SHARD_BYTES = 5 * 10**9
GENERATION = "generation_config.json"


def load(path: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """An ordinary transformers model with dense weights.

    Args:
        path: Directory written by `trueaxis.compress`.
        dtype: Of the weights; by default what config.json says, as transformers does it.

    Returns:
        The model, in evaluation mode, with its generation settings; `trueaxis.hf` gives the same one.

    Raises:
        FormatError: The file is damaged; the message names the tensor.

    Example:
        >>> model = trueaxis.load("model-3bit")   # doctest: +SKIP
    """
    decoder = Decoder(path)
    config, cls = _architecture(decoder, Path(path))
    wanted = dtype or config.dtype
    state = dict(decoder.tensors(wanted))
    with hidden_bars():
        model = cls.from_pretrained(None, config=config, state_dict=state, dtype=wanted)
    model.config.name_or_path = str(path)
    if model.can_generate() and (Path(path) / GENERATION).is_file():
        model.generation_config = type(model.generation_config).from_pretrained(path)
    return model.eval()


def _architecture(decoder: Decoder, path: Path) -> tuple[Any, Any]:
    """(config without the quantization entry, model class) as transformers knows them."""
    import transformers

    plain = original_config(decoder.container.config)
    names = plain.get("architectures") or []
    cls = getattr(transformers, names[0], None) if names else None
    if cls is None:
        raise FormatError(f"{path / 'config.json'}: architectures {names} are unknown to transformers")
    config_class = transformers.AutoConfig.for_model(plain["model_type"]).__class__
    return config_class.from_dict(plain), cls


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as it was before compression."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def verify(path: str | Path) -> dict[str, Any]:
    """Checks every byte: checksums, hashes, and that every tensor decodes to finite numbers.

    Returns:
        {"tensors": count, "file_bytes": bytes read}

    Raises:
        FormatError: The first thing wrong, by tensor or file.
    """
    import torch

    decoder = Decoder(path)
    for name in decoder.names():
        decoder.container.records(name)
    decoder.container.check_hashes()
    for name, value in decoder.tensors():
        if not bool(torch.isfinite(value).all()):
            raise FormatError(f"{name}: decodes to NaN or Inf")
    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return {"tensors": len(decoder.names()), "file_bytes": size}


def unpack(path: str | Path, out: str | Path, dtype: str | None = None, *, overwrite: bool = False) -> Path:
    """Writes an ordinary checkpoint that needs no trueaxis.

    Args:
        path: Directory written by `trueaxis.compress`.
        out: Directory to create.
        dtype: "float32", "float16" or "bfloat16"; by default that of the original.
        overwrite: Replace `out` if it exists.

    Raises:
        FormatError: `path` is damaged.
        TrueaxisError: `out` is not empty, or the dtype is unknown.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise TrueaxisError(f"dtype {dtype!r} is not one of: {', '.join(DTYPES)}")
    decoder = Decoder(path)
    wanted = getattr(torch, dtype) if dtype else None
    with staged_directory(Path(out), overwrite) as staging:
        write_plain(decoder, staging, wanted, SHARD_BYTES)
        config = original_config(decoder.container.config)
        if dtype:
            config["dtype"] = dtype
            config.pop("torch_dtype", None)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in decoder.container.header.get("copied", []):
            source = Path(path) / Path(str(name)).name
            if source.is_file():
                shutil.copyfile(source, staging / source.name)
    return Path(out)
