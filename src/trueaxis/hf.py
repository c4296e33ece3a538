"""`import trueaxis.hf` makes the Auto classes of transformers read compressed directories; see runtime/hf.py."""

from trueaxis.runtime.hf import register

__all__ = ["register"]
