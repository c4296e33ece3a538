"""Export: a checkpoint as a file that other programs read."""
