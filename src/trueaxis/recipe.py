"""Every choice of a run: one dataclass per stage and type, to and from JSON.

A recipe names, for each stage, the type that runs there and its numbers:

    {"version": 0, "stages": {"align": {"type": "identity"}, "quantize": {"type": "feedback", "rate_weight": 0.1}}}

A new idea is a new dataclass in `STAGES` and a function with the stage's signature; unknown keys are errors and the
hash of a recipe is stable over Python versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trueaxis.stages import (
    CHOICES,
    CPU_CHAIN,
    GPU_CHAIN,
    RANGES,
    STAGES,
    Coder,
    Feedback,
    Fisher,
    Gains,
    Gauge,
    Gptq,
    GptqUniform,
    Identity,
    InTurn,
    Layerwise,
    Learned,
    LowRank,
    NoDrift,
    NoFunction,
    NoTransform,
    NoTuning,
    Quantizer,
    Rans,
    RansPooled,
    RoundToNearest,
    Selected,
    Structured,
    WaterSic,
    WaterSicCore,
)
from trueaxis.types import TrueaxisError

VERSION = 0


@dataclass(frozen=True)
class Recipe:
    """The stages of one compression.

    Example:
        >>> recipe("rtn").quantize
        RoundToNearest()
        >>> Recipe.from_json(recipe("gptq").to_json()) == recipe("gptq")
        True
    """

    align: Identity | Gauge = field(default_factory=Gauge)
    function: NoFunction | LowRank | Selected = field(default_factory=NoFunction)
    quantize: Quantizer = field(default_factory=Feedback)
    entropy: Coder = field(default_factory=Rans)
    metric: Layerwise | Fisher = field(default_factory=Fisher)
    drift: NoDrift | InTurn = field(default_factory=InTurn)
    tune: NoTuning | Gains = field(default_factory=NoTuning)
    transform: NoTransform | Structured = field(default_factory=NoTransform)

    def __post_init__(self) -> None:
        if isinstance(self.entropy, RansPooled) and isinstance(self.quantize, Feedback):
            raise TrueaxisError(
                "recipe: entropy type rans-pooled does not go with quantize type feedback, which rounds against the "
                "tables of classes; use rans"
            )
        if isinstance(self.transform, Structured) and not isinstance(self.quantize, Feedback):
            raise TrueaxisError(
                "recipe: transform type structured goes with quantize type feedback alone, whose steps it is judged by"
            )
        if isinstance(self.tune, Gains) and isinstance(self.function, Selected):
            raise TrueaxisError(
                "recipe: tune type gains does not go with function type selected: gains would scale f too; use none"
            )

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON types, every number written out."""
        stages = {
            stage: {"type": _type_name(stage, getattr(self, stage)), **asdict(getattr(self, stage))} for stage in STAGES
        }
        return {"version": VERSION, "stages": stages}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_json`; stages left out keep their defaults.

        Raises:
            TrueaxisError: An unknown stage, type or key, or a value of the wrong type.
        """
        _reject_unknown("recipe", document, {"version", "stages"})
        if document.get("version") != VERSION:
            raise TrueaxisError(
                f"recipe: version is {document.get('version')!r}; this trueaxis reads version {VERSION}"
            )
        stages = document.get("stages", {})
        if not isinstance(stages, Mapping):
            raise TrueaxisError("recipe: 'stages' must be an object of stage names")
        _reject_unknown("recipe.stages", stages, set(STAGES))
        return Recipe(**{stage: _parse_stage(stage, value) for stage, value in stages.items()})

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change whenever any choice changes."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


NAMED: dict[str, Recipe] = {
    "identity": Recipe(align=Identity()),
    "rotation": Recipe(align=Gauge("hadamard", "hadamard", "off", "off", "off")),
    "pca": Recipe(align=Gauge("pca-metric", "off", "off", "off", "off")),
    "gauge": Recipe(),
    "at-once": Recipe(drift=NoDrift()),
    "layerwise": Recipe(metric=Layerwise(), quantize=Feedback(row_exponent=0.5), drift=NoDrift()),
    "learned": Recipe(align=Learned()),
    "lowrank": Recipe(align=Identity(), function=LowRank()),
    "selected": Recipe(function=Selected()),
    "structured": Recipe(transform=Structured()),
    "rtn": Recipe(Identity(), quantize=RoundToNearest(), drift=NoDrift()),
    "tuned": Recipe(tune=Gains()),
    "fast": Recipe(Gauge("pca-weights"), quantize=Feedback(effort="fast"), drift=NoDrift()),
    "best": Recipe(quantize=Feedback(effort="best")),
    "gptq": Recipe(Identity(), quantize=Gptq(), drift=NoDrift()),
    "gptq-uniform": Recipe(Identity(), quantize=GptqUniform(), drift=NoDrift()),
    "watersic": Recipe(Identity(), quantize=WaterSic(), entropy=RansPooled()),
    "watersic-classed": Recipe(Identity(), quantize=WaterSic()),
    "watersic-at-once": Recipe(Identity(), quantize=WaterSic(), entropy=RansPooled(), drift=NoDrift()),
    "watersic-core": Recipe(Identity(), quantize=WaterSicCore(), entropy=RansPooled(), drift=NoDrift()),
    "watersic-core-classed": Recipe(Identity(), quantize=WaterSicCore(), drift=NoDrift()),
}
NAMED["default"] = NAMED["gauge"]
COMPARED = ("default", "identity", "rotation", "watersic", "gptq", "rtn")
"""What a comparison shows unless told otherwise."""


def recipe(name_or_path: str | Path | Recipe) -> Recipe:
    """A recipe by name, from a JSON file, or passed through.

    Raises:
        TrueaxisError: Neither a known name nor a file; the message lists the names.
    """
    if isinstance(name_or_path, Recipe):
        return name_or_path
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise TrueaxisError(f"recipe {str(name_or_path)!r} is neither a file nor one of: {', '.join(sorted(NAMED))}")
    try:
        document = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise TrueaxisError(f"{path}: not a JSON recipe: {error}") from error
    if not isinstance(document, dict):
        raise TrueaxisError(f"{path}: a recipe is a JSON object with 'version' and 'stages'")
    return Recipe.from_json(document)


STRIPS = {"cpu": CPU_CHAIN, "gpu": GPU_CHAIN}


def with_strips(chosen: str | Path | Recipe, strips: str) -> Recipe:
    """A recipe with strips chained for the processor that will decode: "cpu", or "gpu", in many short streams.

    Example:
        >>> with_strips("identity", "gpu").entropy.chain
        65536
    """
    if strips not in STRIPS:
        raise TrueaxisError(f"strips {strips!r} are not one of: {', '.join(STRIPS)}")
    found = recipe(chosen)
    return replace(found, entropy=replace(found.entropy, chain=STRIPS[strips]))


def tuned(chosen: str | Path | Recipe) -> Recipe:
    """A recipe with tuning at its end; one that tunes in its own way stays as it is."""
    found = recipe(chosen)
    return replace(found, tune=Gains()) if isinstance(found.tune, NoTuning) else found


def name_of(document: Mapping[str, Any]) -> str:
    """Name of a recipe given as JSON; the types of its stages where it has none.

    Example:
        >>> name_of(NAMED["rtn"].to_json())
        'rtn'
    """
    stages = document.get("stages")
    if not isinstance(stages, Mapping):
        return "unknown"
    try:
        found = Recipe.from_json(document)  # stages that came later keep their defaults
    except TrueaxisError:
        return " · ".join(map(str, stages))
    types = (_type_name(stage, getattr(found, stage)) for stage in STAGES)
    return next((name for name in ("default", *NAMED) if NAMED[name] == found), " · ".join(types))


def _type_name(stage: str, value: object) -> str:
    return next(name for name, kind in STAGES[stage].items() if type(value) is kind)


def _reject_unknown(where: str, document: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(document) - known)
    if unknown:
        raise TrueaxisError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _parse_stage(stage: str, value: Any) -> Any:
    where = f"recipe.stages.{stage}"
    if not isinstance(value, Mapping) or "type" not in value:
        raise TrueaxisError(f"{where}: expected an object with a 'type', one of: {', '.join(STAGES[stage])}")
    if not isinstance(value["type"], str) or value["type"] not in STAGES[stage]:
        raise TrueaxisError(f"{where}: unknown type {value['type']!r}; known: {', '.join(STAGES[stage])}")
    kind = STAGES[stage][value["type"]]
    settings = {key: item for key, item in value.items() if key != "type"}
    defaults = kind()
    _reject_unknown(where, settings, {item.name for item in fields(kind)})
    for key, item in settings.items():
        expected = type(getattr(defaults, key))
        if expected is str and isinstance(item, str):
            continue
        number = isinstance(item, int | float) and not isinstance(item, bool)
        if expected is str or not (number and (expected is float or isinstance(item, int))):
            raise TrueaxisError(f"{where}.{key}: expected {expected.__name__}, found {item!r}")
        settings[key] = expected(item)
    stage_value = replace(defaults, **settings)
    _check_ranges(where, stage_value)
    return stage_value


def _check_ranges(where: str, value: Any) -> None:
    for key, item in asdict(value).items():
        if key in CHOICES:
            if item not in CHOICES[key]:
                raise TrueaxisError(f"{where}.{key}: {item!r} is not one of: {', '.join(CHOICES[key])}")
            continue
        low, high = RANGES[key]
        if not low <= item <= high:
            raise TrueaxisError(f"{where}.{key}: {item} is outside {low} to {high}")
