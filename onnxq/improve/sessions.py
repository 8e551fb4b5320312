"""Sessions for parts of a network: many small ones that take turns, and one memory for all."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import onnx
import onnxruntime as ort

from onnxq.runtime import ORT_ERRORS, session

__all__ = ["give_memory_back", "session_options"]


@functools.cache
def _share_memory() -> None:
    """Let all sessions that ask for it take their memory from one arena of the process.

    With an arena each, they would hold the sum of what each needs at its time; without any, half
    of the time goes into getting pages from the system.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # else the program that imports this has registered one already
    with contextlib.suppress(*ORT_ERRORS):
        ort.create_and_register_allocator(memory, None)


def session_options() -> ort.SessionOptions:
    """For many small sessions that take turns: one memory, and threads that sleep between runs."""
    options = ort.SessionOptions()
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.enable_mem_pattern = False
    return options


def give_memory_back() -> None:
    """Return to the system what the one memory has grown by, and does not hold at present.

    onnxruntime does that on demand, at the end of a run.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _smallest().run(None, {"x": np.zeros(1, np.float32)}, options)


@functools.cache
def _smallest() -> ort.InferenceSession:
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("x", "y")]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "smallest", info[:1], info[1:])
    imports = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    with session(model.SerializeToString(), session_options()) as active:
        return active
