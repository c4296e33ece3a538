"""trueaxis compresses trained language models: choose the coordinates, spend bits by rate–distortion, write real bytes.

Example:
    >>> import trueaxis
    >>> report = trueaxis.compress("llama", "llama-3bit", bits=3, calibration=["text.txt"])  # doctest: +SKIP
    >>> model = trueaxis.load("llama-3bit")                                                  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trueaxis.recipe import Recipe
from trueaxis.types import (
    CalibrationError,
    CheckpointError,
    CompressionReport,
    Evaluation,
    FormatError,
    TargetError,
    TensorReport,
    TrueaxisError,
)

if TYPE_CHECKING:
    from trueaxis.analyze.journey import analyze
    from trueaxis.coders import compare_coders
    from trueaxis.comparison.run import ComparisonReport, compare
    from trueaxis.compress import compress
    from trueaxis.evaluation import evaluate
    from trueaxis.export.journey import ExportReport, export
    from trueaxis.family.journey import FamilyReport, compress_family
    from trueaxis.hub import model_card, push_to_hub
    from trueaxis.inspection import inspect
    from trueaxis.lossless.journey import compress_lossless
    from trueaxis.report.page import report
    from trueaxis.runtime.load import load, load_tensor, unpack, verify
    from trueaxis.sweep import sweep

__version__ = version("trueaxis")
__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ComparisonReport",
    "CompressionReport",
    "Evaluation",
    "ExportReport",
    "FamilyReport",
    "FormatError",
    "Recipe",
    "TargetError",
    "TensorReport",
    "TrueaxisError",
    "analyze",
    "compare",
    "compare_coders",
    "compress",
    "compress_family",
    "compress_lossless",
    "evaluate",
    "export",
    "forecast",
    "inspect",
    "load",
    "load_tensor",
    "model_card",
    "push_to_hub",
    "report",
    "sweep",
    "unpack",
    "verify",
]

_HOMES = {
    "analyze": "trueaxis.analyze.journey",
    "ComparisonReport": "trueaxis.comparison.run",
    "compare": "trueaxis.comparison.run",
    "compare_coders": "trueaxis.coders",
    "compress": "trueaxis.compress",
    "compress_family": "trueaxis.family.journey",
    "FamilyReport": "trueaxis.family.journey",
    "compress_lossless": "trueaxis.lossless.journey",
    "evaluate": "trueaxis.evaluation",
    "export": "trueaxis.export.journey",
    "forecast": "trueaxis.forecast",
    "ExportReport": "trueaxis.export.journey",
    "inspect": "trueaxis.inspection",
    "load": "trueaxis.runtime.load",
    "load_tensor": "trueaxis.runtime.load",
    "model_card": "trueaxis.hub",
    "push_to_hub": "trueaxis.hub",
    "report": "trueaxis.report.page",
    "sweep": "trueaxis.sweep",
    "unpack": "trueaxis.runtime.load",
    "verify": "trueaxis.runtime.load",
}


def __getattr__(name: str) -> Any:
    """Imports the heavier entry points (torch, transformers) when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trueaxis' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Keeps `trueaxis.compress` the function when the module or package of that name is imported."""
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)
        elif hasattr(value, name):  # a package does not hold its function; that is looked up when it is asked for
            super().__setattr__(name, getattr(value, name))


sys.modules[__name__].__class__ = _Package
