"""Forecast: what a compression would take, in memory, disk and time, without making or writing anything of it.

checkpoint's headers, tokens, recipe ─▶ workload ─┐
a few matrices timed on this machine ─▶ units ────┴─▶ Forecast
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueaxis.divergence import ASSUMED_BITS
from trueaxis.metric.calibrate import minimum_tokens
from trueaxis.metric.source import read_tokens, text_length
from trueaxis.model.architecture import architecture
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route, trace
from trueaxis.parallel import default_threads
from trueaxis.recipe import Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.scratch import SHARE, available_memory
from trueaxis.units import measure_units
from trueaxis.workload import STAGES, Extent, extent_of, holding_of, side_by_side, spread, work_of

SHAPES = 3  # of matrices that are timed
HEADER_BYTES = 700  # of a small file: tables, facts, names packed, safetensors header
LIBRARIES_BYTES = 470_000_000  # where the system does not tell
SIDE_BITS = 7.0  # per row and per column of a trained matrix: 6.2 and 8.4 on two models; random ones take half


@dataclass(frozen=True)
class Forecast:
    """What a compression would take.

    Attributes:
        memory_bytes: Most memory at one time.
        scratch_bytes: Most that lies in files beside the output meanwhile.
        output_bytes: Of the output; for a largest divergence, at a rate that most models need.
        smallest_bytes: Smallest size that can be asked for.
        seconds: From beginning to end.
        stage_seconds: The same by stage.
        tokens: Of calibration text.
    """

    memory_bytes: int
    scratch_bytes: int
    output_bytes: int
    smallest_bytes: int
    seconds: float
    stage_seconds: dict[str, float]
    tokens: int

    @property
    def text(self) -> str:
        """The same in three lines."""
        stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self.stage_seconds.items())
        return (
            f"memory {self.memory_bytes / 1e9:.2f} GB; disk {self.output_bytes / 1e9:.3f} GB, and "
            f"{self.scratch_bytes / 1e9:.2f} GB meanwhile\n"
            f"about {self.seconds:.0f} s on {self.tokens:,} tokens: {stages}\n"
            f"smallest size that can be asked for: about {self.smallest_bytes:,} bytes"
        )


def forecast(
    model: str | Path,
    *,
    bits: float | None = None,
    size: int | None = None,
    calibration: Sequence[str | Path] = (),
    recipe: str | Path | Recipe = "default",
    threads: int | None = None,
    memory: int | None = None,
) -> Forecast:
    """Predicts what `compress` would take; nothing is written, and of the weights the headers alone are read.

    Args:
        model: Directory of a Hugging Face checkpoint.
        bits, size: Target; without either, about what most models need for a largest divergence.
        calibration, recipe, threads, memory: As in `compress`.

    Returns:
        A Forecast. Memory and sizes are good to a quarter or so. So is the time in all, as long as nothing else runs;
        preparation of small models takes longer than is said, since every step has its cost.

    Raises:
        TrueaxisError: Bad input, by name.

    Example:
        >>> trueaxis.forecast("llama", bits=3).smallest_bytes   # doctest: +SKIP
        9650321
    """
    chosen, checkpoint = find_recipe(recipe), Checkpoint.open(model)
    weights, workers = trace(checkpoint), threads or default_threads()
    extent = extent_of(weights, len(route(checkpoint).blocks), _heads(checkpoint.config))
    read = read_tokens(checkpoint.path, calibration)
    tokens = sum(ids.size for ids in read) or minimum_tokens(weights)
    length = max((ids.shape[1] for ids in read), default=text_length(checkpoint.path))
    target = size if size is not None else checkpoint.bytes_at(ASSUMED_BITS if bits is None else bits)
    units = measure_units(spread(extent, SHAPES), extent.vocabulary, chosen)
    most = side_by_side(extent, tokens)
    seconds = {
        stage: units.seconds(work) / min(workers, most[stage])
        for stage, work in work_of(extent, chosen, tokens, length).items()
    }
    share = (available_memory() if memory is None else memory) * SHARE
    stages = holding_of(extent, chosen, tokens, workers, target).values()
    used = max(min(stage.held, share) + stage.worked for stage in stages)
    return Forecast(
        memory_bytes=round(_own_memory(checkpoint.config) + used),
        scratch_bytes=round(max(max(stage.held - share, 0.0) for stage in stages)),
        output_bytes=target,
        smallest_bytes=smallest_bytes(extent),
        seconds=sum(seconds.values()),
        stage_seconds={stage: seconds[stage] for stage in STAGES if stage in seconds},
        tokens=tokens,
    )


def smallest_bytes(extent: Extent) -> int:
    """About the size at which every quantized weight is zero: a header, codes of rows and columns, exact tensors as
    alignment leaves them, which is next to nothing.

    Args:
        extent: Of the model.
    """
    return round(HEADER_BYTES + sum((one.m + one.n) * one.count for one in extent.matrices) * SIDE_BITS / 8)


def _heads(config: Mapping[str, Any]) -> int:
    """Key-value heads of a block, as far as the configuration says."""
    found = config.get("num_key_value_heads") or config.get("num_attention_heads")
    return found if isinstance(found, int) else 0


def _own_memory(config: Mapping[str, Any]) -> int:
    """Bytes that this process takes with its libraries; a run loads those of the model's family too."""
    architecture(config)
    status = Path("/proc/self/status")
    if not status.exists():
        return LIBRARIES_BYTES
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) * 1024
