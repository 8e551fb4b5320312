"""Measuring: a quantized model against its float original.

comparison.py    outputs; labels.py and layers.py: top-1 and top-5, and tensor by tensor
benchmarking.py  latency, load time, size, memory; timing.py: models in turn
fusion.py        which Q and DQ did not fuse; fusion_rules.py: why
optimized.py     the graph that onnxruntime runs; profiling.py: where its time goes
random_feeds.py  inputs to run a model on
_memory.py       the process whose memory is measured
"""
