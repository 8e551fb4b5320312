"""Workers, executors and runs that were killed: the same bits as one process that ran through."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.calibration import Calibration
from onnxq.collect import Request, calibrate
from onnxq.collect.shares import LEAST, MOST
from onnxq.data.samples import input_specs, open_samples
from onnxq.demo import DIGITS, digits_data
from onnxq.errors import CalibrationError, OptionError
from onnxq.model import load
from onnxq.prepare import prepare
from onnxq.spread import shares_of
from tests.dying import KillsOnce, SlowPool, dask_cluster
from tests.test_collect import same

IMAGES = digits_data()[0][: 8 * LEAST + 3]


@pytest.fixture(scope="module")
def whole() -> Calibration:
    return onnxq.calibrate(DIGITS, IMAGES)


@pytest.mark.parametrize("executor", [ThreadPoolExecutor(1), 1, 3, 100])
@pytest.mark.parametrize("count", [1, LEAST, 1000])
def test_shares_are_all_samples_once(count: int, executor: Executor | int) -> None:
    shares = shares_of(range(5, 5 + count), executor, LEAST, MOST)
    assert [i for share in shares for i in share] == list(range(5, 5 + count))


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_the_number_of_threads_does_not_matter(whole: Calibration, cores: int) -> None:
    prepared = prepare(load(DIGITS), min_opset=13, static=True)
    samples = open_samples(IMAGES, input_specs(prepared.ir))
    request = Request(tuple(sorted(whole.tensors)))
    assert same(whole, calibrate(prepared, samples, request, cores=cores, batch_size=3))


def test_ranges_alone_give_the_same_model_as_ranges_of_histograms(whole: Calibration) -> None:
    for method in ("min_max", "abs_max", "avg"):
        alone = onnxq.quantize_static(
            DIGITS, data=IMAGES, method=method, accuracy="none", verify=False
        )
        served = onnxq.quantize_static(
            DIGITS, statistics=whole, method=method, accuracy="none", verify=False
        )
        assert alone.SerializeToString() == served.SerializeToString(), method


def test_executors_give_the_same_bits(whole: Calibration) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert same(whole, onnxq.calibrate(DIGITS, IMAGES, executor=pool))


def test_a_worker_that_dies_has_its_share_run_again(whole: Calibration) -> None:
    progress = KillsOnce(len(IMAGES))
    assert same(whole, onnxq.calibrate(DIGITS, IMAGES, workers=2, progress=progress))
    assert progress.seen[-1] == len(IMAGES)
    assert (
        len(progress.seen)
        == len(set(progress.seen))
        == len(shares_of(range(len(IMAGES)), 2, LEAST, MOST))
    )


def test_a_foreign_pool_that_breaks_has_its_shares_run_here(whole: Calibration) -> None:
    progress = KillsOnce(len(IMAGES))
    with (
        SlowPool() as pool,
        pytest.warns(RuntimeWarning, match="executor broke"),
    ):
        assert same(whole, onnxq.calibrate(DIGITS, IMAGES, executor=pool, progress=progress))


def test_a_dask_cluster_gives_the_same_bits_though_a_worker_dies(whole: Calibration) -> None:
    with dask_cluster() as (executor, kill):
        progress = KillsOnce(len(IMAGES), kill)
        assert same(whole, onnxq.calibrate(DIGITS, IMAGES, executor=executor, progress=progress))
        assert progress.seen[-1] == len(IMAGES)


def test_workers_report_the_sample_that_fails() -> None:
    bad = IMAGES.copy()
    bad[40] = 3e38  # finite, and an overflow behind the first Conv
    with pytest.raises(CalibrationError, match=r"NaN or Inf for sample 40"):
        onnxq.calibrate(DIGITS, bad, workers=2)
    with pytest.raises(CalibrationError, match=r"NaN or Inf for sample 40"):
        onnxq.calibrate(DIGITS, bad)


def test_workers_and_an_executor_are_one_too_many() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(OptionError, match="either workers or"):
        onnxq.calibrate(DIGITS, IMAGES, workers=2, executor=pool)
    with pytest.raises(OptionError, match="at least 1"):
        onnxq.calibrate(DIGITS, IMAGES, workers=0)


KILLED = """
import os, signal, sys
import numpy as np
import onnxq
from onnxq.collect import checkpoint
checkpoint.EVERY = 0.0

def progress(done, of):
    if done >= 50:
        os.kill(os.getpid(), signal.SIGKILL)

onnxq.calibrate(sys.argv[1], np.load(sys.argv[2]), checkpoint=sys.argv[3], progress=progress)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The statistics of a run that was killed when 50 samples were done."""
    data, path = tmp_path / "data.npy", tmp_path / "statistics"
    np.save(data, IMAGES)
    command = [sys.executable, "-c", KILLED, str(DIGITS), str(data), str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    return path


def test_a_run_that_was_killed_goes_on(whole: Calibration, killed: Path, tmp_path: Path) -> None:
    held = Calibration.load(killed).samples
    assert LEAST <= held <= 50
    seen: list[int] = []

    def progress(done: int, _of: int) -> None:
        seen.append(done)

    resumed = onnxq.calibrate(DIGITS, IMAGES, checkpoint=killed, progress=progress)
    assert same(whole, resumed)
    assert (min(seen), max(seen), len(seen)) == (held + 1, len(IMAGES), len(IMAGES) - held)
    through = tmp_path / "through"
    onnxq.calibrate(DIGITS, IMAGES, checkpoint=through)
    assert killed.read_bytes() == through.read_bytes()
    assert same(whole, onnxq.calibrate(DIGITS, IMAGES, checkpoint=through))  # nothing left to do


def test_a_run_goes_on_with_workers(whole: Calibration, killed: Path) -> None:
    assert same(whole, onnxq.calibrate(DIGITS, IMAGES, checkpoint=killed, workers=2))


def test_unfinished_statistics_are_used_for_nothing_else(killed: Path) -> None:
    with pytest.raises(CalibrationError, match=rf"of {len(IMAGES)} samples: .* interrupted"):
        onnxq.quantize_static(DIGITS, statistics=killed)
    with pytest.raises(CalibrationError, match="of other samples"):
        onnxq.calibrate(DIGITS, IMAGES[:90], checkpoint=killed)
    with pytest.raises(CalibrationError, match="of other tensors"):
        onnxq.calibrate(DIGITS, IMAGES, checkpoint=killed, exclude_ops=["Gemm"])
