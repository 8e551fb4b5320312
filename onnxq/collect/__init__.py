"""Calibrate: run samples through the float model in onnxruntime and keep statistics only.

tapped.py      the model whose outputs are what statistics are taken of
runner.py      samples through it, in threads, and the counting
shares.py      the samples split among processes or machines (onnxq/spread.py)
checkpoint.py  statistics saved as they grow, and continued

Statistics do not depend on the batch size, the order, the number of threads or the split: counts
are integers, sums are exact, and what is summed is calculated sample by sample.
"""

from onnxq.collect.calibrating import Progress, calibrate
from onnxq.collect.tapped import Request

__all__ = ["Progress", "Request", "calibrate"]
