"""`Frontier`: where the emulated network stands for some samples, and the rest of it.

A frontier holds the tensors that are still needed, and nothing that is dead. It is a value: the
same one can be run on with several plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.improve.emulated import Emulated
from onnxq.plans import Plan
from onnxq.qtypes import Array, Float64Array, QuantParams
from onnxq.runtime import Feed

__all__ = ["Batch", "Frontier", "rows_of"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that run at once: their tensors, and how many they are."""

    tensors: Feed
    samples: int


@dataclass(frozen=True, eq=False)
class Frontier:
    """The live tensors before part `position` has run."""

    emulated: Emulated
    position: int
    batches: tuple[Batch, ...]

    @property
    def done(self) -> bool:
        """All parts have run."""
        return self.position == len(self.emulated.parts)

    @property
    def nbytes(self) -> int:
        """Of the tensors held."""
        return sum(array.nbytes for batch in self.batches for array in batch.tensors.values())

    def advance(self, plan: Plan) -> Frontier:
        """Behind the next part, calculated with what the plan says of it."""
        constants = self.emulated.constants(self.position, plan)
        batches = tuple(self._step(self.position, batch, constants) for batch in self.batches)
        return Frontier(self.emulated, self.position + 1, batches)

    def means(self, plan: Plan) -> Float64Array:
        """Of the next part's weighted output, a sample and channel: [samples, channels]."""
        constants = self.emulated.constants(self.position, plan)
        return np.concatenate(
            [
                rows_of(self.emulated.probe(self.position, b.tensors, constants), b.samples)
                for b in self.batches
            ]
        )

    def inputs(self, plan: Plan) -> list[tuple[Array, QuantParams | None]]:
        """What the next part's weighted node reads, a batch; of integers, what they mean."""
        return [self.emulated.input_of(self.position, b.tensors, plan) for b in self.batches]

    def outputs(self, plan: Plan) -> list[dict[str, Array]]:
        """The outputs of the graph for each batch, from here on calculated with the plan.

        Batch by batch, so that no more than one is held.
        """
        emulated = self.emulated
        constants = [emulated.constants(i, plan) for i in range(self.position, len(emulated.parts))]
        found = []
        for batch in self.batches:
            for i, given in enumerate(constants, self.position):
                batch = self._step(i, batch, given)
            found.append({name: batch.tensors[at] for name, at in emulated.outputs.items()})
        return found

    def _step(self, index: int, batch: Batch, constants: Feed) -> Batch:
        made = self.emulated.run(index, batch.tensors, constants)
        live = self.emulated.live(index + 1)
        kept = {name: array for name, array in batch.tensors.items() if name in live}
        return Batch(kept | made, batch.samples)


def rows_of(means: Array, samples: int) -> Float64Array:
    """Means of rows [samples * rows, ..., channels] as means of samples: [samples, channels].

    Samples without rows have no mean: all of them together are [0, channels].
    """
    if not means.size:
        return np.empty((0, means.shape[-1]))
    rows = means.reshape(samples, -1, means.shape[-1]).astype(np.float64)
    return np.asarray(rows.mean(axis=1))


def joined(feeds: Sequence[Feed]) -> Feed:
    """Samples of batch size 1 as one feed."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
