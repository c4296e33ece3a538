"""ZipNN: lossless compression of the weight files (arXiv:2411.05239)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from dense import read_tensors, tell, write_dense
from zipnn import ZipNN  # type: ignore[import-not-found]

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def main() -> None:
    """Every tensor by itself: `python with_zipnn.py MODEL lossless FOLDER`."""
    model, folder = Path(sys.argv[1]), Path(sys.argv[3])
    tensors, begun = read_tensors(model), time.perf_counter()
    with open(folder / "files" / "model.znn", "wb") as file:
        for tensor in tensors.values():
            zipper = ZipNN(bytearray_dtype=DTYPES[tensor.dtype], input_format="byte", threads=1)
            file.write(zipper.compress(bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())))
    tell(begun, [])
    write_dense(model, tensors, folder)


if __name__ == "__main__":
    main()
