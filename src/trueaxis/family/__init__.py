"""Families: fine-tunes of one checkpoint, each stored as what it adds to the base."""
