"""One int8 file on other instruction sets: what each calculates, on onnxruntime's own kernels.

onnxruntime picks its kernels by what the processor has, so an emulated one runs the real code of
AVX2 or Arm64 (some 200 times as slowly, and exactly). For each network two files are made, for
processors with VNNI and for AVX2 without, and run on

    this machine
    avx2     qemu-x86_64 -cpu Haswell (Debian: qemu-user)
    arm      qemu-aarch64, in the directory that ONNXQ_ARM_ROOT names (below)

on the first validation images: SQNR against fp32, and against the same file on this machine. With
--layers each weighted node is also run alone, with the same integers going in here and on AVX2: the
nodes that differ are those that saturate, compared with those whose scales --isa avx2 raised.
(AVX512 without VNNI has the instruction of AVX2; no qemu of today emulates it.)

    python -m benchmarks.isa [NETWORK ...] [--images 100] [--layers] [--on avx2] [--file FILE]

The root for Arm, made on Debian 12; any onnxruntime that the emulator bears (1.26 does) will do:

    dpkg --add-architecture arm64 && apt-get update && mkdir -p root/site
    apt-get download python3.11:arm64 {,lib}python3.11-minimal:arm64 libpython3.11-stdlib:arm64 \\
        libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64 zlib1g:arm64 libexpat1:arm64 libffi8:arm64 \\
        libssl3:arm64 libbz2-1.0:arm64 liblzma5:arm64 libgomp1:arm64 libcrypt1:arm64
    for package in *.deb; do dpkg -x $package root; done
    pip download --no-deps --only-binary=:all: --python-version 3.11 \\
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \\
        onnxruntime==1.26.0 numpy==2.4.6
    for wheel in *.whl; do unzip -q $wheel -d root/site; done
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from rich.console import Console
from rich.table import Table

import onnxq
from benchmarks.assets import NETWORKS, Images, Network, load_images
from benchmarks.common import Array, plain_session
from onnxq.numerics.metrics import ErrorSums
from onnxq.report import Report

IMAGENET = [name for name, network in NETWORKS.items() if network.path.startswith("imagenet")]
WEIGHTED = ("Conv", "Gemm", "MatMul")

# Runs model.onnx of each directory on each row of its feeds.npy; has numpy and onnxruntime only
CHILD = """
import sys, numpy, onnxruntime
for folder in sys.argv[1:]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    active = onnxruntime.InferenceSession(folder + "/model.onnx", options)
    name = active.get_inputs()[0].name
    rows = numpy.load(folder + "/feeds.npy", mmap_mode="r")
    found = [active.run(None, {name: numpy.array(row)})[0] for row in rows]
    numpy.save(folder + "/result.npy", numpy.stack(found))
"""


@dataclass(frozen=True)
class Machine:
    """Something that runs Python. missing: why it does not, if so."""

    name: str
    command: tuple[str, ...]
    missing: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, folders: Sequence[Path]) -> list[Array]:
        """The results of the model in each folder."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [*self.command, "-c", CHILD, *map(str, folders)]
        done = subprocess.run(
            command, env={**environment, **self.environment}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr[-2000:]}")
        return [np.load(folder / "result.npy") for folder in folders]


def machines() -> list[Machine]:
    """All; this one first."""
    haswell = shutil.which("qemu-x86_64")
    aarch64 = shutil.which("qemu-aarch64")
    root = Path(os.environ.get("ONNXQ_ARM_ROOT", ""))
    python = root / "usr/bin/python3.11"
    lacking = None if python.is_file() else "ONNXQ_ARM_ROOT names no root with Python 3.11"
    return [
        Machine("this machine", (sys.executable,)),
        Machine(
            "avx2",
            (haswell or "", "-cpu", "Haswell", sys.executable),
            None if haswell else "no qemu-x86_64",
        ),
        Machine(
            "arm",
            (aarch64 or "", "-cpu", "max", "-L", str(root), str(python)),
            lacking if aarch64 else "no qemu-aarch64",
            {"PYTHONPATH": str(root / "site")},
        ),
    ]


def folder_for(parent: Path, name: str, model: Path | onnx.ModelProto, feeds: Array) -> Path:
    """A directory as the child wants it."""
    folder = parent / name
    folder.mkdir()
    if isinstance(model, Path):
        shutil.copy(model, folder / "model.onnx")
    else:
        onnx.save(model, folder / "model.onnx")
    np.save(folder / "feeds.npy", feeds)
    return folder


def sqnr(reference: Array, found: Array) -> float:
    """Of all samples together, each row relative to its mean (as everywhere in onnxq)."""
    sums = ErrorSums(centred=True)
    sums.add(reference, found)
    return sums.sqnr


# single nodes


def alone(model: onnx.ModelProto) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Each weighted node with its Q and DQ as a model of its own: node, integers going in, model.

    What stands between the node and its QuantizeLinear (a Relu or Clip) comes along.
    """
    graph = model.graph
    giver = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        inputs = [giver.get(name) for name in node.input]
        if node.op_type not in WEIGHTED or any(
            dq is None or dq.op_type != "DequantizeLinear" for dq in inputs
        ):
            continue
        chain = [*(dq for dq in inputs if dq is not None), node]
        while chain[-1].op_type != "QuantizeLinear" and len(readers[chain[-1].output[0]]) == 1:
            chain += readers[chain[-1].output[0]]
        if chain[-1].op_type != "QuantizeLinear" or node.input[1] not in giver:
            continue
        x = chain[0].input[0]
        used = [constants[n] for part in chain for n in part.input if n in constants and n != x]
        unique = list({tensor.name: tensor for tensor in used}.values())
        types = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT8)
        ends = [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip((x, chain[-1].output[0]), types, strict=True)
        ]
        part = helper.make_graph(chain, "alone", ends[:1], ends[1:], unique)
        yield (
            node.name,
            x,
            helper.make_model(part, opset_imports=model.opset_import, ir_version=8),
        )


def integers_going_in(model: onnx.ModelProto, names: Sequence[str], feeds: Array) -> list[Array]:
    """What the named tensors hold on this machine, [samples, ...] each."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
        for name in dict.fromkeys(names)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(shown, path)
        active = plain_session(path)
        given = active.get_inputs()[0].name
        rows = [active.run(list(names), {given: row}) for row in feeds]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def saturating(path: Path, feeds: Array, here: Machine, there: Machine, folder: Path) -> list[str]:
    """Weighted nodes that give other integers there than here when the same go in."""
    model = onnx.load(str(path))
    parts = list(alone(model))
    given = integers_going_in(model, [x for _, x, _ in parts], feeds)
    folders = [
        folder_for(folder, f"{path.stem}-{i}", part, x)
        for i, ((_, _, part), x) in enumerate(zip(parts, given, strict=True))
    ]
    results = zip(here.run(folders), there.run(folders), strict=True)
    differ = [not np.array_equal(a, b) for a, b in results]
    return [name for (name, _, _), other in zip(parts, differ, strict=True) if other]


# the tables


def measure(
    network: Network,
    files: Mapping[str, Path],
    images: Images,
    others: Sequence[Machine],
    table: Table,
    folder: Path,
) -> None:
    """A row for each file on this machine and the others."""
    feeds = np.stack([images[i][images_input(network)] for i in range(len(images))])
    active = plain_session(network.file)
    reference = np.stack([active.run(None, {images_input(network): row})[0] for row in feeds])
    for isa, path in files.items():
        place = folder_for(folder, f"{network.name}-{isa}", path, feeds)
        here = None
        for machine in (machines()[0], *others):
            if machine.missing:
                table.add_row(network.name, isa, machine.name, machine.missing)
                continue
            start = time.perf_counter()
            (found,) = machine.run([place])
            here = found if here is None else here
            same = float((found.argmax(-1) == reference.argmax(-1)).mean())
            table.add_row(
                network.name,
                isa,
                machine.name,
                f"{sqnr(reference, found):.2f}",
                "equal" if np.array_equal(here, found) else f"{sqnr(here, found):.2f}",
                f"{same:.1%}",
                f"{time.perf_counter() - start:.0f}",
            )


def images_input(network: Network) -> str:
    return str(plain_session(network.file).get_inputs()[0].name)


def quantize(network: Network, isa: str, samples: int, path: Path) -> Report:
    calibration = load_images(network, "calibration", samples, images_input(network))
    return onnxq.quantize_static(
        network.file, path, calibration, target="onnxruntime-x86", isa=isa, verify=False
    )


def show_layers(
    network: Network, files: Mapping[str, Path], report: Report, feeds: Array, folder: Path
) -> None:
    """Nodes that saturate, in fact and as predicted."""
    here, avx2 = machines()[:2]
    verdict = report.saturation
    assert verdict is not None
    predicted = {layer.node for layer in verdict.raised}
    found = set(saturating(files["vnni"], feeds, here, avx2, folder))
    left = saturating(files["avx2"], feeds, here, avx2, folder)
    print(f"{network.name}: {len(found)} of {verdict.layers} layers saturate on AVX2")
    print(f"  predicted {len(predicted)}, of these in fact {len(predicted & found)}")
    print(f"  not predicted: {', '.join(sorted(found - predicted)) or 'none'}")
    print(f"  predicted only: {', '.join(sorted(predicted - found)) or 'none'}")
    print(f"  saturate in the file for avx2: {', '.join(left) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=IMAGENET, metavar="NETWORK")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=300, help="to calibrate with")
    parser.add_argument("--layers", action="store_true", help="run each weighted node alone, too")
    parser.add_argument("--layer-images", type=int, default=8)
    parser.add_argument("--file", type=Path, help="run this one; the NETWORK is its float model")
    parser.add_argument("--on", choices=("avx2", "arm"), help="only there and here; default both")
    arguments = parser.parse_args()
    others = [m for m in machines()[1:] if arguments.on in (None, m.name)]
    columns = ("network", "file for", "runs on", "SQNR dB", "to this machine", "agreement", "s")
    table = Table(*columns)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network in (NETWORKS[n] for n in arguments.networks):
            images = load_images(network, "validation", arguments.images, images_input(network))
            if arguments.file is not None:
                measure(network, {"as it is": arguments.file}, images, others, table, folder)
                continue
            files = {isa: folder / f"{network.name}-{isa}.onnx" for isa in ("vnni", "avx2")}
            reports = {
                isa: quantize(network, isa, arguments.samples, path) for isa, path in files.items()
            }
            measure(network, files, images, others, table, folder)
            if arguments.layers and machines()[1].missing is None:
                feeds = np.stack([images[i][images_input(network)] for i in range(len(images))])
                some = feeds[: arguments.layer_images]
                show_layers(network, files, reports["avx2"], some, folder)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
