"""What is there: a checkpoint on disk (checkpoint.py), the families of models (families.py), and which weight reads
which space (graph.py)."""

from trueaxis.model.checkpoint import Checkpoint, Entry, check_finite
from trueaxis.model.graph import Route, route, trace

__all__ = ["Checkpoint", "Entry", "Route", "check_finite", "route", "trace"]
