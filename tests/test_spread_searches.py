"""Searches over nodes in workers: the same figures and the same bytes as in one process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.cli.app import app
from onnxq.demo import DIGITS, digits_data
from onnxq.improve import strength
from onnxq.improve.mixed import sensitivity
from onnxq.model import ModelLike, load
from onnxq.pipeline import Placer, prepare_for
from onnxq.prepare import Prepared
from onnxq.recipe import Rule, StaticRecipe
from onnxq.runtime import serialized

from .dying import KillsOnce, SlowPool, dask_cluster
from .models import Array, Feed, build, normal, samples
from .test_improve import residual

RECIPE = StaticRecipe(target="onnxruntime-x86", accuracy="none").effective()
BLOCKS = 7
FEEDS = samples("x0", (1, 16), 40)


@cache
def blocks() -> onnx.ModelProto:
    """Residual blocks, as many nodes as make several shares."""
    lines: list[str] = []
    weights: dict[str, Array] = {}
    for i in range(BLOCKS):
        lines += [
            f"g{i} = Gemm(x{i}, w{i}, b{i})",
            f"r{i} = Relu(g{i})",
            f"x{i + 1} = Add(r{i}, x{i})",
        ]
        weights |= {f"w{i}": normal(16, 16, seed=i, scale=0.3), f"b{i}": normal(16, seed=90 + i)}
    text = "\n".join([*lines, f"y = Softmax(x{BLOCKS})"])
    return build(f"(float[N, 16] x0) => (float[N, 16] y) {{ {text} }}", weights)


@cache
def alone() -> dict[str, object]:
    return onnxq.analyze(blocks(), FEEDS, recipe=RECIPE).to_dict()


def measurements() -> int:
    """A Gemm alone in int8 and alone in float, an Add alone in float."""
    nodes = alone()["nodes"]
    assert isinstance(nodes, list)
    return sum(1 if node["alone_quantized"] is None else 2 for node in nodes)


@pytest.mark.parametrize(
    "model", [blocks, residual, lambda: DIGITS], ids=["blocks", "residual", "digits"]
)
def test_what_is_sent_is_the_same_network(model: Callable[[], ModelLike]) -> None:
    prepared = prepare_for(load(model()), RECIPE)
    placer = Placer(prepared, RECIPE)
    sent: tuple[Prepared, Placer] = pickle.loads(pickle.dumps((prepared, placer)))
    assert sent[0] is sent[1].prepared
    assert serialized(sent[0].ir) == serialized(prepared.ir)
    for rules in ([], [Rule(ops=("Gemm",), leave_float=True)]):
        assert sent[1](rules) == placer(rules)


def test_workers_and_executors_rank_the_same() -> None:
    assert onnxq.analyze(blocks(), FEEDS, recipe=RECIPE, workers=2).to_dict() == alone()
    with ThreadPoolExecutor(2) as pool:
        assert onnxq.analyze(blocks(), FEEDS, recipe=RECIPE, executor=pool).to_dict() == alone()


def test_a_worker_that_dies_has_its_nodes_measured_again() -> None:
    progress = KillsOnce(measurements())
    found = onnxq.analyze(blocks(), FEEDS, recipe=RECIPE, workers=2, progress=progress)
    assert found.to_dict() == alone()
    progress.check()


def test_a_foreign_pool_that_breaks_has_its_nodes_measured_here() -> None:
    progress = KillsOnce(measurements())
    with (
        SlowPool() as pool,
        pytest.warns(RuntimeWarning, match="executor broke: . of 4 shares"),
    ):
        found = onnxq.analyze(blocks(), FEEDS, recipe=RECIPE, executor=pool, progress=progress)
    assert found.to_dict() == alone()
    progress.check()


def test_a_dask_cluster_ranks_the_same_though_a_worker_dies() -> None:
    with dask_cluster() as (executor, kill):
        progress = KillsOnce(measurements(), kill)
        found = onnxq.analyze(blocks(), FEEDS, recipe=RECIPE, executor=executor, progress=progress)
    assert found.to_dict() == alone()
    progress.check()


def written(path: Path, model: onnx.ModelProto, feeds: list[Feed], **options: object) -> bytes:
    onnxq.quantize_static(  # type: ignore[call-overload]  # any of its options
        model, path, feeds, target="onnxruntime-x86", verify=False, **options
    )
    return path.read_bytes()


def shares_seen(monkeypatch: pytest.MonkeyPatch, module: object) -> list[int]:
    """How many shares the module has had run, call by call."""
    seen: list[int] = []
    run_shares = getattr(module, "run_shares")  # noqa: B009  # of either module

    def counting(call_for: object, shares: list[range], *rest: object) -> None:
        seen.append(len(shares))
        run_shares(call_for, shares, *rest)

    monkeypatch.setattr(module, "run_shares", counting)
    return seen


def test_a_target_leaves_the_same_nodes_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = shares_seen(monkeypatch, sensitivity)
    options = {"target_sqnr": 45.0, "accuracy": "fast"}
    here = written(tmp_path / "here.onnx", blocks(), FEEDS, **options)
    assert seen == []
    assert here != written(tmp_path / "no.onnx", blocks(), FEEDS, accuracy="fast")
    assert here == written(tmp_path / "there.onnx", blocks(), FEEDS, **options, workers=2)
    assert seen == [4]


def test_smoothquant_chooses_the_same_strengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain = np.where(np.arange(16) == 3, 64, 1).astype(np.float32)
    lines: list[str] = []
    weights: dict[str, Array] = {}
    for i in range(3):  # channels of which one is far larger than the others
        lines.append(
            f"n{i} = LayerNormalization(x{i}, g{i}, h{i}) a{i} = MatMul(n{i}, a{i}w) "
            f"b{i} = MatMul(n{i}, b{i}w) c{i} = Mul(a{i}, b{i}) x{i + 1} = Add(c{i}, a{i})"
        )
        weights |= {f"g{i}": gain, f"h{i}": np.zeros_like(gain)}
        weights |= {f"{x}{i}w": normal(16, 16, seed=9 * i + ord(x)) / gain[:, None] for x in "ab"}
    model = build(f"(float[N, 16] x0) => (float[N, 16] x3) {{ {' '.join(lines)} }}", weights)
    seen = shares_seen(monkeypatch, strength)
    here = written(tmp_path / "here.onnx", model, FEEDS, passes=["smoothquant"])
    assert seen == []
    assert here != written(tmp_path / "no.onnx", model, FEEDS)
    assert here == written(tmp_path / "there.onnx", model, FEEDS, passes=["smoothquant"], workers=2)
    assert seen == [2]


def test_the_command_line_has_workers_for_analyze(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, digits_data()[0][:32])
    command = ["analyze", str(DIGITS), "--data", str(images), "--json"]
    found = [CliRunner().invoke(app, [*command, *more]) for more in ([], ["--workers", "2"])]
    assert all(result.exit_code == 0 for result in found)
    one, two = (json.loads(result.stdout) for result in found)
    assert one == two
    assert len(one["nodes"]) > 1
