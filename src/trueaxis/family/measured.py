"""Measured: a member as it was read, before anything of it is coded.

    member − base ─▶ calibrate ─▶ Measured ─▶ plans beside the base, and the c at which they would fill the target

Members that are measured together show what they share; see directions.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trueaxis.align.network import Network
from trueaxis.family.delta import Delta
from trueaxis.metric.source import obtain_statistics
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.parallel import one_thread
from trueaxis.progress import Progress
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.recipe import Recipe
from trueaxis.runtime.base_model import BaseModel
from trueaxis.types import Weight


@dataclass(frozen=True, eq=False)
class Measured:
    """A member and what calibration says of it.

    Attributes:
        checkpoint: The member itself.
        delta: What it adds to the base.
        weights: Every tensor, exact ones too.
        statistics: Of its calibration text.
        network: Of the differences.
        recipe: What it will be coded by.
        target: Bytes of its file.
    """

    checkpoint: Checkpoint
    delta: Delta
    weights: tuple[Weight, ...]
    statistics: Statistics
    network: Network
    recipe: Recipe
    target: int

    @cached_property
    def plans(self) -> Mapping[str, Plan]:
        """Name of a matrix ─▶ how it would be coded beside the base alone; held for as long as directions are looked
        for."""
        planner = Planner(self.recipe.quantize, self.checkpoint.scratch)
        return {
            weight.name: planner.plan(
                weight, self.delta.matrix(weight).float().contiguous().numpy(), self.network.metric(weight)
            )
            for weight in self.weights
            if weight.role != "exact"
        }

    @cached_property
    def c(self) -> float:
        """Of the steps of these plans that fill the target, by estimate."""
        return first_c(list(self.plans.values()), 8.0 * self.target)

    def moved(self, tensor: str) -> list[Weight]:
        """Matrices of a tensor that is read as a difference; none for others."""
        if tensor not in self.delta.entries or not self.delta.moves(tensor):
            return []
        return [weight for weight in self.weights if weight.tensor == tensor and weight.role != "exact"]


@one_thread()
def measure(
    member: Checkpoint,
    beside: BaseModel,
    recipe: Recipe,
    bits: float,
    calibration: Sequence[str | Path],
    *,
    seed: int,
    threads: int,
    device: str,
    progress: Progress,
) -> Measured:
    """Reads and calibrates a member; arguments as of `compress_family`."""
    weights = trace(member)
    for weight in weights:
        if weight.role == "exact":
            check_finite(weight.name, member.tensor(weight.name))
    statistics = obtain_statistics(member, weights, calibration, None, seed, device, progress)
    delta, target = Delta.beside(member, beside), member.bytes_at(bits)
    network = Network(delta, weights, statistics, 8.0 * target, seed, threads, calibration)
    return Measured(member, delta, weights, statistics, network, recipe, target)
