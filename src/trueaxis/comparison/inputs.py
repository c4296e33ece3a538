"""Inputs: what a peer gets beside the checkpoint, made by us since its own environment has no trueaxis.

llama.cpp ◀─ FOLDER/model.gguf       the checkpoint in float16
             FOLDER/places.json      {name there: [name here, heads whose rows are interleaved, what was added]}
             FOLDER/imatrix.npz      name there → mean squares of the inputs, diag(H) [n]
GPTQModel ◀─ FOLDER/calibration.npy  token ids [sequences, length]
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from trueaxis.comparison.peer import Original
from trueaxis.export.gguf import gguf_places, write_gguf
from trueaxis.metric.source import read_tokens
from trueaxis.types import CalibrationError


def gguf_inputs(original: Original, folder: Path) -> None:
    """Inputs of llama.cpp.

    Args:
        original: Of its preparation, metrics in the original coordinates are what is used.
        folder: Takes the files.

    Raises:
        TrueaxisError: The checkpoint cannot be written as GGUF; says why.
    """
    reference = original.prepared
    places = gguf_places(reference.checkpoint)
    write_gguf(reference.checkpoint, folder / "model.gguf")
    names = {place.name: [name, place.heads, place.offset] for name, place in places.items()}
    (folder / "places.json").write_text(json.dumps(names))
    squares = {
        places[job.weight.name].name: np.diag(job.metric.second_moment).astype(np.float32)
        for job in reference.jobs
        if job.weight.role == "linear" and job.metric.second_moment is not None
    }
    np.savez(folder / "imatrix.npz", allow_pickle=False, **squares)


def calibration_inputs(original: Original, folder: Path) -> None:
    """Tokens to calibrate on.

    Raises:
        CalibrationError: There are none but in statistics, or files of several lengths.
    """
    parts = read_tokens(original.prepared.checkpoint.path, original.calibration)
    if len(parts) != 1:
        found = "several lengths" if parts else "none"
        raise CalibrationError(
            f"needs the calibration text itself, of one sequence length (--calibration), found {found}"
        )
    np.save(folder / "calibration.npy", parts[0])
