"""Fingerprint: which prepared model statistics belong to."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from onnxq.prepare import Prepared

__all__ = ["fingerprint"]


def fingerprint(prepared: Prepared) -> str:
    """SHA-256 of the prepared model: nodes, names and weights."""
    digest = hashlib.sha256()
    for graph in prepared.ir.graphs():
        for value in graph.inputs:
            digest.update(f"input {value.name} {value.dtype} {value.shape}\n".encode())
        for node in graph:
            attributes = sorted(
                f"{a.name}={a.value!r}" for a in node.attributes.values() if _plain(a)
            )
            names = [v.name if v is not None else None for v in (*node.inputs, *node.outputs)]
            digest.update(f"{node.domain} {node.op_type} {names} {attributes}\n".encode())
        for name, value in sorted(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.tobytes())
            if isinstance(tensor, ir.ExternalTensor):
                tensor.release()
    return digest.hexdigest()


def _plain(attribute: ir.Attr) -> bool:
    return attribute.type not in (
        ir.AttributeType.GRAPH,
        ir.AttributeType.GRAPHS,
        ir.AttributeType.TENSOR,
        ir.AttributeType.TENSORS,
    )
