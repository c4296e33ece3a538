"""Compare: every recipe, and the peers that are installed, on one model and one text, by real bytes."""
