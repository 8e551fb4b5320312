"""Analyze: what each quantized node costs, the one that costs most first."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from onnxq.calibration import Calibration
from onnxq.collect import Progress, Request, calibrate
from onnxq.data.samples import DataLike, Samples, input_specs, open_samples
from onnxq.errors import DataError, ModelError, OptionError
from onnxq.improve import Ledger
from onnxq.improve.context import Context
from onnxq.improve.emulated import float_outputs
from onnxq.improve.judge import Judge
from onnxq.improve.macs import macs_by_node
from onnxq.improve.mixed.sensitivity import sensitivities
from onnxq.improve.mixed.stage import RANKED, ranking_reference
from onnxq.improve.mixed.variants import Variants, units_of
from onnxq.measure.comparison import finite
from onnxq.model import ModelLike, load
from onnxq.parametrize import parametrize
from onnxq.pipeline import PathLike, Placer, prepare_for
from onnxq.plans import Placement
from onnxq.prepare import Prepared
from onnxq.recipe import StaticRecipe
from onnxq.recipe_file import load_recipe
from onnxq.runtime import RuntimeFailureError
from onnxq.spread import Spread

__all__ = ["AnalysisReport", "NodeCost", "analyze", "calibrated"]

FEWEST = 4


@dataclass(frozen=True)
class NodeCost:
    """One node that runs in int8.

    node: a rule of a recipe finds it by this name. mac_share: of all MACs of the network.
    alone_quantized: SQNR of the outputs in dB with only this node in int8; None for a node that
        is never quantized alone (Add, Mul, Concat, ...).
    alone_float: the same with only this node in float. rank: 1 costs most.
    """

    rank: int
    node: str
    op_type: str
    mac_share: float
    alone_quantized: float | None
    alone_float: float


@dataclass(frozen=True)
class AnalysisReport:
    """What `analyze` found.

    sqnr: of the outputs in dB, with all of the nodes in int8. samples: on how many.
    mac_share: of the MACs of the network, in these nodes. nodes: the one that costs most first.
    """

    model: str
    target: str
    samples: int
    sqnr: float
    mac_share: float
    nodes: tuple[NodeCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which an infinite SQNR is null."""
        return finite(dataclasses.asdict(self))  # type: ignore[no-any-return]  # a dict stays one


def analyze(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    recipe: StaticRecipe | PathLike = StaticRecipe(),  # noqa: B008  # frozen
    progress: Progress | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
) -> AnalysisReport:
    """Measure what each node costs in int8 and what it would bring to leave it float.

    data: samples, as in `quantize_static`; None for what the recipe names. recipe: of static mode;
    ranges are chosen as it says, without the passes of an accuracy level. progress: called with
    the number of measurements done and of all. workers, executor: as in `quantize`.

    Raises ModelError, DataError or OptionError.
    """
    spread = Spread(workers, executor)
    found = load_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe
    if not isinstance(found, StaticRecipe):
        raise OptionError("analyze needs a recipe of static mode: dynamic mode has no activations")
    found = found.effective()
    given = found.data if data is None else data
    if given is None:
        raise OptionError("analyze needs data: samples to calibrate with and to measure on")
    source = load(model)
    prepared = prepare_for(source, found)
    place = Placer(prepared, found)
    placement = place(())
    if not float_outputs(prepared.ir.graph):
        raise ModelError(f"{source.label}: it has no float output to measure")
    samples, calibration = calibrated(prepared, placement, given, found, spread)
    if len(samples) < FEWEST:
        raise DataError(f"analyze needs at least {FEWEST} samples, there are {len(samples)}")
    plan = parametrize(prepared, placement, calibration)
    step = max(1, len(samples) // RANKED)
    measured = list(range(0, len(samples), step))[:RANKED]
    try:
        with Context(
            prepared, calibration, samples, plan, Ledger("none"), (measured, [0])
        ) as context:
            macs = macs_by_node(prepared, context.fit.batches[0].tensors)
            units = units_of(prepared, placement, macs)
            variants = Variants(prepared, calibration, plan, units, place)
            reference = ranking_reference(context)
            whole = Judge(variants.base.emulated, reference).errors(plan)
            ranking = sensitivities(variants, reference, progress, both=True, spread=spread)
            variants.forget()
    except RuntimeFailureError as error:
        raise ModelError(f"{source.label}: onnxruntime cannot run it: {error}") from error
    total = max(1, sum(macs.values()))
    nodes = tuple(
        NodeCost(
            rank,
            s.unit.name,
            s.unit.op_type,
            s.unit.macs / total,
            s.quantized,
            s.floating if s.floating is not None else whole.sqnr,
        )
        for rank, s in enumerate(ranking, 1)
    )
    share = sum(unit.macs for unit in units) / total
    return AnalysisReport(
        source.label, found.target or "", len(whole.noise), whole.sqnr, share, nodes
    )


def calibrated(
    prepared: Prepared,
    placement: Placement,
    data: DataLike,
    recipe: StaticRecipe,
    spread: Spread = Spread(),  # noqa: B008  # frozen
) -> tuple[Samples, Calibration]:
    """All of the samples, and statistics from which any of the nodes can be left float."""
    specs = input_specs(prepared.ir)
    opened = open_samples(data, specs, recipe.samples, recipe.images)
    request = Request(tuple(sorted({a.owner for a in placement.activations})))
    size = recipe.batch_size
    return opened, calibrate(prepared, opened, request, batch_size=size, spread=spread)
