"""Resize and Upsample: the variants that Paddle's interpolation has, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]

KINDS = {
    "nearest": {1: "nearest_interp_v2", 2: "nearest_interp_v2", 3: "nearest_interp_v2"},
    "linear": {1: "linear_interp_v2", 2: "bilinear_interp_v2", 3: "trilinear_interp_v2"},
    "cubic": {2: "bicubic_interp_v2"},
}
WHOLE = 1e-4
LAYOUTS = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def _resize(op: Op) -> None:
    x = op.x()
    rank = op.rank(x)
    count = rank - 2
    scales, sizes = _targets(op, rank)
    mode = op.text("mode", "nearest")
    if mode not in KINDS or count not in KINDS[mode]:
        raise op.refuse(f"Resize in {mode} mode of {rank} dimensions: Paddle has none")
    flat = mode == "nearest" and count == 1
    attributes = {
        "interp_method": KINDS[mode][count].removesuffix("_interp_v2"),
        "data_layout": LAYOUTS[2 if flat else count],
        "out_d": -1,
        "out_h": -1,
        "out_w": -1,
        "scale": [],
        **_coordinates(op, mode, scales, sizes, op.shape(x)[2:]),
    }
    inputs = {"X": op.unsqueezed(x, [2]) if flat else x}
    if scales is not None:
        _check_whole(op, scales[2:], op.shape(x)[2:])
        attributes["scale"] = [1.0] * flat + [float(v) for v in scales[2:]]
    elif sizes is not None:
        wanted = [1] * flat + [int(v) for v in sizes[2:]]
        attributes.update(zip(("out_w", "out_h", "out_d"), reversed(wanted), strict=False))
    else:
        given = op.sliced(op.cast(op.x(3), "int32"), [0], [2], [rank])
        inputs["OutSize"] = op.concat([op.fixed([1], "int32"), given], 0) if flat else given
    result = op.run(KINDS[mode][count], inputs, attributes, to=None if flat else op.y())
    if flat:
        op.squeezed(result, [2], op.y())


def _check_whole(op: Op, scales: Sequence[float], spatial: Sequence[int]) -> None:
    """Where the size is no whole number, ONNX and Paddle round, and go on, differently."""
    for scale, size in zip(scales, spatial, strict=True):
        whole = scale if size < 0 else scale * size
        if abs(whole - round(whole)) > WHOLE:
            raise op.refuse(f"Resize by {scale:g} of {'any size' if size < 0 else size}")


def _targets(op: Op, rank: int) -> tuple[list[float] | None, list[int] | None]:
    """Scales or sizes of all dimensions, where they are constant."""
    axes = [a % rank for a in op.integers("axes", range(rank))]
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise op.refuse("Resize that keeps the aspect ratio")
    by_scale = 1 if op.node.op_type == "Upsample" else 2
    scales: list[float] | None = None
    sizes: list[int] | None = None
    if op.has(by_scale) and (op.array(by_scale) is None or op.constant(by_scale, "").size):
        given = op.constant(by_scale, "scales").reshape(-1).tolist()
        scales = [given[axes.index(i)] if i in axes else 1.0 for i in range(rank)]
        leading: Sequence[float] = scales[:2]
        wanted: Sequence[float] = (1.0, 1.0)
    else:
        known = op.array(3)
        if known is None:
            return None, None
        own = op.shape(op.x())
        found = [int(v) for v in known.reshape(-1)]
        sizes = [found[axes.index(i)] if i in axes else own[i] for i in range(rank)]
        leading, wanted = sizes[:2], own[:2]
    if any(a != b for a, b in zip(leading, wanted, strict=True) if b > 0):
        raise op.refuse("Resize of the batch or channel dimension: Paddle resizes only the rest")
    return scales, sizes


def _coordinates(
    op: Op,
    mode: str,
    scales: list[float] | None,
    sizes: list[int] | None,
    spatial: Sequence[int],
) -> dict[str, int | bool]:
    """Paddle's two attributes for where a pixel comes from; refuses what they cannot say."""
    where = op.text("coordinate_transformation_mode", "half_pixel")
    if op.node.op_type == "Upsample":
        where = "asymmetric"
    if op.integer("antialias", 0) or op.integer("exclude_outside", 0):
        raise op.refuse("Resize with antialias or exclude_outside")
    if mode == "cubic":
        if abs(op.number("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise op.refuse("Resize in cubic mode with other coefficients than -0.75")
        kinds = {"half_pixel": (False, 1), "align_corners": (True, 1)}
    elif mode == "linear":
        kinds = {"half_pixel": (False, 0), "asymmetric": (False, 1), "align_corners": (True, 0)}
    else:
        return _nearest(op, where, scales, sizes, spatial)
    if where == "pytorch_half_pixel":  # differs only where the result has one pixel
        where = "half_pixel"
    if where not in kinds:
        raise op.refuse(f"Resize in {mode} mode with {where} coordinates: Paddle has none")
    corners, align = kinds[where]
    return {"align_corners": corners, "align_mode": align}


def _nearest(
    op: Op,
    where: str,
    scales: list[float] | None,
    sizes: list[int] | None,
    spatial: Sequence[int],
) -> dict[str, int | bool]:
    """Paddle takes floor(i / scale), or with align_corners floor(i * (in - 1) / (out - 1) + 0.5).

    Where the scale is a whole number, half a pixel to the left or right and rounding to the nearest
    come to the same pixel as floor(i / scale).
    """
    rounding = op.text("nearest_mode", "round_prefer_floor")
    if op.node.op_type == "Upsample":
        rounding = "floor"
    if scales is None and sizes is not None and -1 not in spatial:
        factors = [out / size for out, size in zip(sizes[2:], spatial, strict=True)]
    else:
        factors = [] if scales is None else scales[2:]
    whole = bool(factors) and all(f >= 1 and float(f).is_integer() for f in factors)
    if where == "asymmetric" and (rounding == "floor" or np.all(np.equal(factors or [0], 1))):
        return {"align_corners": False, "align_mode": 1}
    if where in ("half_pixel", "pytorch_half_pixel") and whole and rounding.startswith("round"):
        return {"align_corners": False, "align_mode": 1}
    if where == "align_corners" and rounding == "round_prefer_ceil":
        return {"align_corners": True, "align_mode": 1}
    raise op.refuse(
        f"Resize in nearest mode with {where} coordinates and {rounding}: Paddle has none for this "
        "scale"
    )


RULES: dict[str, Callable[[Op], None]] = {"Resize": _resize, "Upsample": _resize}
