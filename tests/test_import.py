"""`import trueaxis` is light, and decoding imports nothing of calibration or alignment."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trueaxis


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


@pytest.mark.parametrize("code", ["import trueaxis", "import trueaxis.cli; trueaxis.arguments.build_parser()"])
def test_import_is_light(code: str) -> None:
    assert not modules_after(code) & {"torch", "transformers", "rich", "scipy", "ray", "plotly", "huggingface_hub"}


def test_decoding_imports_no_calibration() -> None:
    loaded = modules_after("import trueaxis.runtime.load, trueaxis.container, trueaxis.entropy.stream")
    ours = {name for name in loaded if name.startswith("trueaxis.")}
    for stage in ("metric", "align", "function", "model", "compress", "assemble"):
        assert not {name for name in ours if name.startswith(f"trueaxis.{stage}")}
    assert "torch" not in loaded


def test_public_names_resolve_and_others_do_not() -> None:
    for name in trueaxis.__all__:
        assert getattr(trueaxis, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'squash'"):
        _ = trueaxis.squash  # type: ignore[attr-defined]
