"""Improve: passes that change a plan, each kept only where the measured error of the network falls.

levels.py     which passes each `accuracy` level runs, what they will cost, and the loop over them
context.py    what a pass works with, and the best plan so far
emulated.py   a placement as a float network, in parts that begin at weighted nodes
part.py       one of these parts
sessions.py   what runs them, and the memory that it takes
frontier.py   where that network stands for some samples; the rest can be run from anywhere
reference.py  the float network's outputs and means
judge.py      the error of a plan, on samples that nothing was fitted to, with its standard error
ledger.py     what each pass tried, and whether it was kept
alone.py      what one tensor costs with all else in float
ranges.py     each tensor's calibration method by that; method auto
own_bias.py   the bias of a weighted node
bias.py       sequential bias correction
rescaling.py  where channels can be divided by s and multiplied again: links, and another network
observed.py   what the channels of links hold
offering.py   rescaled networks as candidates: all links, halves and quarters of them
smoothquant.py, equalization.py  how s is chosen
layer.py      a weighted node as a matrix, and the patches of its input
rounding.py   weights rounded by what it does to the layer's output; AdaRound

How to write a pass: one module with a function `(context, plan) -> None`, and a row in
`levels.PASSES`. It makes candidates from the plan (`dataclasses.replace`: other `params`, `biases`,
or `updates` with corrected values or chosen integers) and hands each to

    context.offer("name of the pass", "node or None", candidate, "what was changed")

which measures it (`context.judge.errors`, or pass errors that were measured already), keeps it as
`context.best` if it gains more than the standard error, and writes the ledger. A pass that changes
the float network itself comes before all others, and hands it to `context.offer_network`. What is
not tried is noted with `context.ledger.skip(pass, why, node)`.

To calculate something of a layer, walk along:

    frontier = context.fit                            # samples to fit to, before the first part
    for part in context.emulated.parts:
        if part.weighted is not None:                 # the Conv, Gemm or MatMul it begins with
            inputs = frontier.inputs(plan)            # what it reads, as quantized before it
        frontier = frontier.advance(plan)             # with whatever the plan says by now

`context.judge.errors(candidate, frontier)` runs only the rest of the network, from a frontier of
the judge's samples (which start at `context.judge.start`). The user may stop a pass at any moment
(Ctrl-C): what was offered before counts.
"""

from __future__ import annotations

from onnxq.improve.ledger import Entry, Ledger
from onnxq.improve.levels import LEVELS, PASSES, Improved, improve

__all__ = ["LEVELS", "PASSES", "Entry", "Improved", "Ledger", "improve"]
