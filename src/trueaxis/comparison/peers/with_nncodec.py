"""NNCodec: the MPEG standard for neural networks, trellis-coded and by DeepCABAC (https://github.com/d-becking/nncodec2).

MODEL ─▶ every tensor at one quantization parameter, searched for the rate ─▶ FOLDER/files/model.nnc ─▶ FOLDER/dense
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dense import linear_names, read_tensors, tell, write_dense

# Its package reads data sets of pictures through torchvision, which does not load beside a torch without CUDA unless
# these operators, never called here, are known.
if torch.version.cuda is None:
    PICTURES = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        PICTURES.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from nncodec.nn import decode, encode  # type: ignore[import-not-found]

FIRST = -24  # about 4 bits
FINEST, COARSEST = -70, 0
BITS_PER_STEP = 0.25  # four steps of the parameter double the quantizer's own
WRITTEN = "dNN_epoch0_qp_{}_bitstream.nnc"  # what the package calls its file
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    """`python with_nncodec.py MODEL "3 bits" FOLDER`: everything at its defaults but for the parameter."""
    model, bits, folder = Path(sys.argv[1]), float(sys.argv[2].split()[0]), Path(sys.argv[3])
    tensors = read_tensors(model)
    linear_names(model)  # imported before the clock starts, as for the other peers
    if other := [name for name, one in tensors.items() if one.dtype not in DTYPES]:
        raise ValueError(f"{other[0]}: {tensors[other[0]].dtype} is no floating point")
    parameters = sum(one.numel() for one in tensors.values())
    arrays = {name: one.float().numpy() for name, one in tensors.items()}
    file, seconds = folder / "files" / "model.nnc", {}

    def size(parameter: int) -> float:
        begun = time.perf_counter()
        stream = encode(arrays, {"qp": parameter, "results": str(folder), "verbose": False})
        seconds[parameter] = time.perf_counter() - begun
        return len(stream) * 8 / parameters

    found = nearest(size, bits)
    os.link(folder / WRITTEN.format(found), file)
    begun = time.perf_counter()
    decoded = decode(str(file))
    loaded = time.perf_counter() - begun
    for name, one in tensors.items():
        tensors[name] = torch.from_numpy(np.asarray(decoded[name])).reshape(one.shape)
    tell(seconds[found], loaded, [])
    write_dense(model, tensors, folder)


def nearest(rate: Callable[[int], float], wanted: float) -> int:
    """The parameter whose rate is nearest to the one wanted, of those on the way there.

    Args:
        rate: Bits per parameter at a parameter; falls as that rises, by at most about `BITS_PER_STEP`.
        wanted: Bits per parameter.

    Example:
        >>> nearest(lambda parameter: 4 - (parameter + 24) * 0.2, 3.1)
        -20
    """
    known: dict[int, float] = {}
    at = FIRST
    while at not in known:
        known[at] = rate(at)
        at = min(max(at + round((known[at] - wanted) / BITS_PER_STEP), FINEST), COARSEST)
    return min(known, key=lambda one: abs(known[one] - wanted))


if __name__ == "__main__":
    main()
