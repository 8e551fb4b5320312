"""onnx's own test models, emitted and run in Paddle Inference with and without oneDNN."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from onnxq_paddle.worker.emit.table import RULES
from tests.paddle.emitted_nodes import Outcome, covered_cases, outcomes, with_constants, write

TOLERANCE = 1e-4
# Also with all inputs unknown: what real models calculate from shapes
FREE = frozenset(
    {"Add", "Div", "Sub", "Expand", "Gather", "GatherElements", "GatherND", "If", "MatMul", "Range"}
    | {"Reshape", "ScatterND", "Slice", "Tile", "TopK", "Where", "Max", "Equal", "ConstantOfShape"}
)
# What does not come out, by pattern of the test's name -> why
EXCEPTIONS = {
    r"^constant\.free": "its output is a constant, which Paddle Inference cannot give",
    r"_training_mode|training_dropout|dropout_default_mask": "training is not for inference",
    r"operator_add_size1_broadcast": "onnx's converter of opset 6 gets its broadcasting wrong",
    r"select_last_index": "Paddle's arg_max takes the first",
    r"dilation": "Paddle's pooling has none",
    r"argmax_2d_precomputed|maxpool_with_argmax": "Paddle counts pooled indices by channel",
    r"maxpool_2d_ceil_output_size_reduce_by_one": "Paddle keeps the window that ONNX drops",
    r"maxpool_2d_uint8": "Paddle pools floats only",
    r"count_include_pad_is_1_ceil_mode_is_True|ceil_last_window_starts": "refused",
    r"^gru_": "Paddle's gate is applied after the product, ONNX's default is before",
    r"peephole|lstm_batchwise": "Paddle's LSTM has no peepholes, and one layout",
    r"^layer_normalization_(?!.*expanded)": "they ask for the mean as well",
    r"^resize_.*(nearest|antialias|exclude_outside|tf_crop|not_larger|not_smaller)": "refused",
    r"^resize_.*(half_pixel_symmetric|cubic_asymmetric|downsample)": "refused",
    r"gridsample_bicubic|gridsample_volumetric": "Paddle has no such mode",
    r"quantizelinear": "per axis, blocked or asymmetric: see test_emit_errors",
    r"scatternd_(max|min|multiply)": "Paddle has no such reduction",
    r"gathernd_example_int32_batch_dim1": "Paddle has no batch_dims",
    r"batchnorm_epsilon": "Paddle takes an epsilon of at most 0.001",
    r"convtranspose_output_shape": "asks for more than the kernel gives",
    r"reshape_allowzero|empty_set|zero_size|slice_start_out_of_bounds": "empty tensors",
    r"PReLU_\dd_multiparam": "onnx's old broadcasting of the slope",
    r"slice.*\.free|^topk.*\.free": "its axes are not constant",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """What became of each model, by its operator; all of them in few child processes."""
    folder = tmp_path_factory.mktemp("nodes")
    ops: dict[str, str] = {}
    for case in covered_cases():
        name = case.name.removeprefix("test_")
        op = case.model.graph.node[-1].op_type
        if name.endswith("_expanded") or len(case.model.graph.node) > 2:
            continue
        if len(case.feeds[0]) > 1 and write(folder, name, with_constants(case), case) is None:
            ops[name] = op
        alone = len(case.feeds[0]) <= 1 or op in FREE
        if alone and write(folder, f"{name}.free", case.model, case) is None:
            ops[f"{name}.free"] = op
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes(folder):
        found.setdefault(ops[outcome.name.split(" ")[0]], []).append(outcome)
    return found


def failures(found: list[Outcome]) -> Iterator[str]:
    for one in found:
        if any(re.search(pattern, one.name) for pattern in EXCEPTIONS):
            continue
        if one.outcome != "ran" or not one.error <= TOLERANCE:
            yield f"{one.name}: {one.outcome} {one.error:g} {one.reason[-200:]}"


def test_all_come_out(results: dict[str, list[Outcome]]) -> None:
    lines = [line for found in results.values() for line in failures(found)]
    assert not lines, "\n".join(lines)


def test_nothing_crashes_and_nothing_is_silently_wrong(results: dict[str, list[Outcome]]) -> None:
    wrong = [
        one.name
        for found in results.values()
        for one in found
        if one.outcome == "died" or (one.outcome == "ran" and not one.error <= TOLERANCE)
    ]
    assert {name for name in wrong if "add_size1_broadcast" not in name} == set()


def test_most_operators_are_tested(results: dict[str, list[Outcome]]) -> None:
    ran = {op for op, found in results.items() if any(one.outcome == "ran" for one in found)}
    # tested in networks (test_emit_models), or spelled otherwise in newer opsets
    elsewhere = {"Constant", "Dropout", "GRU", "LayerNormalization", "QuantizeLinear"}
    elsewhere |= {"DequantizeLinear", "RMSNormalization", "Upsample", "LpNormalization"}
    assert set(RULES) - ran - elsewhere == set()
