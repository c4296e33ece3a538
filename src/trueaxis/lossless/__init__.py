"""Lossless: what to write of tensors that must come back bit for bit."""
