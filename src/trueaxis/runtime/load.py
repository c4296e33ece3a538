"""Load, verify, unpack: compressed directories as models, as verdicts, as plain checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueaxis.container import CONFIG, SHARD_BYTES, with_floats
from trueaxis.parallel import default_threads, ordered_map
from trueaxis.processor import torch_device
from trueaxis.progress import quiet_loading
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.members import BASE, MEMBERS, family_directions, family_members, is_family, member_path
from trueaxis.runtime.plain import write_plain
from trueaxis.runtime.resident import Residence, residence_of
from trueaxis.runtime.tangent import open_direction
from trueaxis.staging import check_free, staged_directory
from trueaxis.types import FormatError, TrueaxisError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16")
GENERATION = "generation_config.json"


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    member: str | None = None,
    resident: str = "dense",
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """A transformers model: an ordinary one, or one whose weights stay small in memory.

    Args:
        path: Directory written by `trueaxis.compress`.
        dtype: Of the weights; by default what config.json says, as transformers does it.
        base: Directory of the base, where the file goes beside one and it does not lie next to `path`.
        member: Which one, where `path` is the root of a family.
        resident: In what form weights are kept in memory: "dense"; "compressed", coded and decoded block by block
            whenever the model runs; or "int8", linear layers in 8 bits (docs/runtime.md says what such models can do).
        device: Where the model runs: "cpu", "cuda", "cuda:1". A GPU decodes for itself where Triton is installed.

    Returns:
        The model, in evaluation mode, with its generation settings; `trueaxis.hf` gives the same one.

    Raises:
        FormatError: The file is damaged; the message names the tensor.
        TrueaxisError: There is no such form, or no such device.

    Example:
        >>> model = trueaxis.load("model-3bit")   # doctest: +SKIP
    """
    place = torch_device(device)
    return built(member_path(path, member), residence_of(resident, place), place, dtype, base)


def built(
    path: str | Path,
    residence: Residence,
    place: torch.device,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
) -> PreTrainedModel:
    """As `load`, of one directory, its weights kept in a form of the caller's."""
    decoder = residence.open(Path(path), base, place)
    config, cls = _architecture(decoder)
    wanted = dtype or config.dtype
    state = residence.state(decoder, wanted)
    with quiet_loading():
        # transformers renames and fuses what the checkpoint names otherwise than the running model.
        model, found = cls.from_pretrained(
            None, config=config, state_dict=state, dtype=wanted, output_loading_info=True
        )
    if found["missing_keys"]:
        raise FormatError(f"{min(found['missing_keys'])}: the model needs this tensor, but {path} lacks it")
    model.config.name_or_path = str(path)
    if model.can_generate() and (Path(path) / GENERATION).is_file():
        model.generation_config = type(model.generation_config).from_pretrained(path)
    residence.settle(model, decoder, wanted)
    for module in model.modules():  # the weights are there
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(place)
    return model.eval()


def load_tensor(
    path: str | Path, name: str, dtype: torch.dtype | None = None, base: str | Path | None = None
) -> torch.Tensor:
    """One tensor; of the files no more is read, or downloaded, than header, tables, streams that small tensors share,
    and what this tensor is made of.

    Args:
        path: Directory written by `trueaxis.compress`, or its address: "hf://owner/name" on the Hub, with @revision
            after it or not, or any other that fsspec knows.
        name: Of the tensor, in the original checkpoint.
        dtype: By default that of the original.
        base: As for `load`.

    Raises:
        FormatError: It is damaged, or there is no such directory.
        TrueaxisError: There is no tensor of this name, or the address cannot be read.

    Example:
        >>> trueaxis.load_tensor("hf://me/llama-3bit", "model.norm.weight")   # doctest: +SKIP
    """
    try:
        decoder = Decoder(path, base=base)
        if name not in decoder.names():
            near = get_close_matches(name, decoder.names(), 3)
            raise TrueaxisError(f"{path}: holds no tensor {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
        return decoder.tensor(name, dtype)
    except (ImportError, ValueError, OSError) as error:
        raise TrueaxisError(f"{path}: cannot be read: {error}") from error


def _architecture(decoder: Decoder) -> tuple[Any, Any]:
    """(config without the quantization entry, model class) as transformers knows them, found to fit the tensors."""
    import torch
    import transformers

    file = decoder.container.path / CONFIG
    plain = original_config(decoder.container.config)
    names = plain.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise FormatError(
            f"{file}: architectures {str(names)[:80]} are no models of transformers; 'trueaxis unpack' needs none"
        )
    layers = plain.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(decoder.names()):
        raise FormatError(f"{file}: {layers} layers, but the file holds {len(decoder.names())} tensors")
    try:
        config = transformers.AutoConfig.for_model(plain["model_type"]).__class__.from_dict(with_floats(plain))
        with torch.device("meta"):
            model = cls(config)
    except Exception as error:  # whatever a configuration can break in transformers, the remedy is the same
        raise FormatError(f"{file}: transformers cannot build this model: {error!r}") from error
    _check_fit(decoder, model)
    return config, cls


def _check_fit(decoder: Decoder, model: PreTrainedModel) -> None:
    """Every weight of the model is in the file, in its shape, or may be made of tensors that have other names there."""
    tensors = decoder.container.tensors
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    spare = sum(info.size for name, info in tensors.items() if name not in expected)
    for name, shape in expected.items():
        found = tensors.get(name) or tensors.get(tied.get(name, ""))
        if found is None and tied.get(name) in expected:
            continue
        spare -= math.prod(shape) if found is None else 0
        if spare < 0 or (found is not None and found.shape != shape):
            shown = list(found.shape) if found else "none"
            raise FormatError(f"{name}: config.json says {list(shape)}, the file holds {shown}")


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as it was before compression."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def verify(path: str | Path, base: str | Path | None = None) -> dict[str, Any]:
    """Checks every byte: checksums, hashes, and that every tensor decodes to finite numbers in its own dtype.

    Args:
        path: Directory written by `trueaxis.compress`, or the root of a family, all parts of which are checked.
        base: As for `load`.

    Returns:
        {"tensors": count, "file_bytes": bytes of the rate}

    Raises:
        FormatError: The first thing wrong, by tensor or file.
    """
    if is_family(path):
        alone = [Path(path) / BASE, *family_directions(path)]
        for direction in alone[1:]:
            open_direction(direction)
        found = [verify(part) for part in alone]
        found += [verify(Path(path) / MEMBERS / name, base) for name in family_members(path)]
        return {key: sum(one[key] for one in found) for key in found[0]}
    decoder = Decoder(path, base=base)
    check_bytes(decoder)
    ordered_map(lambda name: decoder.tensor(name).numel(), decoder.names(), default_threads())
    return {"tensors": len(decoder.names()), "file_bytes": decoder.container.file_bytes}


def check_bytes(decoder: Decoder) -> None:
    """Compares every byte of a directory with its checksums and hashes, without decoding.

    Raises:
        FormatError: The first thing wrong, by tensor or file.
    """
    for name in decoder.names():
        decoder.container.records(name)
    decoder.container.check_hashes()


def unpack(
    path: str | Path,
    out: str | Path,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
    base: str | Path | None = None,
    member: str | None = None,
) -> Path:
    """Writes an ordinary checkpoint that needs no trueaxis.

    Args:
        path: Directory written by `trueaxis.compress`.
        out: Directory to create.
        dtype: "float32", "float16" or "bfloat16"; by default that of the original.
        overwrite: Replace `out` if it exists.
        base, member: As for `load`.

    Raises:
        FormatError: `path` is damaged.
        TrueaxisError: `out` is not empty, or the dtype is unknown.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise TrueaxisError(f"dtype {dtype!r} is not one of: {', '.join(DTYPES)}")
    check_free(Path(out), overwrite, [path, *([base] if base else [])])
    path = member_path(path, member)
    decoder = Decoder(path, base=base)
    wanted = getattr(torch, dtype) if dtype else None
    with staged_directory(Path(out), overwrite) as staging:
        write_plain(decoder, staging, wanted, SHARD_BYTES)
        config = original_config(decoder.container.config)
        if dtype:
            config["dtype"] = dtype
            config.pop("torch_dtype", None)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in decoder.container.header["copied"]:
            if (Path(path) / name).is_file():
                shutil.copyfile(Path(path) / name, staging / name)
    return Path(out)
