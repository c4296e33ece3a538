"""What calibration text is worth: KL at equal file bytes with much text, with an eighth of it, and with none at all.

    python benchmarks/calibration.py MODEL CALIBRATION.npy EVALUATION.npy [--bits 2 3] [--tokens 131072 16384]

Without text the model writes its own (`sampled`). Ratios are to the first row, paired over sequences, with the 95 %
interval of 2,000 resamplings.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from model_level import reading, scored, spread, told

import trueaxis
from trueaxis.evaluation import load_model
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint


def main() -> None:
    """Prints the machine, the command and a line per run."""
    parser = reading(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[131_072, 16_384])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    text = load_tokens(options.calibration)
    held_out = spread(load_tokens(options.evaluation), options.sequences)
    original = load_model(Checkpoint.open(options.model))
    with tempfile.TemporaryDirectory() as work:
        sources: dict[str, list[Path]] = {}
        for count in options.tokens:
            part = text[:: max(1, text.size // count)][: max(1, count // text.shape[1])]
            file = Path(work) / f"{count}.npy"
            np.save(file, part)
            sources[f"{part.size:,} tokens"] = [file]
        sources["sampled"] = []
        for bits in options.bits:
            base: np.ndarray | None = None
            for name, files in sources.items():
                report = trueaxis.compress(
                    options.model, f"{work}/out", bits=bits, calibration=files, overwrite=True,
                    statistics=f"{work}/{name}" if files else None,
                )  # fmt: skip
                found, _ = scored(f"{work}/out", original, held_out)
                base = found if base is None else base
                print(
                    f"{name:16} {report.calibration['tokens']:8,} read {report.file_bytes:11,} bytes  "
                    f"{report.bits_per_param:.4f} bits  {told(base, found)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
