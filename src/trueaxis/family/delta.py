"""Delta: a fine-tune of a base, read as what it adds to it.

    member's tensor − (base's tensor + Σ θ_j · J_j) (float32) ─▶ what is quantized, in the base's coordinates

Tensors that the base has not, or has in another shape or dtype, are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trueaxis.model.checkpoint import Checkpoint
from trueaxis.runtime.base_model import BaseModel
from trueaxis.runtime.tangent import Directions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Delta(Checkpoint):
    """A checkpoint whose tensors are differences; make one with `Delta.beside`.

    Attributes:
        base: What is subtracted.
        directions: Of the family.
        shares: Name of a tensor ─▶ payload of the record of its shares of them, which are subtracted too.
    """

    base: BaseModel
    directions: Directions
    shares: Mapping[str, bytes]

    @classmethod
    def beside(cls, member: Checkpoint, base: BaseModel) -> Delta:
        """`member` less `base`."""
        return cls(member.path, member.config, member.entries, member.aliases, base, Directions([]), {})

    def less(self, directions: Directions, shares: Mapping[str, bytes]) -> Delta:
        """The same less shares of directions."""
        return replace(self, directions=directions, shares=shares)

    def moves(self, name: str) -> bool:
        """Whether a tensor is read as a difference."""
        entry = self.entries[name]
        return self.base.has(name, tuple(entry.shape), entry.dtype)

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        found = super()._read(name, index)
        if not self.moves(name):
            return found
        theirs = self.base.tensor(name).float()
        if name in self.shares:
            theirs = theirs + self.directions.added(name, tuple(theirs.shape), self.shares[name])
        return found.float() - (theirs if index is None else theirs[index])
