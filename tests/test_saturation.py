"""Saturation without VNNI: which pairs of products, how weights are made to fit, what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxq
from benchmarks.isa import folder_for, machines
from onnxq.cli.app import app
from onnxq.cli.options import Isa
from onnxq.errors import OptionError
from onnxq.isa import ISAS, host_isa, probe
from onnxq.numerics.saturation import (
    FULL,
    INT16_MAX,
    PAIR_LIMIT,
    Layout,
    add_to_fronts,
    any_pair,
    empty_fronts,
    find_pairs,
    largest,
)
from onnxq.qtypes import Array
from onnxq.session import METADATA_KEY, read_metadata
from tests.models import build, normal, rng, weights_of

AVX2 = machines()[1]
needs_qemu = pytest.mark.skipif(AVX2.missing is not None, reason=str(AVX2.missing))

# shape of a weight, and how it is summed
LAYOUTS = [
    ((6, 4, 3, 3), Layout(1, 0, 1)),
    ((6, 3, 3, 3), Layout(1, 0, 1)),
    ((9, 5, 1, 1), Layout(1, 0, 1)),
    ((6, 4, 3, 3), Layout(1, 0, 3)),
    ((16, 3, 1, 1), Layout(1, 0, 2)),
    ((6, 4, 5), Layout(1, None, 1)),
    ((9, 17), Layout(0, 1)),
    ((8, 17), Layout(0, None)),
    ((17, 9), Layout(1, 0)),
    ((3, 9, 7), Layout(1, 2)),
    ((99,), Layout(0, None)),
]


def neighbours(w: Array, layout: Layout) -> Iterator[tuple[int, float, float]]:
    """Channel and weights of each pair, by literal loops over the sums as the kernels have them."""
    rows = []
    if layout.groups is not None:
        for o in range(w.shape[0]):
            places = np.ndindex(w.shape[2:])
            rows.append((o, [w[(o, i, *k)] for k in places for i in range(w.shape[1])]))
    else:
        for rest in np.ndindex(*np.delete(w.shape, layout.axis)):
            sum_of = [
                w[(*rest[: layout.axis], k, *rest[layout.axis :])]
                for k in range(w.shape[layout.axis])
            ]
            rows.append((rest[0] if layout.channel_axis == 0 else rest[-1] if rest else 0, sum_of))
    for o, row in rows:
        for k in range(0, len(row) - 1, 2):
            yield (0 if layout.channel_axis is None else int(o)), float(row[k]), float(row[k + 1])


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_pairs_are_those_of_the_literal_loops(shape: tuple[int, ...], layout: Layout) -> None:
    w = rng(3).integers(-127, 128, shape).astype(np.float32)
    axis = layout.channel_axis
    scale = np.linspace(0.6, 1, 1 if axis is None else shape[axis], dtype=np.float32)
    scale = scale.reshape(()) if axis is None else scale
    steps = [(c, a, b, float(scale.reshape(-1)[c])) for c, a, b in neighbours(w, layout)]
    expected = [(c, a / s, b / s) for c, a, b, s in steps if abs(a + b) >= 128 * s]
    found = find_pairs(w, scale, layout, least=128)
    got = list(zip(found.channel, found.first, found.second, strict=True))
    assert len(got) > 2
    assert np.allclose(sorted(got), sorted(expected))
    mixed = bool(layout.groups and shape[1] % 2 and (layout.groups > 1 or max(shape[2:]) > 1))
    assert (found.place < 0).all() if mixed else (found.place >= 0).all()


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_one_pair_anywhere_is_found(shape: tuple[int, ...], layout: Layout) -> None:
    axis = layout.channel_axis
    scale = np.ones(() if axis is None else shape[axis], np.float32)
    seen = set()
    for i in range(60):
        w = rng(i).integers(-70, 71, shape).astype(np.float32)
        beyond = any(abs(a + b) > PAIR_LIMIT for _, a, b in neighbours(w, layout))
        assert any_pair(w, scale, layout) == beyond
        seen.add(beyond)
    assert seen == {False, True}


@pytest.mark.parametrize("groups", [1, 3])
def test_the_largest_sum_is_that_of_all_inputs_one_by_one(groups: int) -> None:
    w = rng(1).integers(-127, 128, (6, 12 // groups, 2, 2)).astype(np.float32)
    x = rng(2).normal(20, 90, (2, 12, 5, 5)).astype(np.float32) * np.float32(0.1)
    fronts = empty_fronts(6)
    add_to_fronts(fronts, x[:1], 1, 0.1, 30)
    add_to_fronts(fronts, x[1:], 1, 0.1, 30)
    q = np.clip(np.rint(x / np.float32(0.1)) + 30, 0, 255)
    pairs = find_pairs(w, np.ones(6, np.float32), Layout(1, 0, groups), least=PAIR_LIMIT + 1)
    most = largest(pairs, fronts)
    # what cannot saturate may be left out
    found = {
        (c, a, b): m if m > INT16_MAX else 0
        for c, a, b, m in zip(pairs.channel, pairs.first, pairs.second, most, strict=True)
    }
    true = {}
    for o, i, k, n in np.ndindex(6, 12 // groups // 2, 2, 2):
        a, b = w[o, 2 * i, k, n], w[o, 2 * i + 1, k, n]
        first = o // (6 // groups) * (12 // groups) + 2 * i
        if abs(a + b) > PAIR_LIMIT:
            peak = np.abs(q[:, first] * a + q[:, first + 1] * b).max()
            true[o, a, b] = peak if peak > INT16_MAX else 0
    assert found == true
    assert {peak > 0 for peak in true.values()} == {False, True}
    everything = np.abs(pairs.first + pairs.second) * 255
    assert np.array_equal(largest(pairs, FULL), everything)


def test_no_inputs_that_can_saturate_are_left_out() -> None:
    pairs = find_pairs(np.full((1, 2), 127, np.float32), np.ones(1), Layout(1, 0), least=129)
    for v in range(4, 256):
        for total in (258, 259):
            fronts = empty_fronts(1)
            x = np.array([[v - 128.49, total - v - 128.49]], np.float32)  # rounded up by a half
            add_to_fronts(fronts, x, 1, 1.0, 128)
            assert (largest(pairs, fronts)[0] > INT16_MAX) == (total * 127 > INT16_MAX)


def test_inputs_of_different_positions_may_all_be_large() -> None:
    w = np.full((2, 3, 2, 2), 100, np.float32)
    pairs = find_pairs(w, np.ones(2, np.float32), Layout(1, 0, 1), least=PAIR_LIMIT + 1)
    assert np.array_equal(largest(pairs, empty_fronts(1)), np.full(12, 200 * 255))


CONV = "(float[1,8,6,6] x) => (float[1,16,6,6] y) { y = Conv<kernel_shape=[1,1]>(x, w, b) }"


def conv(*, together: bool) -> onnx.ModelProto:
    """A Conv of which channel 3 has neighbours of one sign, or of opposite ones."""
    w = normal(16, 8, 1, 1, seed=2, scale=0.01)
    w[:, 1::2] = -np.abs(w[:, 1::2])
    w[:, 0::2] = np.abs(w[:, 0::2])
    w[3, :2, 0, 0] = [1, 0.9 if together else -0.9]
    return build(CONV, {"w": w, "b": normal(16, seed=4)})


def bright(count: int = 6) -> list[dict[str, Array]]:
    """Samples in which all inputs are large somewhere."""
    feeds = [{"x": rng(i).random((1, 8, 6, 6)).astype(np.float32)} for i in range(count)]
    for feed in feeds:
        feed["x"][..., 0, 0] = 1
    return feeds


def quantized(model: onnx.ModelProto, path: Path, isa: str | None, **more: Any) -> onnxq.Report:
    more = {"data": bright(), "target": "onnxruntime-x86", "method": "min_max", **more}
    return onnxq.quantize_static(model, path, isa=isa, verify=False, **more)


@pytest.mark.parametrize("given", ["samples", "statistics"])
def test_a_pair_that_must_saturate_is_found_and_made_to_fit(tmp_path: Path, given: str) -> None:
    model, path = conv(together=True), tmp_path / "q.onnx"
    more: dict[str, Any] = {}
    if given == "statistics":
        more = {"data": None, "statistics": onnxq.calibrate(model, bright())}
    plain = quantized(model, path, "vnni", **more)
    before = weights_of(path)
    assert plain.saturation is not None
    assert plain.saturation.possible == ("n_y",)
    assert (plain.saturation.raised, plain.saturation.seen) == ((), None)
    report = quantized(model, path, "avx2", **more)
    after = weights_of(path)
    verdict = report.saturation
    assert verdict is not None
    assert [(x.node, x.channels, x.of) for x in verdict.raised] == [("n_y", 1, 16)]
    assert verdict.possible == ()
    assert before["w_quantized"][3, :2, 0, 0].tolist() == [127, 114]
    assert 126 <= int(after["w_quantized"][3, :2, 0, 0].astype(int).sum()) <= 128
    others = np.arange(16) != 3
    assert np.array_equal(after["w_quantized"][others], before["w_quantized"][others])
    assert np.array_equal(after["w_scale"][others], before["w_scale"][others])
    assert np.array_equal(after["b_quantized_scale"], after["x_scale"] * after["w_scale"])
    assert any("exact on x86 with VNNI or AMX, and on Arm" in note for note in report.notes)


def test_what_cannot_saturate_stays_as_it_is(tmp_path: Path) -> None:
    files = []
    for isa in ("vnni", "arm", "avx2", "avx512"):
        path = tmp_path / f"{isa}.onnx"
        report = quantized(conv(together=False), path, isa)
        assert report.saturation is not None
        assert (report.saturation.possible, report.saturation.raised) == ((), ())
        assert any("AVX512, but no VNNI, too" in note for note in report.notes)
        assert read_metadata(path)["isa"] == isa
        model = onnx.load(path)
        del model.metadata_props[:]
        files.append(model.SerializeToString(deterministic=True))
    assert len(set(files)) == 1


def test_inputs_that_are_never_large_together_are_left_alone(tmp_path: Path) -> None:
    """Channels 0 and 1 take turns: other inputs could saturate, and the verdict says so."""
    feeds = bright()
    for feed in feeds:
        feed["x"][:, 1] = 0.3 * (1 - feed["x"][:, 0])
    path = tmp_path / "q.onnx"
    report = quantized(conv(together=True), path, "avx2", data=feeds)
    verdict = report.saturation
    assert verdict is not None
    assert (verdict.raised, verdict.seen, verdict.samples) == ((), (), 4)
    assert verdict.possible == ("n_y",)
    assert weights_of(path)["w_quantized"][3, 0, 0, 0] == 127
    assert any("nothing saturates on the 4 samples looked at" in note for note in report.notes)


def test_corrected_weights_fit_too(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    report = quantized(conv(together=True), path, "avx2", weight_correction=True)
    q = weights_of(path)["w_quantized"].astype(int)
    assert report.saturation is not None
    assert [x.node for x in report.saturation.raised] == ["n_y"]
    assert np.abs(q[:, 0::2] + q[:, 1::2]).max() <= PAIR_LIMIT


def test_a_depthwise_convolution_and_a_float_one_are_exact(tmp_path: Path) -> None:
    text = (
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) { y = Conv<kernel_shape=[1,1], group=4>(x, w) }"
    )
    model = build(text, {"w": np.ones((4, 1, 1, 1), np.float32)})
    data = [{"x": feed["x"][:, :4]} for feed in bright()]
    report = quantized(model, tmp_path / "q.onnx", "avx2", data=data)
    assert report.saturation is not None
    assert report.saturation.layers == 0
    assert not any("VNNI" in note for note in report.notes)
    wide = quantized(conv(together=True), tmp_path / "w.onnx", None, bits=16)
    assert wide.saturation is None


def test_an_instruction_set_that_is_named_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantized(conv(together=True), tmp_path / name, "avx512")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    unnamed = quantized(conv(together=True), tmp_path / "c", None)
    assert host_isa() in ISAS
    assert unnamed.recipe["isa"] == unnamed.settings["isa"] == host_isa()
    quantized(conv(together=True), tmp_path / "d", host_isa())
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_other_targets_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    for target in ("onnxruntime-arm", "openvino", "tensorrt"):
        report = quantized(conv(together=True), path, None, target=target)
        assert report.saturation is None
        assert "isa" not in report.recipe
        assert METADATA_KEY in {entry.key for entry in onnx.load(path).metadata_props}
        assert "isa" not in read_metadata(path)
        with pytest.raises(OptionError, match=f"isa avx2 is for target onnxruntime-x86.*{target}"):
            quantized(conv(together=True), path, "avx2", target=target)
    with pytest.raises(OptionError, match="isa must be one of avx2, avx512, vnni, arm"):
        quantized(conv(together=True), path, "sse2")


def test_the_plan_has_the_scales_of_the_file(tmp_path: Path) -> None:
    model = conv(together=True)
    statistics = onnxq.calibrate(model, bright())
    recipe = onnxq.StaticRecipe(target="onnxruntime-x86", isa="avx2", method="min_max")
    planned = onnxq.plan(model, recipe, statistics=statistics).to_dict()
    quantized(model, tmp_path / "q.onnx", "avx2", data=None, statistics=statistics)
    scale = weights_of(tmp_path / "q.onnx")["w_scale"]
    assert planned["weights"][0]["scale"] == [float(str(s)) for s in scale]


def test_the_command_line_has_it(tmp_path: Path) -> None:
    assert {isa.value for isa in Isa} == set(ISAS)
    onnx.save(conv(together=True), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.concatenate([feed["x"] for feed in bright()]))
    arguments = ["static", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "q.onnx")]
    arguments += ["--data", str(tmp_path / "x.npy"), "--target", "onnxruntime-x86"]
    done = CliRunner().invoke(app, [*arguments, "--isa", "avx2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["recipe"]["isa"] == "avx2"
    assert found["saturation"]["raised"] == [{"node": "n_y", "channels": 1, "of": 16}]
    assert found["saturation"]["layers"] == 1


@needs_qemu
def test_the_real_kernels_agree(tmp_path: Path) -> None:
    """On AVX2 the plain file saturates where it is said to; the guarded one is exact."""
    text = """(float[1,8,6,6] x) => (float[1,4,6,6] y) {
        h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
        r = Relu(h)
        y = Conv<kernel_shape=[1,1]>(r, v)
    }"""
    w = np.abs(normal(32, 8, 3, 3, seed=1))
    model = build(text, {"w": w, "v": np.abs(normal(4, 32, 1, 1, seed=2))})
    feeds = np.stack([feed["x"] for feed in bright(3)])
    folders = []
    for isa in ("vnni", "avx2"):
        path = tmp_path / f"{isa}.onnx"
        report = quantized(model, path, isa)
        assert report.saturation is not None
        assert len(report.saturation.raised) == (2 if isa == "avx2" else 0)
        folders.append(folder_for(tmp_path, isa, path, feeds))
    # what tells this machine's instruction set
    full = np.full((1, 1, 4), 255, np.uint8)
    folders.append(folder_for(tmp_path, "probe", ir.to_proto(probe()), full))
    here, there = machines()[0].run(folders), AVX2.run(folders)
    assert np.array_equal(here[1], there[1])
    assert (there[2] != 4 * 255 * 127).all()
    if host_isa() == "vnni":
        assert not np.array_equal(here[0], there[0])
        assert (here[2] == 4 * 255 * 127).all()
