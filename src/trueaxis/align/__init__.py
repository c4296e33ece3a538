"""Align: choose the coordinates in which a weight is cheapest to describe."""
