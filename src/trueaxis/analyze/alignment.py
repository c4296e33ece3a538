"""Alignment in bits: what aligned axes save at equal D, by concentration and by predictability, and where they point.

Everything here reads the table of axes.py. Aligned are the axes that need the fewest estimated bits on rows and text
they were not fitted on; where no axes gain, the checkpoint's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trueaxis.analyze.axes import SYSTEMS, Table
from trueaxis.analyze.claim import Claim, Measured
from trueaxis.types import Array

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

OWN, RANDOM = "identity", "random"


def by_system(table: Table, *figures: str) -> dict[str, object]:
    """Details: which axes are aligned, and the figures of every system."""
    found: dict[str, object] = {"aligned": table.aligned}
    for figure in figures:
        found[figure] = {system: float(table.halves(figure, system).mean()) for system in SYSTEMS}
    return found


def gained(table: Table, figure: str) -> Array:
    """Of the aligned axes, less that of the own."""
    return table.halves(figure, table.aligned) - table.halves(figure, OWN)


def saved_bits(subject: Subject) -> Measured:
    """Estimated bits per weight of the own axes less those of the aligned ones, at equal D."""
    return Measured(-gained(subject.table, "estimated_bits"), by_system(subject.table, "estimated_bits"))


def concentration(subject: Subject) -> Measured:
    """AM/GM gain of column energies, aligned less own."""
    return Measured(gained(subject.table, "concentration_bits"), by_system(subject.table, "concentration_bits"))


def predictability(subject: Subject) -> Measured:
    """Bits saved by telling the coder the scale of every row, its price taken off, in aligned axes."""
    table = subject.table
    details = by_system(table, "predictability_bits", "shape_bits")
    return Measured(table.halves("predictability_bits", table.aligned), details)


def follows_tangent(subject: Subject) -> Measured:
    """How far the aligned axes lie in the tangent space of other rows."""
    table = subject.table
    return Measured(
        table.halves("follows_tangent", table.aligned), by_system(table, "follows_tangent", "tangent_degrees")
    )


def follows_low_curvature(subject: Subject) -> Measured:
    """How far the aligned axes lie in the directions of least H of other text."""
    table = subject.table
    details = by_system(table, "follows_low_curvature", "low_curvature_degrees")
    return Measured(table.halves("follows_low_curvature", table.aligned), details)


CLAIMS = (
    Claim("alignment-saves-bits", "alignment", "Aligned axes need fewer bits than the checkpoint's own at equal D.",
          "bits per weight", 0.02, 0.01, saved_bits),
    Claim("alignment-concentrates", "alignment", "Aligned axes gather the weights' energy in fewer columns.",
          "bits per weight", 0.02, 0.01, concentration),
    Claim("scales-predict", "alignment", "The scale of a row tells more about its weights than it costs.",
          "bits per weight", 0.01, 0.0, predictability),
    Claim("axes-follow-tangent", "alignment", "Aligned axes lie in the tangent space of the rows.",
          "0 chance to 1 inside", 0.5, 0.25, follows_tangent),
    Claim("axes-follow-low-curvature", "alignment", "Aligned axes lie along the directions of lowest curvature.",
          "0 chance to 1 inside", 0.5, 0.25, follows_low_curvature),
)  # fmt: skip
