"""Span: a direction to a directory of the family, coded like a difference.

matrices of a direction, planned ─▶ three passes, each learning from the one before ─▶ ROOT/tangent/N, decoded once
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trueaxis.assemble import Assembled, assemble, write_files
from trueaxis.container import CONFIG
from trueaxis.entropy.model import Tables
from trueaxis.model.checkpoint import Checkpoint, Entry
from trueaxis.parallel import one_thread
from trueaxis.passes import Job, Passes, first_tables
from trueaxis.progress import Progress
from trueaxis.quantize.plan import reference_for
from trueaxis.recipe import Recipe
from trueaxis.runtime.load import verify
from trueaxis.stages import EFFORTS
from trueaxis.staging import staged_directory
from trueaxis.types import Quantized, Weight

LEARNING = 2  # passes that teach the coder's tables to the quantizer
CALIBRATION = {"source": "members", "tokens": 0}


@one_thread()
def write_direction(
    jobs: Sequence[Job], checkpoint: Checkpoint, recipe: Recipe, out: Path, threads: int, progress: Progress
) -> int:
    """Codes and verifies a direction.

    Args:
        jobs: Its matrices, to be coded at c = 1.
        checkpoint: Any member that has them, for shapes.
        recipe: The members'.
        out: Directory to create; what an earlier run has left there is replaced.
        threads: Workers; the bytes do not depend on it.
        progress: Told of every pass.

    Returns:
        Bytes of all its files.
    """
    names = dict.fromkeys(job.weight.tensor for job in jobs)
    entries = {name: Entry(tuple(checkpoint.entries[name].shape), "F32", "") for name in names}
    header = {"recipe": recipe.to_json(), "sketch": [], "gauge": [], "calibration": CALIBRATION}
    with tempfile.TemporaryDirectory(prefix="trueaxis.") as folder:
        (Path(folder) / CONFIG).write_text(json.dumps({}))
        whole = Checkpoint(Path(folder), {}, entries, {})

        def written(matrices: Sequence[tuple[Weight, Quantized]], tables: Tables) -> Assembled:
            return assemble(whole, matrices, [], tables, recipe.entropy, header, threads)

        effort = EFFORTS[reference_for(recipe.quantize).effort]
        passes = Passes(jobs, first_tables(jobs, effort), LEARNING, recipe.entropy, written, threads, progress)
        for _ in range(LEARNING):
            passes(1.0)
        files = passes(1.0)
        with staged_directory(out, overwrite=True) as staging:
            write_files(files, whole, staging)
            verify(staging)
    return sum(file.stat().st_size for file in out.iterdir())
