"""Child processes: where Paddle is imported, whatever the user's own process has imported.

A legacy program needs `FLAGS_enable_pir_api=0` before Paddle is imported, paddle2onnx prints to
stdout from C++, and a broken model file can abort the process. All of that stays in the child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onnxq.errors import ConversionError, DataError, OnnxqError, OptionError, one_line

__all__ = ["INSTALL", "SUPPORTED", "call", "check_installed"]

INSTALL = "pip install 'onnxq[paddle]'"
SUPPORTED = "Paddle 3.0 and later (3.x)"
ERRORS: dict[str, type[OnnxqError]] = {
    error.__name__: error for error in (ConversionError, DataError, OptionError)
}
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu")
LAST_LINES = 12
# What Paddle says whenever it is imported or runs
CHATTER = re.compile(
    r"No ccache found|warnings\.warn|^[IW]\d{4} .*(Executor|not support input out)"
)


def check_installed() -> None:
    """Paddle and paddle2onnx are there, in versions that work. Imports neither.

    Raises ConversionError with the command that installs them.
    """
    for module in ("paddle", "paddle2onnx"):
        if importlib.util.find_spec(module) is None:
            raise ConversionError(
                f"Paddle models need paddlepaddle and paddle2onnx, and {module} is not installed: "
                f"{INSTALL} (they exist for Python 3.11 and 3.12)"
            )
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if found.split(".")[0] not in ("3", "0"):  # 0.0.0 is a build from source
            raise ConversionError(
                f"{package} {found} is not supported: {SUPPORTED} is; {INSTALL} --upgrade"
            )
    try:
        found = version("paddle2onnx")
    except PackageNotFoundError as error:  # a directory of that name, say
        raise ConversionError(f"paddle2onnx is not installed: {INSTALL}") from error
    if tuple(map(int, found.split(".")[:2])) < (2, 1):
        raise ConversionError(
            f"paddle2onnx {found} is not supported: 2.1 and later is; {INSTALL} --upgrade"
        )


def call(task: str, request: Mapping[str, Any], *, legacy: bool = False) -> dict[str, Any]:
    """Run a task of `onnxq_paddle.worker` in a process of its own; returns what it returned.

    request: its keyword arguments, plain values (paths as text).
    legacy: with Paddle's programs from before 3.0 in place of PIR.
    Raises what the task raised, and ConversionError if the process died.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="onnxq-paddle-") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps({"task": task, "request": dict(request)}))
        environment = {
            **os.environ,
            "FLAGS_enable_pir_api": "0" if legacy else "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUTF8": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        for name in ("CPU_NUM", "PYTHONWARNINGS"):
            environment.pop(name, None)
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "onnxq_paddle.worker", str(asked), str(answered)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
        )
        if not answered.is_file():
            raise ConversionError(
                f"Paddle's process ended with status {ended.returncode} while it did {task} "
                f"of {request.get('model')}: {_last_words(ended.stderr or ended.stdout)}"
            )
        answer: dict[str, Any] = json.loads(answered.read_text())
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    result: dict[str, Any] = answer["result"]
    return result


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not CHATTER.search(line)]
    return one_line(Exception(" | ".join(lines[-LAST_LINES:]))) or "it said nothing"
