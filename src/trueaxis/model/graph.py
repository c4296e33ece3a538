"""Which weight reads which space: one declarative table per family of models.

    Checkpoint ─▶ trace ─▶ tuple[Weight, ...]        what each tensor is, whose input metric it shares
               └▶ route ─▶ Route                     where calibration listens

A *space* is an input shared by several matrices (q, k and v read one; gate and up read one). A family is a table
of modules; the names in it are spelled out for every block, so a tensor that the table expects and the checkpoint
lacks is found here, not as random values in the model. To add a family, add a `Family` to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trueaxis.model.checkpoint import EMBEDDING_NAME, HEAD_NAME, Checkpoint
from trueaxis.types import CheckpointError, Role, Weight

HEAD_SPACE = "head"


@dataclass(frozen=True)
class Reader:
    """One matrix of a block: its module, the space it reads, and the norm that writes that space (or None)."""

    module: str
    space: str
    norm: str | None


@dataclass(frozen=True)
class Family:
    """The names of one model_type. Names inside a block are relative to it.

    Attributes:
        blocks: Module that holds the list of blocks.
        depth: Key of config.json with the number of blocks.
        readers: Matrices of a block; the first reader of a space is the one calibration listens to.
        norms: Normalization modules of a block.
        embedding, final_norm, head: Modules outside the blocks.
    """

    blocks: str
    depth: str
    readers: tuple[Reader, ...]
    norms: tuple[str, ...]
    embedding: str
    final_norm: str
    head: str


@dataclass(frozen=True)
class Route:
    """Where calibration listens, in the order of the forward pass.

    Attributes:
        blocks: Names of the block modules.
        readers: Per block, space → module whose input the space is.
        embedding, final_norm, head: Module names; the output of `final_norm` is the space "head".
    """

    blocks: tuple[str, ...]
    readers: tuple[Mapping[str, str], ...]
    embedding: str
    final_norm: str
    head: str


FAMILIES: dict[str, Family] = {
    "llama": Family(
        blocks="model.layers",
        depth="num_hidden_layers",
        readers=(
            Reader("self_attn.q_proj", "self_attn.in", "input_layernorm"),
            Reader("self_attn.k_proj", "self_attn.in", "input_layernorm"),
            Reader("self_attn.v_proj", "self_attn.in", "input_layernorm"),
            Reader("self_attn.o_proj", "self_attn.out", None),
            Reader("mlp.gate_proj", "mlp.in", "post_attention_layernorm"),
            Reader("mlp.up_proj", "mlp.in", "post_attention_layernorm"),
            Reader("mlp.down_proj", "mlp.hidden", None),
        ),
        norms=("input_layernorm", "post_attention_layernorm"),
        embedding=EMBEDDING_NAME.removesuffix(".weight"),
        final_norm="model.norm",
        head=HEAD_NAME.removesuffix(".weight"),
    ),
}


def trace(checkpoint: Checkpoint) -> tuple[Weight, ...]:
    """Say what every tensor of a checkpoint is.

    Returns:
        One Weight per stored tensor, aliases left out, in the order of the forward pass; tensors the family's
        table does not name come last: a matrix among them is "linear" without a space, the rest "exact".

    Raises:
        CheckpointError: model_type is not supported, or a tensor the model needs is missing or no matrix.

    Example:
        >>> [w.space for w in trace(checkpoint) if w.name.endswith("3.mlp.up_proj.weight")]  # doctest: +SKIP
        ['model.layers.3.mlp.in']
    """
    family, tied = _family(checkpoint), bool(checkpoint.config.get("tie_word_embeddings", False))
    weights: dict[str, Weight] = {}
    for name, role, space, norm in _expected(family, _depth(checkpoint, family), tied):
        if name not in checkpoint.entries:
            raise CheckpointError(f"{name}: the model needs this tensor, but {checkpoint.path} lacks it")
        entry = checkpoint.entries[name]
        if role != "exact" and len(entry.shape) != 2:
            raise CheckpointError(f"{name}: expected a matrix, found shape {list(entry.shape)}")
        weights[name] = Weight(name, entry.shape, entry.dtype, role, space, norm)
    for name, entry in checkpoint.entries.items():
        if name not in weights and name not in checkpoint.aliases:
            weights[name] = Weight(name, entry.shape, entry.dtype, "linear" if len(entry.shape) == 2 else "exact")
    return tuple(weights.values())


def route(checkpoint: Checkpoint) -> Route:
    """Say where calibration listens.

    Raises:
        CheckpointError: model_type is not supported, or the number of blocks is missing.
    """
    family = _family(checkpoint)
    blocks = tuple(f"{family.blocks}.{index}" for index in range(_depth(checkpoint, family)))
    readers = []
    for block in blocks:
        listeners: dict[str, str] = {}
        for reader in family.readers:
            listeners.setdefault(f"{block}.{reader.space}", f"{block}.{reader.module}")
        readers.append(listeners)
    return Route(blocks, tuple(readers), family.embedding, family.final_norm, family.head)


def _family(checkpoint: Checkpoint) -> Family:
    model_type = checkpoint.config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'}: model_type {model_type!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def _depth(checkpoint: Checkpoint, family: Family) -> int:
    depth = checkpoint.config.get(family.depth)
    if not isinstance(depth, int) or depth < 1:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'}: expected {family.depth} as a positive integer, found {depth!r}"
        )
    return depth


def _expected(family: Family, depth: int, tied: bool) -> Iterator[tuple[str, Role, str | None, str | None]]:
    """Yield (name, role, space, norm) of every tensor the model cannot do without."""
    final_norm = f"{family.final_norm}.weight"
    embedding = f"{family.embedding}.weight"
    if tied:
        yield embedding, "tied", HEAD_SPACE, final_norm
    else:
        yield embedding, "embedding", None, None
    for index in range(depth):
        block = f"{family.blocks}.{index}"
        for norm in family.norms:
            yield f"{block}.{norm}.weight", "exact", None, None
        for reader in family.readers:
            norm_name = None if reader.norm is None else f"{block}.{reader.norm}.weight"
            yield f"{block}.{reader.module}.weight", "linear", f"{block}.{reader.space}", norm_name
    yield final_norm, "exact", None, None
    if not tied:
        yield f"{family.head}.weight", "head", HEAD_SPACE, final_norm
