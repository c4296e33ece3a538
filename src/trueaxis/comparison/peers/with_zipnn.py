"""ZipNN: lossless compression of the weight files (arXiv:2411.05239)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from dense import Tensors, read_tensors, tell, write_dense
from zipnn import ZipNN  # type: ignore[import-not-found]

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def main() -> None:
    """Every tensor by itself: `python with_zipnn.py MODEL lossless FOLDER`."""
    model, folder = Path(sys.argv[1]), Path(sys.argv[3])
    tensors, begun, sizes = read_tensors(model), time.perf_counter(), []
    with open(folder / "files" / "model.znn", "wb") as file:
        for tensor in tensors.values():
            plain = bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            sizes.append(file.write(zipper(tensor).compress(plain)))
    made = time.perf_counter()
    decoded = read(folder / "files" / "model.znn", tensors, sizes)
    tell(made - begun, time.perf_counter() - made, [])
    write_dense(model, decoded, folder)


def zipper(tensor: torch.Tensor) -> ZipNN:
    """For tensors of its type."""
    return ZipNN(bytearray_dtype=DTYPES[tensor.dtype], input_format="byte", threads=1)


def read(path: Path, tensors: Tensors, sizes: list[int]) -> Tensors:
    """What the file holds, by the names, types and shapes of the tensors that were put there."""
    found = {}
    with open(path, "rb") as file:
        for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
            plain = torch.frombuffer(bytearray(zipper(tensor).decompress(file.read(size))), dtype=tensor.dtype)
            found[name] = plain.reshape(tensor.shape)
    return found


if __name__ == "__main__":
    main()
