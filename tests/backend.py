"""The test models that come with the `onnx` package, with their inputs and expected outputs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from tests.models import Array

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")  # "real" needs downloads

Value = Any  # an array, a list of arrays for a sequence, None for an empty optional

# What a data set of a model in a directory is made of (onnx 1.17 has its node tests so, too): the
# message for each type, and the field of the message that has the values
MESSAGES = {
    "tensor_type": onnx.TensorProto,
    "sequence_type": onnx.SequenceProto,
    "optional_type": onnx.OptionalProto,
}
SEQUENCES: dict[int, str] = {onnx.SequenceProto.TENSOR: "tensor_values"}
OPTIONALS: dict[int, str] = {
    onnx.OptionalProto.TENSOR: "tensor_value",
    onnx.OptionalProto.SEQUENCE: "sequence_value",
}


@dataclass(frozen=True)
class Case:
    """One model. `feeds` and `expected`: a mapping and a list a data set."""

    name: str
    model: onnx.ModelProto
    feeds: Sequence[Mapping[str, Value]]
    expected: Sequence[Sequence[Value]]


@functools.cache
def cases() -> tuple[Case, ...]:
    """All of them; the data is in memory (node) or beside the models in onnx's own directory."""
    with warnings.catch_warnings():
        # the node tests are generated on import, some of them from values that overflow on purpose
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"onnx\.|numpy")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"onnx\.|numpy")
        from onnx.backend.test.loader import load_model_tests

        found = [test for kind in KINDS for test in load_model_tests(kind=kind)]
    return tuple(_case(test) for test in found if test.model is not None or _has_tensors(test))


def _has_tensors(test: Any) -> bool:
    """Whether the files of a test hold tensors alone: older versions of onnx keep all in files."""
    graph = onnx.load(str(Path(test.model_dir) / "model.onnx")).graph
    return all(v.type.HasField("tensor_type") for v in (*graph.input, *graph.output))


def _case(test: Any) -> Case:
    if test.model is not None:
        sets = list(test.data_sets)
        model = test.model
    else:
        folder = Path(test.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        sets = [_read_set(model, s) for s in sorted(folder.glob("test_data_set_*"))]
    inputs = [value.name for value in model.graph.input]
    weights = {tensor.name for tensor in model.graph.initializer}
    without = [name for name in inputs if name not in weights]
    feeds = []
    for values, _ in sets:
        names = inputs if len(values) == len(inputs) else without
        feeds.append({n: _value(v) for n, v in zip(names, values, strict=False)})
    expected = [[_value(v) for v in outputs] for _, outputs in sets]
    return Case(test.name, model, feeds, expected)


def _read_set(model: onnx.ModelProto, folder: Path) -> tuple[list[Value], list[Value]]:
    def read(kind: str, values: Sequence[onnx.ValueInfoProto]) -> Iterator[Value]:
        for i in range(len(list(folder.glob(f"{kind}_*.pb")))):
            declared = values[i].type
            value = MESSAGES[declared.WhichOneof("value")]()
            value.ParseFromString((folder / f"{kind}_{i}.pb").read_bytes())
            if declared.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
                value.data_type = onnx.TensorProto.BFLOAT16  # onnx 1.17 wrote the bits as uint16
            yield value

    return list(read("input", model.graph.input)), list(read("output", model.graph.output))


def _value(value: Value) -> Value:
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, onnx.SequenceProto):
        return [_value(item) for item in getattr(value, SEQUENCES[value.elem_type])]
    if isinstance(value, onnx.OptionalProto):
        return _value(getattr(value, OPTIONALS[value.elem_type])) if value.elem_type else None
    return np.asarray(value) if isinstance(value, np.generic | int | float) else value


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_type == onnx.TensorProto.STRING:
        return numpy_helper.to_array(tensor)
    # by onnx-ir: numpy_helper of onnx 1.17 makes float32 of bfloat16 and of the types of 8 bits
    return np.asarray(ir.serde.deserialize_tensor(tensor).numpy())


def frozen(case: Case) -> Case | None:
    """The case with all inputs but the first as constants, as in a trained network.

    None if there is nothing to freeze. Node tests give weights as inputs, which leaves a quantizer
    nothing to do.
    """
    first, *others = [value.name for value in case.model.graph.input] or [""]
    feed = case.feeds[0] if case.feeds else {}
    weights = {name: feed[name] for name in others if isinstance(feed.get(name), np.ndarray)}
    if first not in feed or not any(a.dtype == np.float32 for a in weights.values()):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for name, array in weights.items():
        if array.dtype.kind in "OUSV":
            continue
        position = [value.name for value in model.graph.input].index(name)
        del model.graph.input[position]
        model.graph.initializer.append(ir.to_proto(ir.tensor(array, name=name)))
    left = {value.name for value in model.graph.input}
    one: dict[str, Array] = {name: value for name, value in feed.items() if name in left}
    return Case(f"{case.name} (frozen)", model, [one], case.expected[:1])
