"""What the benchmark scripts share."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]

# Shapes of inputs that a dynamic dimension of 1 would not do for
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ppocr_cls_constants.onnx": {"x": (1, 3, 48, 192)},
    "silero_vad.onnx": {"input": (1, 512), "state": (2, 1, 128), "sr": ()},
}
SAMPLE_RATE = 16000


def plain_session(path: Path) -> ort.InferenceSession:
    """A session with default options: what a user gets who knows nothing of quantization."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def optimized_ops(path: Path) -> Counter[str]:
    """Op types of the graph as onnxruntime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


def random_feed(active: ort.InferenceSession, name: str, seed: int) -> dict[str, Array]:
    """Random values for every input of a model, dynamic dimensions being 1 unless SHAPES says."""
    rng = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in active.get_inputs():
        fixed = [d if isinstance(d, int) and d > 0 else 1 for d in value.shape]
        shape = SHAPES.get(name, {}).get(value.name, tuple(fixed))
        if value.name == "sr":
            feed["sr"] = np.array(SAMPLE_RATE, np.int64)
        elif "int64" in value.type:
            high = 2 if "mask" in value.name else 500
            feed[value.name] = rng.integers(high == 2, high, shape)
        else:
            feed[value.name] = rng.uniform(-1, 1, shape).astype(np.float32)
    return feed
