"""The theory on a checkpoint of one's own, claim by claim: a number, its interval, a verdict.

halves.py draws the calibration text again · subject.py is what is looked at · axes.py measures every coordinate
system · a module per topic holds its claims · journey.py runs them all. Thresholds and schema: docs/analysis.md.
"""
