"""Load: bytes in, an ordinary model out; nothing here imports calibration or alignment code."""
