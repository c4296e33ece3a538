"""The transformers classes that a config.json calls for, and a model of theirs without weights.

config.json ─▶ architecture ─▶ (configuration, class) ─▶ skeleton: every module and shape, no memory
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trueaxis.container import with_floats
from trueaxis.types import CheckpointError, Place

if TYPE_CHECKING:
    from torch import nn


def architecture(config: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """(configuration, model class) as transformers has them; None where it has none.

    Without `architectures` the class is that of the causal language model, or the model without a head.

    Raises:
        CheckpointError: transformers refuses a value of the configuration.
    """
    import transformers

    model_type = str(config.get("model_type"))
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    try:
        known = transformers.AutoConfig.for_model(model_type).__class__.from_dict(with_floats(dict(config)))
    except Exception as error:  # of many kinds, in foreign code
        raise CheckpointError(f"config.json: transformers refuses it ({error}); correct it") from error
    for name in config.get("architectures") or []:
        if found := getattr(transformers, str(name), None):
            return known, found
    if config.get("architectures"):
        return None
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        if type(known) in auto._model_mapping:
            return known, auto._model_mapping[type(known)]
    return None


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a sequence may have at most, as the model was made; None where that is not known."""
    found = architecture(config)
    return (getattr(found[0], "max_position_embeddings", None) or None) if found else None


def skeleton(config: Mapping[str, Any]) -> nn.Module | None:
    """The model on the meta device, to be looked at only; None where transformers cannot build it."""
    return _skeleton(json.dumps(config))


@lru_cache(maxsize=1)
def _skeleton(config: str) -> nn.Module | None:
    import torch

    try:
        found = architecture(json.loads(config))
        if found is None:
            return None
        with torch.device("meta"):
            return found[1](found[0]).eval()
    except Exception:  # a configuration can break in any way in foreign code; names then are all there is
        return None


def submodule(model: Any, name: str) -> nn.Module:
    """A module by the name that the class with a head gives it.

    Raises:
        AttributeError: There is none.
    """
    return model.get_submodule(_own_name(model, name))


def parameter(model: Any, name: str) -> Any:
    """A parameter by the name that the class with a head gives it."""
    return model.get_parameter(_own_name(model, name))


def locate(model: Any, place: Place) -> Any:
    """A matrix of the running model as a view [m, n]: what is added to it is added to the model."""
    return part_of(parameter(model, place.parameter), place)


def part_of(found: Any, place: Place) -> Any:
    """The matrix [m, n] that lies at a place, of its parameter or of that one's gradient."""
    found = found if place.expert is None else found[place.expert]
    found = found.T if place.transposed else found
    index, parts = place.part
    rows = found.shape[0] // parts
    return found[index * rows : (index + 1) * rows]


def _own_name(model: Any, name: str) -> str:
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and not hasattr(model, prefix):
        name = name.removeprefix(f"{prefix}.")
    first, dot, rest = name.partition(".")
    if hasattr(model, first):
        return name
    # Only heads are renamed between releases of transformers: embed_out of GPT-NeoX became lm_head.
    head = model.get_output_embeddings()
    return next((own + dot + rest for own, module in model.named_modules() if module is head), name)
