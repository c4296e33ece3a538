"""Delta: a fine-tune of a base, read as what it adds to it.

    member's tensor − base's tensor (float32) ─▶ what is quantized, in the base's coordinates

Tensors that the base has not, or has in another shape or dtype, are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trueaxis.model.checkpoint import Checkpoint
from trueaxis.runtime.base_model import BaseModel

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Delta(Checkpoint):
    """A checkpoint whose tensors are differences; make one with `Delta.beside`.

    Attributes:
        base: What is subtracted.
    """

    base: BaseModel

    @classmethod
    def beside(cls, member: Checkpoint, base: BaseModel) -> Delta:
        """`member` less `base`."""
        return cls(member.path, member.config, member.entries, member.aliases, base)

    def moves(self, name: str) -> bool:
        """Whether a tensor is read as a difference."""
        entry = self.entries[name]
        return self.base.has(name, tuple(entry.shape), entry.dtype)

    def _read(self, name: str, index: int | None) -> torch.Tensor:
        found = super()._read(name, index)
        if not self.moves(name):
            return found
        theirs = self.base.tensor(name)
        return found.float() - (theirs if index is None else theirs[index]).float()
