"""Statistics do not depend on how the samples come; every source of samples gives the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.calibration import Calibration
from onnxq.data.samples import InputSpec, open_samples
from onnxq.demo import DIGITS, digits_data
from onnxq.errors import CalibrationError, DataError
from onnxq.numerics.ranges import METHODS
from onnxq.qtypes import Array
from onnxq.targets import TARGETS

IMAGES = digits_data()[0][:12]
SPECS = [InputSpec("image", np.dtype(np.float32), (None, 1, 8, 8))]


def same(a: Calibration, b: Calibration) -> bool:
    if a.samples != b.samples or a.tensors.keys() != b.tensors.keys():
        return False
    for name, x in a.tensors.items():
        y = b.tensors[name]
        assert x is not None
        assert y is not None
        equal = [
            (x.samples, x.minimum, x.maximum) == (y.samples, y.minimum, y.maximum),
            np.array_equal(x.extremes.limbs, y.extremes.limbs),
            x.counted.exponent == y.counted.exponent,
            np.array_equal(x.counted.positive, y.counted.positive),
            np.array_equal(x.counted.negative, y.counted.negative),
        ]
        if not all(equal):
            return False
    return True


@pytest.fixture(scope="module")
def whole() -> Calibration:
    return onnxq.calibrate(DIGITS, IMAGES)


@pytest.mark.parametrize("batch_size", [2, 5, 12])
def test_batch_size_does_not_matter(whole: Calibration, batch_size: int) -> None:
    assert same(whole, onnxq.calibrate(DIGITS, IMAGES, batch_size=batch_size))


def test_order_and_split_do_not_matter(whole: Calibration) -> None:
    assert same(whole, onnxq.calibrate(DIGITS, IMAGES[::-1].copy()))
    parts = [onnxq.calibrate(DIGITS, part) for part in (IMAGES[7:], IMAGES[:3], IMAGES[3:7])]
    assert same(whole, parts[0].merge(parts[1]).merge(parts[2]))
    assert not same(whole, onnxq.calibrate(DIGITS, IMAGES[:11]))


def test_saved_statistics_are_the_same_and_so_are_their_bytes(
    whole: Calibration, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    whole.save(first)
    Calibration.load(first).save(second)
    assert same(whole, Calibration.load(second))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_one_file_serves_every_method_and_target(
    whole: Calibration, method: str, target: str
) -> None:
    model = onnxq.quantize_static(DIGITS, statistics=whole, method=method, target=target)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 5


def test_statistics_of_another_model_or_selection_are_refused(whole: Calibration) -> None:
    other = Calibration("0" * 64, 1, {})
    with pytest.raises(CalibrationError, match="another model"):
        onnxq.quantize_static(DIGITS, statistics=other)
    with pytest.raises(CalibrationError, match="another model"):
        whole.merge(other)
    lacking = Calibration(whole.fingerprint, 1, {})
    with pytest.raises(CalibrationError, match="nothing of tensor"):
        onnxq.quantize_static(DIGITS, statistics=lacking)


class Reader:
    def __init__(self) -> None:
        self._items: Iterator[Array] = iter(IMAGES)

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._items, None)
        return None if image is None else {"image": image[None]}


def sources(folder: Path) -> dict[str, Any]:
    np.save(folder / "all.npy", IMAGES)
    np.savez(folder / "all.npz", image=IMAGES, labels=np.arange(12))
    (folder / "each").mkdir()
    for i, image in enumerate(IMAGES):
        np.savez(folder / "each" / f"{i:02}.npz", image=image[None])
    return {
        "array": IMAGES,
        "mapping": {"image": IMAGES},
        "dicts": [{"image": image[None]} for image in IMAGES],
        "arrays without a batch axis": list(IMAGES),
        "tuples": [(image[None],) for image in IMAGES],
        "generator": (image[None] for image in IMAGES),
        "batches": iter([IMAGES[:5], IMAGES[5:]]),
        "list of batches": [IMAGES[:5], IMAGES[5:]],
        "reader": Reader(),
        "npy": folder / "all.npy",
        "npz with labels": str(folder / "all.npz"),
        "directory": folder / "each",
    }


def test_every_source_gives_the_same_samples_again_and_again(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        samples = open_samples(source, SPECS)
        assert len(samples) == len(IMAGES), name
        for i in (11, 0, 4, 4):
            assert np.array_equal(samples[i]["image"], IMAGES[i : i + 1]), name


def test_limit_is_kept_by_every_source(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        assert len(open_samples(source, SPECS, limit=3)) == 3, name


def test_a_source_without_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty: list[Any] = [[], iter([]), np.zeros((0, 1, 8, 8), np.float32), tmp_path / "empty"]
    for source in empty:
        with pytest.raises(DataError, match=r"empty|holds no"):
            open_samples(source, SPECS)
