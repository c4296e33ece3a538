"""Processors: the torch device that was asked for, found to be there before anything runs.

"cuda" ─▶ torch.device, index settled ─▶ one small tensor placed on it ─▶ the device, or what is wrong with it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trueaxis.types import TrueaxisError

if TYPE_CHECKING:
    import torch


def torch_device(name: torch.device | str) -> torch.device:
    """The device of this name.

    Args:
        name: "cpu", "cuda", "cuda:1", …

    Raises:
        TrueaxisError: Torch knows no such device, or this machine has none.

    Example:
        >>> torch_device("cpu")
        device(type='cpu')
    """
    import torch

    try:
        found = torch.device(name)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # a torch without CUDA asserts
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise TrueaxisError(f"device {str(name)!r} is not available: {reason}; use device 'cpu'") from error
    return found
