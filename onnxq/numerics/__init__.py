"""Pure numpy: ranges, quantization, exact sums, error measures. Imports neither onnx nor a runtime.

quantize.py    range -> scale and zero point; quantize, dequantize
histogram.py   counts on a power-of-two grid, merged exactly
exact.py       sums that do not depend on the order of their terms
ranges.py      statistics -> range, one function per calibration method
metrics.py     SQNR, cosine, agreement
"""
