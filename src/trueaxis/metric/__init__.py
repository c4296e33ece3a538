"""What matters: input metrics and sensitivities of a checkpoint's matrices, and the limits they imply.

calibrate.py runs the model over text · statistics.py keeps the sums · sketch.py recognizes text seen before ·
gradient.py and sensitivity.py weigh matrices against each other · metric.py computes with the result.
"""
