"""Place: which tensors get quantized at which of their uses, and why the rest does not.

weights.py   dynamic mode: every constant weight of the op table, wherever it sits
static.py    static mode: what runs in int8 on a target
"""

from onnxq.placement.static import place_static
from onnxq.placement.weights import place_weights

__all__ = ["place_static", "place_weights"]
