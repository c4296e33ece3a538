"""Read a Hugging Face checkpoint directory lazily, by the names its tensors have there.

    directory ─▶ config.json ─▶ headers of the safetensors shards ─▶ Checkpoint ─▶ one tensor at a time

Opening reads headers only. Whatever is missing or damaged is a `CheckpointError` that names the file or the
tensor. Pickled weights are never read, and code in the directory is neither run nor copied.

Reference: https://github.com/huggingface/safetensors (format).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.types import CheckpointError, Weight

if TYPE_CHECKING:
    import torch

WEIGHT_DTYPES = ("F32", "F16", "BF16")
HEAD_NAMES = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")
# What a model computes itself and old checkpoints hold all the same: masks, frequencies, position numbers.
_DERIVED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|(attn|attention)\.(bias|masked_bias))$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|embeddings|shared)\.weight$")
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl")
_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".md")
_READ_BYTES = 1 << 22


class Entry(NamedTuple):
    """Where one tensor lies: its shape, the safetensors name of its dtype, and the shard's file name."""

    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read; make one with `Checkpoint.open`.

    Attributes:
        path: The directory.
        config: config.json as it stands.
        entries: Every stored tensor by name, in shard order, but for masks and the like that the model makes itself.
        aliases: Names that are stored but only repeat another tensor (the head of a tied model), with the name
            they repeat.
        scratch: Where whatever is made of it is held.
    """

    path: Path
    config: Mapping[str, Any]
    entries: Mapping[str, Entry]
    aliases: Mapping[str, str]
    scratch: NoScratch = field(default=NO_SCRATCH, kw_only=True, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, scratch: NoScratch = NO_SCRATCH) -> Checkpoint:
        """Read config.json and the headers of all shards.

        Args:
            path: Directory with config.json and model.safetensors, or shards with their index.
            scratch: Where whatever is made of it is held; in memory by default.

        Raises:
            CheckpointError: Something is missing, damaged, or of a dtype that is not a weight's.

        Example:
            >>> Checkpoint.open("models/pycode-6m").parameters  # doctest: +SKIP
            6524160
        """
        directory, config = _opened(path)
        if "quantization_config" in config:
            raise CheckpointError(
                f"{directory / 'config.json'}: expected an unquantized checkpoint, found a quantization_config; "
                "start from the original weights"
            )
        entries = {name: entry for name, entry in _read_entries(directory).items() if not _is_derived(name, entry)}
        for name, entry in entries.items():
            _check_dtype(name, entry)
        found = cls(directory, config, entries, {}, scratch=scratch)
        found = replace(found, aliases=_find_aliases(found))
        _check_tied(found)
        return found

    @classmethod
    def open_all(cls, path: str | Path, scratch: NoScratch = NO_SCRATCH) -> Checkpoint:
        """The same with every tensor that is stored, whatever its dtype and whether or not a model needs it.

        Raises:
            CheckpointError: Something is missing or damaged.
        """
        found = cls(*_opened(path), _read_entries(Path(path)), {}, scratch=scratch)
        return replace(found, aliases=_find_aliases(found))

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor in its own dtype.

        Raises:
            CheckpointError: The checkpoint has no such tensor, or its shard cannot be read.
        """
        return self._read(name, None)

    def matrix(self, weight: Weight) -> torch.Tensor:
        """Read one matrix as [m, n], y = W x, whatever it is stored as; no more than its slice is read.

        Raises:
            CheckpointError: As for `tensor`.
        """
        found = self._read(weight.tensor, weight.slice)
        return found.T if weight.transposed else found

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        if name not in self.entries:
            raise CheckpointError(f"{name}: no such tensor in {self.path}")
        file = self.path / self.entries[name].file
        try:
            with safe_open(file, framework="pt") as shard:
                return shard.get_tensor(name) if index is None else shard.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{name}: cannot be read from {file} ({error}); fetch the file again") from error

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(math.prod(entry.shape) for name, entry in self.entries.items() if name not in self.aliases)

    def bytes_at(self, bits: float) -> int:
        """Bytes of a file that takes so many bits per parameter."""
        return int(bits * self.parameters / 8)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the configuration and of every byte of every shard: 32 hex digits (BLAKE2b, 16 bytes)."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        for file in self.shards:
            digest.update(f"\0{file}\0{(self.path / file).stat().st_size}\0".encode())
            with open(self.path / file, "rb") as stream:
                while block := stream.read(_READ_BYTES):
                    digest.update(block)
        return digest.hexdigest()

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """File names of the shards, sorted."""
        return tuple(sorted({entry.file for entry in self.entries.values()}))

    def files_to_copy(self) -> tuple[Path, ...]:
        """Files that belong to the checkpoint but hold no weights: tokenizer, generation settings, licence.

        config.json and weight indices are left out (the output writes its own), as are code and pickles.
        """
        return tuple(file for file in sorted(self.path.iterdir()) if file.is_file() and _is_copied(file.name))


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise CheckpointError if a tensor holds NaN or Inf."""
    import torch

    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):  # NaN is both ends
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name}: expected finite values, found {count} NaN or Inf among {tensor.numel()}; repair the checkpoint"
        )


def _is_copied(file_name: str) -> bool:
    if file_name == "config.json" or file_name.endswith(".index.json") or file_name.startswith("."):
        return False
    if Path(file_name).suffix in (".py", *_PICKLE_SUFFIXES):
        return False
    return file_name.endswith(_COPIED_SUFFIXES) or file_name.upper().startswith("LICENSE")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: There is no such file, or something else is in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: expected this file in the checkpoint, found none") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is not readable JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def _opened(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A directory and its configuration."""
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a checkpoint directory, found none; check the path")
    if foreign := _foreign(directory):
        raise CheckpointError(f"{directory}: {foreign}")
    return directory, read_json(directory / "config.json")


def _foreign(directory: Path) -> str:
    """What a directory without config.json holds instead, if it is known; else nothing."""
    if (directory / "config.json").exists():
        return ""
    if (directory / "adapter_config.json").is_file():
        return "is a LoRA adapter; merge it into its base model and compress the result"
    if any(directory.glob("*.gguf")):
        return "holds a GGUF file, which is quantized already; start from the original safetensors checkpoint"
    return ""


def _read_entries(directory: Path) -> dict[str, Entry]:
    if (directory / _SINGLE_FILE).is_file():
        return _read_header(directory / _SINGLE_FILE)
    if not (directory / _INDEX_FILE).is_file():
        raise CheckpointError(_no_weights(directory))
    weight_map = read_json(directory / _INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / _INDEX_FILE}: expected a weight_map from tensor to shard, found none")
    entries: dict[str, Entry] = {}
    for file_name in sorted({str(value) for value in weight_map.values()}):
        if Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
            raise CheckpointError(f"{directory / _INDEX_FILE}: {file_name!r} is not a shard beside the index")
        found = _read_header(directory / file_name)
        expected = {name for name, value in weight_map.items() if value == file_name}
        if missing := sorted(expected - found.keys()):
            raise CheckpointError(
                f"{missing[0]}: the index places it in {file_name}, which lacks it "
                f"({len(missing)} such tensors); fetch index and shards again"
            )
        if unlisted := sorted(found.keys() - expected):
            raise CheckpointError(
                f"{unlisted[0]}: is in {file_name}, but the index does not place it there "
                f"({len(unlisted)} such tensors); fetch index and shards again"
            )
        entries.update(found)
    return entries


def _read_header(file: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CheckpointError(f"{file}: the index names this shard, but it is missing; fetch it")
    try:
        # NumPy is enough to read headers, and keeps opening a checkpoint free of torch.
        with safe_open(file, framework="np") as shard:
            entries = {}
            for name in shard.offset_keys():
                view = shard.get_slice(name)
                entries[name] = Entry(tuple(view.get_shape()), view.get_dtype(), file.name)
            return entries
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is truncated or damaged ({error}); fetch the file again") from error


def _no_weights(directory: Path) -> str:
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return f"{directory}: found only pickled weights ({pickles[0]}), which are not read; convert to safetensors"
    return f"{directory}: expected {_SINGLE_FILE} or {_INDEX_FILE}, found neither"


def _check_dtype(name: str, entry: Entry) -> None:
    if entry.dtype not in WEIGHT_DTYPES:
        raise CheckpointError(
            f"{name}: expected one of {', '.join(WEIGHT_DTYPES)}, found {entry.dtype} in {entry.file}; "
            "start from the unquantized checkpoint, or remove the tensor if the model makes it itself"
        )


def _is_derived(name: str, entry: Entry) -> bool:
    """A bias is a parameter and one-dimensional; a mask is neither."""
    return bool(_DERIVED.search(name)) and not (name.endswith(".bias") and len(entry.shape) == 1)


def _find_aliases(checkpoint: Checkpoint) -> dict[str, str]:
    """Heads and further embeddings that repeat an embedding."""
    embeddings = [name for name in checkpoint.entries if _EMBEDDING.search(name)]
    aliases: dict[str, str] = {}
    for name in [*(name for name in HEAD_NAMES if name in checkpoint.entries), *embeddings[1:]]:
        for embedding in embeddings:
            if embedding != name and embedding not in aliases and _same_bytes(checkpoint, name, embedding):
                aliases[name] = embedding
                break
    return aliases


def _check_tied(checkpoint: Checkpoint) -> None:
    """A head that differs from the embedding contradicts a configuration that ties them."""
    embeddings = [name for name in checkpoint.entries if _EMBEDDING.search(name)]
    if checkpoint.config.get("tie_word_embeddings", False) and embeddings:
        for name in HEAD_NAMES:
            if name in checkpoint.entries and name not in checkpoint.aliases:
                raise CheckpointError(
                    f"{name}: config.json ties it to {embeddings[0]}, but the stored tensors differ; "
                    "set tie_word_embeddings to false or remove the head"
                )


def _same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    import torch

    if checkpoint.entries[one][:2] != checkpoint.entries[other][:2]:
        return False
    first, second = checkpoint.tensor(one), checkpoint.tensor(other)
    # Compared as bytes: NaN equals itself, and −0 is not 0.
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
