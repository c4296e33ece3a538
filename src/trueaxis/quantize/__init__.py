"""Quantize: weights and a metric in, integers on a grid out."""
