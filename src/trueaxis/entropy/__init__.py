"""Entropy-code: integers in, bytes out; integer models only, so that both sides agree bit for bit."""
