"""Outliers, dead zones and uniform quantizers, system by system: what alignment is said to change in the entries.

Everything here reads the table of axes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trueaxis.analyze.alignment import OWN, RANDOM, by_system, gained
from trueaxis.analyze.claim import Claim, Measured

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

RATE = 2  # bits per weight at which dead zones are judged


def rotation_stabilizes(subject: Subject) -> Measured:
    """log₂ of the kurtosis of all entries in the own axes over that in random ones."""
    table = subject.table
    ratio = np.log2(table.halves("kurtosis", OWN) / table.halves("kurtosis", RANDOM))
    figures = ("kurtosis", "max_over_sigma", "beyond_6_sigma", "top_percent_energy", "gini")
    return Measured(ratio, by_system(table, *figures))


def outliers_vanish(subject: Subject) -> Measured:
    """Kurtosis given the scale of the column, own less aligned."""
    table = subject.table
    return Measured(-gained(table, "scaled_kurtosis"), by_system(table, "scaled_kurtosis"))


def curvature_makes_outliers(subject: Subject) -> Measured:
    """Spearman's correlation between H_jj and the kurtosis of column j, in the own axes."""
    table = subject.table
    return Measured(table.halves("curvature_outliers", OWN), by_system(table, "curvature_outliers"))


def dead_zones_appear(subject: Subject) -> Measured:
    """Share of columns under the water level at 2 bits, aligned less own."""
    table = subject.table
    rates = [name for name in table.figures if name.startswith(("dead_columns", "zeros"))]
    return Measured(gained(table, f"dead_columns_{RATE}"), by_system(table, *rates))


def alignment_suits_uniform(subject: Subject) -> Measured:
    """Bits that four uniform levels lose against Lloyd–Max, own less aligned."""
    table = subject.table
    return Measured(-gained(table, "uniform_loss_bits"), by_system(table, "uniform_loss_bits"))


def coded_uniform_suffices(subject: Subject) -> Measured:
    """Bits that a uniform quantizer with an ideal coder loses against Lloyd–Max with one, in aligned axes."""
    table = subject.table
    return Measured(table.halves("coded_uniform_loss_bits", table.aligned), by_system(table, "coded_uniform_loss_bits"))


CLAIMS = (
    Claim("rotation-stabilizes", "outliers", "A random rotation removes outliers.",
          "octaves of kurtosis", 0.25, 0.1, rotation_stabilizes),
    Claim("outliers-vanish", "outliers", "Given the scale of each column, aligned axes have fewer outliers.",
          "kurtosis", 1.0, 0.25, outliers_vanish),
    Claim("curvature-makes-outliers", "outliers", "Inputs of high curvature have columns with outliers.",
          "rank correlation", 0.3, 0.15, curvature_makes_outliers),
    Claim("dead-zones-appear", "dead zones", "At 2 bits aligned axes have columns that need no bits.",
          "share of columns", 0.05, 0.02, dead_zones_appear),
    Claim("alignment-suits-uniform", "uniform quantizers",
          "Without a coder, a uniform quantizer loses less against Lloyd–Max in aligned axes.",
          "bits per weight", 0.02, 0.01, alignment_suits_uniform),
    Claim("coded-uniform-suffices", "uniform quantizers",
          "With a coder, a uniform quantizer in aligned axes loses nothing against Lloyd–Max.",
          "bits per weight", 0.02, 0.05, coded_uniform_suffices),
)  # fmt: skip
