"""Registers trueaxis with transformers, so that every Auto class reads compressed directories.

    import trueaxis.hf
    from_pretrained(DIR) ─▶ empty model ─▶ decoded shards in a temporary directory ─▶ transformers' own loader

The loader reads the decoded shards in place of the compressed ones. So dtype, device_map, tied weights, renamed and
merged tensors are its business, as for the original checkpoint, and the result is an ordinary model: no quantization
entry is left on it, and save_pretrained writes a plain checkpoint. The temporary directory (see TMPDIR) takes the
space of the decoded model until loading ends; `trueaxis.load` needs none.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.plain import write_plain
from trueaxis.types import TrueaxisError

METHOD = "trueaxis"
SHARD_BYTES = 1 << 30


class TrueaxisConfig(QuantizationConfigMixin):
    """The quantization_config entry of a compressed config.json; the choices of the run are in the weight files."""

    def __init__(self, version: int = 0, resident: str = "dense", **_: Any) -> None:
        if resident != "dense":
            raise TrueaxisError(
                f"from_pretrained loads dense weights, not resident={resident!r}; trueaxis.load(DIR, resident=...) "
                "gives a model of the same class"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.version = version
        self.dequantize = True  # transformers then takes the entry off the loaded model, which is a dense one


class TrueaxisQuantizer(HfQuantizer):
    """Decodes while transformers loads."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized or not checkpoint_files:
            raise TrueaxisError("transformers only loads what 'trueaxis compress' wrote; it does not compress")
        directory = Path(tempfile.mkdtemp(prefix="trueaxis."))
        self._remove = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        decoder = Decoder(Path(checkpoint_files[0]).parent)
        dtype: Any = model.config.dtype  # settled by now
        # The loader opens the files of this very list next.
        checkpoint_files[:] = map(str, write_plain(decoder, directory, dtype, SHARD_BYTES))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        self._remove()
        if "disk" in getattr(model, "hf_device_map", {}).values():
            raise TrueaxisError("device_map places weights on disk; run 'trueaxis unpack' and load its result instead")
        return model

    def is_serializable(self, **_: Any) -> bool:
        """What was loaded is an ordinary model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """What was loaded is an ordinary model."""
        return True


def register() -> None:
    """Tells transformers about the quantization method "trueaxis"; once is enough, more does no harm."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(TrueaxisConfig)
        register_quantizer(METHOD)(TrueaxisQuantizer)


register()
