"""The child's entry: `python -m onnxq_paddle.worker REQUEST ANSWER`, two JSON files."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from onnxq.errors import OnnxqError

# Task: the module that has it and its function, which takes the request as keyword arguments
TASKS = {
    "convert": ("onnxq_paddle.worker.convert", "convert"),
    "run": ("onnxq_paddle.worker.running", "run"),
    "emit": ("onnxq_paddle.worker.emit", "emit"),
}


def main() -> None:
    asked, answered = map(Path, sys.argv[1:3])
    order = json.loads(asked.read_text())
    module, name = TASKS[order["task"]]
    try:
        result = getattr(importlib.import_module(module), name)(**order["request"])
        answer = {"result": result}
    except OnnxqError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    answered.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
