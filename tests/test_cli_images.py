"""Images by the command line alone: the same figures as from arrays."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxq
from benchmarks import assets
from onnxq.demo import DIGITS, digits_data
from tests.test_cli import figures
from tests.test_cli import onnxq as command

CALIBRATE, COMPARE = 24, 40
CLASSES = assets.ASSETS / "data" / "imagenet" / "classes.txt"
OPTIONS: Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "squeezenet_v1.1": (("--channels", "BGR", "--scale", 1, "--mean", "104,117,123"), ()),
    "mobilenet_v2_1.0": (
        ("--crop", 224, "--scale", 1, "--mean", 127.5, "--std", 127.5),
        ("--label-offset", 1),
    ),
    "tinydarknet": (
        ("--crop", 224, "--scale", 1, "--std", 255),
        (
            *("--label-classes", CLASSES),
            "--model-classes",
            assets.ASSETS / "models" / "imagenet" / "tinydarknet_class_order.txt",
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_real_networks(networks: dict[str, assets.Network], tmp_path: Path, name: str) -> None:
    network, (images, labels) = networks[name], OPTIONS[name]
    folder = assets.ASSETS / "data" / "imagenet"
    out, by_arrays = tmp_path / "cli.onnx", tmp_path / "arrays.onnx"
    data = ("--data", folder / "calibration.csv", "--samples", CALIBRATE)
    report = figures("static", network.file, "-o", out, *data, *images, "--target", "openvino")
    data = ("--data", folder / "validation.csv", "--samples", COMPARE)
    found = figures("compare", network.file, out, *data, *images, *labels)

    name = onnxq.inspect(network.file).inputs[0].name
    held = CALIBRATE // 8
    calibration = assets.load_images(network, "calibration", CALIBRATE + held, name)
    validation = assets.load_images(network, "validation", COMPARE, name)
    same = onnxq.quantize_static(
        network.file, by_arrays, calibration, samples=CALIBRATE, target="openvino"
    )
    assert out.read_bytes() == by_arrays.read_bytes()
    assert same.to_dict()["verification"] == report["verification"]
    expected = onnxq.compare(
        network.file,
        by_arrays,
        validation,
        labels=validation.labels,
        label_offset=int(network.background),
    ).to_dict()
    assert found["outputs"] == json.loads(json.dumps(expected["outputs"]))
    assert found["labels"] == json.loads(json.dumps(expected["labels"]))
    assert found["labels"]["top1"][0] > 0.5
    scores = np.concatenate(
        [onnxq.load_session(network.file).run(None, dict(validation[i]))[0] for i in range(COMPARE)]
    )
    hits = network.scores(scores).argmax(axis=1) == validation.labels
    assert found["labels"]["top1"][0] == pytest.approx(hits.mean())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The digits as PNG files, with a CSV of their labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    _, images, labels = digits_data()
    with open(folder / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for i in range(48):
            pixels = np.rint(images[i, 0] * 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03}.png")
            rows.writerow([f"{i:03}.png", labels[i]])
    return folder


@pytest.mark.parametrize("source", ["directory", "csv"])
def test_embedded_network(tmp_path: Path, pictures: Path, source: str) -> None:
    data = pictures if source == "directory" else pictures / "list.csv"
    out, recipe = tmp_path / "q.onnx", tmp_path / "r.toml"
    options = ("--data", data, "--scale", "1/16", "--method", "min_max")
    report = figures("static", DIGITS, "-o", out, *options)
    _, images, labels = digits_data()
    arrays = onnxq.quantize_static(DIGITS, tmp_path / "a.onnx", images[:48], method="min_max")
    assert (tmp_path / "a.onnx").read_bytes() == out.read_bytes()
    assert report["verification"] == arrays.to_dict()["verification"]
    # the recipe of the call gives the same bytes
    done = command("recipe", DIGITS, *options)
    assert done.returncode == 0, done.stderr
    recipe.write_text(done.stdout)
    figures("static", DIGITS, "-o", tmp_path / "b.onnx", "--recipe", recipe)
    assert (tmp_path / "b.onnx").read_bytes() == out.read_bytes()
    found: Any = figures("compare", DIGITS, out, "--data", data, "--scale", "1/16")
    if source == "directory":
        assert found["labels"] is None
    else:
        session = onnxq.load_session(DIGITS)
        top = session.run(None, {"image": images[:48]})[0].argmax(axis=1)
        assert found["labels"]["top1"][0] == (top == labels[:48]).mean()
