"""Place: which tensors get quantized at which of their uses, and why the rest does not.

weights.py   dynamic mode: every constant weight of the op table, wherever it sits
nodes.py     static mode: which nodes run in int8 on a target
static.py    static mode: the tensors that get parameters with them
existing.py  what is quantized in the model already
fused.py     groups of nodes that stay float as a whole
islands.py   groups of int8 nodes that integers connect
paying.py    static mode: which of those would lose time
padding.py   static mode: which Convs get channels of zeros, for speed
"""

from onnxq.placement.static import place_static
from onnxq.placement.weights import place_weights, with_correction

__all__ = ["place_static", "place_weights", "with_correction"]
