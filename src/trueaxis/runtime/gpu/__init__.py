"""Decoding on a GPU: the same bytes, the same bits of every value, by Triton."""
