"""llama.cpp: its K- and IQ-quants, weighed by the mean squares of the inputs (https://github.com/ggml-org/llama.cpp)."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
import torch
from dense import Tensors, tell, write_dense
from gguf_tensors import Places, read_tensors

BLOCK = 256  # columns that a K- or IQ-quant takes at once
FALLBACKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16", "F32")


def main() -> None:
    """`python with_llama_cpp.py MODEL Q4_K_M FOLDER`, FOLDER with the files of comparison/inputs.py."""
    model, setting, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    out, begun = folder / "files" / "model.gguf", time.perf_counter()
    quantize(folder, out, getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{setting}"))
    made = time.perf_counter()
    tensors, fallbacks = decoded(out, json.loads((folder / "places.json").read_text()))
    tell(made - begun, time.perf_counter() - made, fallbacks)
    write_dense(model, tensors, folder)


def quantize(folder: Path, out: Path, kind: int) -> None:
    """Calls llama.cpp; what it says goes to standard error."""
    squares = dict(np.load(folder / "imatrix.npz"))
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [(name.encode(), value.ctypes.data_as(pointer), value.size) for name, value in squares.items()]
    matrix = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))(*rows)  # the last one, without a name, ends it
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind, 1
    parameters.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(
        str(folder / "model.gguf").encode(), str(out).encode(), ctypes.byref(parameters)
    )
    if status:
        raise RuntimeError(f"llama_model_quantize gave {status}")


def decoded(file: Path, places: Places) -> tuple[Tensors, list[str]]:
    """Tensors by their names in the checkpoint, and those of another type than was asked for."""
    tensors, fallbacks = {}, []
    for name, values, kind in read_tensors(file, places):
        tensors[name] = torch.from_numpy(values)
        if values.ndim == 2 and kind in FALLBACKS:
            fallbacks.append(f"{name}: {values.shape[1]} columns are no multiple of {BLOCK}, {kind}")
    return tensors, fallbacks


if __name__ == "__main__":
    main()
