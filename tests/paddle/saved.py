"""Run in a process of its own: writes small_convnet as Paddle before 3.0 wrote models.

    python -m tests.paddle.saved DIRECTORY

two/   inference.pdmodel + inference.pdiparams
one/   __model__ + __params__
many/  __model__ + a file for each parameter
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main(folder: Path) -> None:
    os.environ["FLAGS_enable_pir_api"] = "0"  # noqa: SIM112  # Paddle's own spelling
    import paddle

    from benchmarks.paddle_networks import PADDLE_NETWORKS, save

    save(PADDLE_NETWORKS["small_convnet"], folder / "two" / "inference")
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    program, _, _ = paddle.static.load_inference_model(str(folder / "two" / "inference"), executor)
    kept = [v for v in program.list_vars() if v.persistable and v.name not in ("feed", "fetch")]
    (folder / "one").mkdir()
    (folder / "many").mkdir()
    paddle.static.io.save_vars(executor, str(folder / "many"), program, vars=kept)
    for name in ("one", "many"):
        shutil.copy(folder / "two" / "inference.pdmodel", folder / name / "__model__")
    shutil.copy(folder / "two" / "inference.pdiparams", folder / "one" / "__params__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
