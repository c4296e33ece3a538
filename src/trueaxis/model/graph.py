"""Which weight reads which space, and where calibration listens to it.

    Checkpoint ─▶ trace ─▶ tuple[Weight, ...]        what each tensor is, whose input metric it shares
               └▶ route ─▶ Route                     the modules whose inputs are these spaces

For a family of families.py the names are spelled out for every block, so a tensor that the table expects and the
checkpoint lacks is found here, not as random values in the model. Any other checkpoint goes through discover.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.discover import HEAD_SPACE, HEADED, Survey, discover, unplaced
from trueaxis.model.experts import expert_tensors, expert_weights, missing_tensors
from trueaxis.model.families import Family, Linear, family_of
from trueaxis.types import CheckpointError, Place, Role, Weight


@dataclass(frozen=True)
class Listeners:
    """Modules to listen to.

    Attributes:
        spaces: Space → module whose input it is.
        experts: Name of the experts of a layer → module that gets tokens, chosen experts and their weights.
    """

    spaces: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """Where calibration listens. Names are those of the class that has a head.

    Attributes:
        blocks: Names of the block modules; none where the model has to run in one piece.
        inside: Per block, what to listen to.
        outside: What to listen to outside the blocks, or everywhere where there are none.
        embedding: Module that looks up tokens, or None.
        head: Module of the head, or None.
    """

    blocks: tuple[str, ...]
    inside: tuple[Listeners, ...]
    outside: Listeners
    embedding: str | None
    head: str | None


def trace(checkpoint: Checkpoint) -> tuple[Weight, ...]:
    """Say what every tensor of a checkpoint is.

    Returns:
        One Weight per matrix or exact tensor, aliases left out, in the order of the forward pass; tensors the
        family's table does not name come last: a matrix among them is "linear" without a space, the rest "exact".

    Raises:
        CheckpointError: A tensor the model needs is missing or no matrix.

    Example:
        >>> [w.space for w in trace(checkpoint) if w.name.endswith("3.mlp.up_proj.weight")]  # doctest: +SKIP
        ['model.layers.3.mlp.in']
    """
    return _survey(checkpoint).weights


def route(checkpoint: Checkpoint) -> Route:
    """Say where calibration listens.

    Raises:
        CheckpointError: As `trace`.
    """
    weights, blocks, head = _survey(checkpoint)
    inside: dict[str, list[Weight]] = {block: [] for block in blocks}
    outside: list[Weight] = []
    for weight in weights:
        if weight.space is not None and weight.place is not None and weight.role == "linear":
            owner = next((block for block in blocks if weight.space.startswith(f"{block}.")), None)
            (outside if owner is None else inside[owner]).append(weight)
    embedding = next((weight for weight in weights if weight.role in ("embedding", "tied")), None)
    return Route(
        blocks,
        tuple(_listeners(members) for members in inside.values()),
        _listeners(outside),
        embedding.place.module if embedding and embedding.place else None,
        head,
    )


def _listeners(weights: Sequence[Weight]) -> Listeners:
    spaces: dict[str, str] = {}
    experts: dict[str, str] = {}
    for weight in weights:
        if weight.pool is not None and weight.place is not None:
            experts.setdefault(weight.pool.rpartition(".")[0], weight.place.module)
        elif weight.space is not None and weight.place is not None:
            spaces.setdefault(weight.space, weight.place.module)
    return Listeners(spaces, experts)


def _survey(checkpoint: Checkpoint) -> Survey:
    family = family_of(checkpoint.config)
    if family is None:
        return discover(checkpoint)
    table = _Table(checkpoint, family)
    weights = {weight.name: weight for weight in table.weights()}
    known = {weight.tensor for weight in weights.values()} | checkpoint.aliases.keys()
    for name, entry in checkpoint.entries.items():
        if name not in known:
            weights[name] = unplaced(name, entry)
    return Survey(tuple(weights.values()), table.blocks, table.running(family.head) if table.headed else None)


class _Table:
    """A family's table spelled out for one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        self._checkpoint, self._family = checkpoint, family
        self._experts = expert_tensors(checkpoint)
        architectures = checkpoint.config.get("architectures") or ["ForCausalLM"]
        self.headed = str(architectures[0]).endswith(HEADED)
        self.blocks = tuple(f"{family.blocks}.{index}" for index in range(self._depth()))

    def running(self, name: str) -> str:
        """What the running model calls it."""
        for stored, runs_as in self._family.renamed:
            name = name.replace(stored, runs_as)
        return name

    def weights(self) -> Iterator[Weight]:
        """Yield every tensor that the table names."""
        family = self._family
        final_norm = self._norm(family.final_norm, self.headed) if family.final_norm else None
        head = self._stored(f"{family.head}.weight") if self.headed else None
        untied = head is not None and head not in self._checkpoint.aliases
        if self.headed and head is None and not self._checkpoint.config.get("tie_word_embeddings", family.tied):
            raise self._missing(f"{family.head}.weight")
        space = HEAD_SPACE if self.headed and not untied else None
        role: Role = "embedding" if space is None else "tied"
        yield self._matrix(Linear(family.embedding, "", None, "residual"), role, space, space and final_norm)
        for module in family.lookups:
            if stored := self._stored(f"{module}.weight"):
                yield replace(self._exact(stored), writes="residual")
        for block in self.blocks:
            yield from self._block(block)
        if final_norm is not None:
            yield self._exact(final_norm)
        for linear in family.outside:
            if self._stored(f"{linear.module}.weight"):
                yield self._matrix(linear, "linear", linear.reads, None)
        if untied:
            yield self._matrix(Linear(family.head, "", None, "logits"), "head", HEAD_SPACE, final_norm)

    def _block(self, block: str) -> Iterator[Weight]:
        family = self._family
        for norm in family.block_norms:
            yield self._exact(self._norm(f"{block}.{norm}", True) or "")
        for linear in family.linears:
            named = replace(linear, module=f"{block}.{linear.module}")
            if linear.needed or self._stored(f"{named.module}.weight"):
                norm = self._norm(f"{block}.{linear.norm}", True) if linear.norm else None
                yield self._matrix(named, "linear", f"{block}.{linear.reads}", norm, family.transposed)
        if family.experts is None:
            return
        module = f"{block}.{family.experts.module}"
        stored = next((name for name in self._candidates(module) if name in self._experts), None)
        tensors = self._experts[stored] if stored else []
        if missing := next(missing_tensors(tensors), None):
            raise self._missing(missing)
        for tensor in tensors:
            yield from expert_weights(
                self._checkpoint, tensor, module, self.running(module),
                norm=self._norm(f"{block}.{family.experts.norm}", True), norm_offset=family.norms.offset,
            )  # fmt: skip

    def _matrix(
        self, linear: Linear, role: Role, space: str | None, norm: str | None, transposed: bool = False
    ) -> Weight:
        stored = self._stored(f"{linear.module}.weight")
        if stored is None:
            raise self._missing(f"{linear.module}.weight")
        entry = self._checkpoint.entries[stored]
        if len(entry.shape) != 2:
            raise CheckpointError(f"{stored}: expected a matrix, found shape {list(entry.shape)}")
        return Weight(
            stored,
            entry.shape[::-1] if transposed else entry.shape,
            entry.dtype,
            role,
            space,
            norm,
            self._family.norms.offset if norm else 0.0,
            transposed=transposed,
            place=Place(f"{self.running(linear.module)}.weight", transposed=transposed),
            writes=linear.writes,
            bias=self._stored(f"{linear.module}.bias"),
        )

    def _exact(self, stored: str) -> Weight:
        entry = self._checkpoint.entries[stored]
        return Weight(stored, entry.shape, entry.dtype, "exact")

    def _norm(self, module: str, needed: bool) -> str | None:
        """Stored name of a norm's weight; the first BERT files call it gamma."""
        stored = self._stored(f"{module}.weight") or self._stored(f"{module}.gamma")
        if stored is None and needed:
            raise self._missing(f"{module}.weight")
        return stored

    def _stored(self, name: str) -> str | None:
        return next((found for found in self._candidates(name) if found in self._checkpoint.entries), None)

    def _candidates(self, name: str) -> tuple[str, ...]:
        """Names a tensor may be stored under: without the prefix in a model without a head, or as it runs."""
        prefix = f"{self._family.prefix}."
        names = (name, self.running(name))
        return (*names, *(found.removeprefix(prefix) for found in names))

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{name}: the model needs this tensor, but {self._checkpoint.path} lacks it")

    def _depth(self) -> int:
        key = self._family.depth
        depth = self._checkpoint.config.get(key)
        if not isinstance(depth, int) or depth < 1:
            raise CheckpointError(
                f"{self._checkpoint.path / 'config.json'}: expected {key} as a positive integer, found {depth!r}"
            )
        return depth
