"""LSTM and GRU as Paddle's `rnn`, whose gates stand in another order.

LSTM: ONNX i o f c, Paddle i f c o. GRU: ONNX z r h, Paddle r z h; Paddle resets after the product
(linear_before_reset). Weights are put in order here if they are constant, by operators otherwise:
those of a quantized model stay integers in the file, and Paddle folds such operators at load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]

ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


def _check(op: Op, kind: str, directions: int) -> None:
    expected = ACTIVATIONS[kind] * directions
    given = op.node.attributes.get_strings("activations", expected)
    if [name.lower() for name in given] != [name.lower() for name in expected]:
        raise op.refuse(f"{kind} with the activations {', '.join(given)}: Paddle has its own only")
    if op.number("clip", 0.0) or op.integer("input_forget", 0):
        raise op.refuse(f"{kind} with clip or input_forget: Paddle has none")
    if op.text("direction", "forward") == "reverse":
        raise op.refuse(f"{kind} that runs backwards only: Paddle has none")
    if kind == "GRU" and not op.integer("linear_before_reset", 0):
        raise op.refuse("GRU with linear_before_reset 0: Paddle resets after the product")
    if op.integer("layout", 0):
        raise op.refuse(f"{kind} with layout 1 (batch first); export it with layout 0")
    if kind == "LSTM" and op.has(7):
        raise op.refuse("LSTM with peepholes: Paddle has none")


def _part(op: Op, i: int, direction: int, order: Sequence[int], shift: int = 0) -> str:
    """The gates of one direction of weight `i`, in Paddle's order.

    shift: from which gate on, where one tensor has both biases.
    """
    array = op.array(i)
    count = len(order)
    if array is not None:
        rows = array[direction]
        size = rows.shape[0] // (2 * count if i == 3 else count)
        gates = rows.reshape(-1, size, *rows.shape[1:])[np.asarray(order) + shift]
        name = f"{op.value(i).name}.{direction}.{shift}"
        return op.emitter.parameter(name, gates.reshape(-1, *rows.shape[1:]))
    x = op.x(i)
    size = op.shape(x)[1] // (2 * count if i == 3 else count)
    rows_of = op.sliced(x, [0], [direction], [direction + 1], drop=[0])
    starts = [(gate + shift) * size for gate in order]
    return op.concat([op.sliced(rows_of, [0], [s], [s + size]) for s in starts], 0)


def _recurrent(op: Op) -> None:
    kind = op.node.op_type
    order, gates = ORDER[kind], len(ORDER[kind])
    x, hidden = op.x(0), op.integer("hidden_size", 0)
    directions = 2 if op.text("direction", "forward") == "bidirectional" else 1
    _check(op, kind, directions)
    dtype = op.dtype(x)
    weights = [_part(op, i, d, order) for d in range(directions) for i in (1, 2)]
    for d in range(directions):
        for half in (0, 1):
            if op.has(3):
                weights.append(_part(op, 3, d, order, half * gates))
            else:
                weights.append(op.fixed(np.zeros(gates * hidden), dtype))
    inputs: dict[str, str | list[str]] = {"Input": x, "WeightList": weights}
    inputs["PreState"] = [
        op.x(i) if op.has(i) else _zero_state(op, x, directions, hidden)
        for i in ((5, 6) if kind == "LSTM" else (5,))
    ]
    if op.has(4):
        inputs["SequenceLength"] = op.cast(op.x(4), "int32")
    fresh = op.builder.fresh
    states = [op.y(i) if op.wants(i) else fresh(f"{op.node.name}.state") for i in (1, 2)]
    sequence = fresh(f"{op.node.name}.sequence")
    outputs: dict[str, str | list[str]] = {
        "Out": sequence,
        "State": states if kind == "LSTM" else states[:1],
        "Reserve": fresh(f"{op.node.name}.reserve"),
        "DropoutState": fresh(f"{op.node.name}.dropout"),
    }
    op.several(
        "rnn",
        inputs,
        outputs,
        mode=kind,
        is_bidirec=directions == 2,
        input_size=op.shape(x)[-1],
        hidden_size=hidden,
        num_layers=1,
        dropout_prob=0.0,
        seed=0,
        is_test=True,
    )
    if op.wants(0):  # [time, batch, directions * hidden] -> [time, directions, batch, hidden]
        if directions == 1:
            op.unsqueezed(sequence, [1], op.y())
        else:
            apart = op.reshaped(sequence, [0, 0, directions, hidden])
            op.transposed(apart, [0, 2, 1, 3], op.y())


def _zero_state(op: Op, x: str, directions: int, hidden: int) -> str:
    """[directions, batch, hidden], whose batch may be known at run time only."""
    batch = op.shape(x)[1]
    if batch >= 0:
        return op.fixed(np.zeros((directions, batch, hidden)), op.dtype(x))
    size = op.sliced(op.run("shape", {"Input": x}), [0], [1], [2])
    ends = [op.fixed([n], "int32") for n in (directions, hidden)]
    return op.filled(op.concat([ends[0], size, ends[1]], 0), 0.0, op.dtype(x))


RULES: dict[str, Callable[[Op], None]] = {"GRU": _recurrent, "LSTM": _recurrent}
