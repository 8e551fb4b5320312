"""What the figures were measured on: the processor, its instruction sets, and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["machine", "pin", "versions"]

ROOT = Path(__file__).resolve().parent.parent
CORES = 2
# Instruction sets for which onnxruntime has kernels of its own: x86, then Arm
INSTRUCTION_SETS = (
    ["avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"]
    + ["avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"]
    + ["asimd", "asimddp", "i8mm", "sve", "sve2", "bf16"]
)
PACKAGES = ("onnxq", "numpy", "onnx", "onnx-ir", "onnxruntime")


def pin() -> None:
    """Two cores for this process and its children, as everything is measured on two."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def machine() -> dict[str, Any]:
    """The processor as the system describes it; call it before `pin`."""
    fields = _cpu()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": os.cpu_count(),
        "cores_used": min(CORES, os.cpu_count() or CORES),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def versions() -> dict[str, str]:
    """Of the packages that run in this process, and the commit of this checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found
