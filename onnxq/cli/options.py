"""The options of the commands, each declared once.

A command that quantizes, plans or prints a recipe takes many of the same options. They are the
parameters of `dynamic_options` and `static_options`, which give the settings of a recipe file, and
`takes` adds them to a command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.errors import OptionError

if TYPE_CHECKING:
    from onnxq.data.images import ImageOptions
    from onnxq.recipe import Recipe

__all__ = [
    "RANGES",
    "Json",
    "ModeOption",
    "Model",
    "Output",
    "Settings",
    "dynamic_options",
    "image_options",
    "images_of",
    "recipe_of",
    "sample_options",
    "shapes_of",
    "static_options",
    "takes",
]

Settings = dict[str, Any]
Builder = Callable[..., Settings]
Command = Callable[..., None]


class Bits(StrEnum):
    EIGHT, SIXTEEN = "8", "16"


class Granularity(StrEnum):
    CHANNEL, TENSOR = "channel", "tensor"


class Encoding(StrEnum):
    QDQ, FOLD = "qdq", "fold"


# Spelled out, so that --help needs no import of the numerics; a test compares them with the tables
class Method(StrEnum):
    KL, HIST, PERCENTILE, MSE, EMD, PTF = "KL", "hist", "percentile", "mse", "emd", "ptf"
    AVG, ABS_MAX, MIN_MAX = "avg", "abs_max", "min_max"
    AUTO = "auto"


class AccuracyLevel(StrEnum):
    NONE, FAST, BALANCED, BEST = "none", "fast", "balanced", "best"


class PassName(StrEnum):
    SMOOTHQUANT, EQUALIZATION = "smoothquant", "equalization"
    RANGE_CHOICE = "range_choice"
    BIAS_CORRECTION, ROUNDING, ADAROUND = "bias_correction", "rounding", "adaround"


class TargetName(StrEnum):
    X86, ARM = "onnxruntime-x86", "onnxruntime-arm"
    OPENVINO, TENSORRT, PADDLE = "openvino", "tensorrt", "paddle"


class Isa(StrEnum):
    AVX2, AVX512, VNNI, ARM = "avx2", "avx512", "vnni", "arm"


class Mode(StrEnum):
    """The two ways to quantize."""

    DYNAMIC, STATIC = "dynamic", "static"


ModeOption = Annotated[
    Mode | None,
    typer.Option("--mode", help="Default: that of the recipe file, or static."),
]


class Layout(StrEnum):
    NCHW, NHWC = "NCHW", "NHWC"


class ChannelOrder(StrEnum):
    RGB, BGR = "RGB", "BGR"


IMAGES, NODES, RANGES = "Images", "Which nodes", "Ranges and samples"
MIXED = "Mixed precision: nodes are left float"

Model = Annotated[Path, typer.Argument(help="The float ONNX model.", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)
]
GranularityOption = Annotated[
    Granularity | None,
    typer.Option(
        "--granularity", help="One scale for each channel of a weight (default), or tensor."
    ),
]
BitsOption = Annotated[Bits | None, typer.Option("--bits", help="Of the integers; default 8.")]
CorrectionOption = Annotated[
    bool | None,
    typer.Option(
        "--weight-correction/--no-weight-correction",
        help="Keep mean and spread of each channel of a weight; default no.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]


def _node_option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=NODES)


def _image_option(flag: str, metavar: str | None, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=IMAGES)


def _mixed_option(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=MIXED)


def _common(
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A .toml or .json file; other options go before it."),
    ] = None,
    include: Annotated[
        list[str] | None, _node_option("--include", "PATTERN", "Only nodes whose name matches.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        _node_option("--exclude", "PATTERN", "Leave nodes float whose name matches."),
    ] = None,
    include_op: Annotated[
        list[str] | None, _node_option("--include-op", "TYPE", "Only this op type.")
    ] = None,
    exclude_op: Annotated[
        list[str] | None, _node_option("--exclude-op", "TYPE", "Not this op type.")
    ] = None,
) -> Settings:
    return {
        "recipe": recipe,
        "include": include or None,
        "exclude": exclude or None,
        "include_ops": include_op or None,
        "exclude_ops": exclude_op or None,
    }


def dynamic_options(
    granularity: GranularityOption = None,
    weight_correction: CorrectionOption = None,
    bits: BitsOption = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Zero points of 0; default yes."),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(
            help="qdq (default): DequantizeLinear, the standard. fold: Cast and Mul, which any "
            "onnxruntime session folds at load."
        ),
    ] = None,
) -> Settings:
    """Settings of dynamic mode; what was not given is None."""
    return {
        "granularity": granularity,
        "weight_correction": weight_correction,
        "bits": None if bits is None else int(bits.value),
        "symmetric": symmetric,
        "encoding": encoding,
    }


def image_options(
    image_size: Annotated[
        str | None, _image_option("--image-size", "N|HxW", "Resize to exactly this, at the end.")
    ] = None,
    resize: Annotated[
        str | None,
        _image_option("--resize", "N|HxW", "First: the shorter side to N, or to exactly HxW."),
    ] = None,
    crop: Annotated[
        str | None, _image_option("--crop", "N|HxW", "Then: cut this out of the centre.")
    ] = None,
    mean: Annotated[
        str | None,
        _image_option("--mean", "M[,M,M]", "Value = (pixel * scale - mean) / std; default 0."),
    ] = None,
    std: Annotated[str | None, _image_option("--std", "S[,S,S]", "Default 1.")] = None,
    scale: Annotated[
        str | None, _image_option("--scale", "X", "A number or a fraction; default 1/255.")
    ] = None,
    layout: Annotated[
        Layout | None, _image_option("--layout", None, "Default: by the shape of the input.")
    ] = None,
    channels: Annotated[
        ChannelOrder | None, _image_option("--channels", None, "Their order; default RGB.")
    ] = None,
) -> Settings:
    """The table `images` of a recipe, if any of these is given."""
    given = {
        "size": _pair("--image-size", image_size),
        "resize": _number_or_pair("--resize", resize),
        "crop": _pair("--crop", crop),
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "scale": None if scale is None else _fraction("--scale", scale),
        "layout": layout,
        "channels": channels,
    }
    images = _given(given)
    return {"images": images or None}


def sample_options(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Samples: an .npy or .npz file (samples along axis 0), a directory of such files "
            "or of images, or a .csv with a column `file`.",
            show_default=False,
            rich_help_panel=RANGES,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Use so many samples.", rich_help_panel=RANGES),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Samples run at once.", rich_help_panel=RANGES),
    ] = None,
) -> Settings:
    """Where samples come from, and how many."""
    return {"data": data, "samples": samples, "batch_size": batch_size}


def static_options(
    granularity: GranularityOption = None,
    weight_correction: CorrectionOption = None,
    bits: BitsOption = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="From `onnxq calibrate`, in place of --data.", rich_help_panel=RANGES),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How ranges are chosen; default mse. auto: for each tensor, by the outputs.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            help="For hist and percentile: the share to cover; default 0.9999.",
            rich_help_panel=RANGES,
        ),
    ] = None,
    accuracy: Annotated[
        AccuracyLevel | None,
        typer.Option(
            help="What is done beyond ranges, each change kept only where the outputs get better: "
            "none; fast (default), about as long as calibration; balanced; best, minutes."
        ),
    ] = None,
    mixed_precision: Annotated[
        bool | None,
        typer.Option(
            "--mixed-precision/--no-mixed-precision",
            help="At balanced and best: leave nodes float where int8 costs most; default yes.",
            rich_help_panel=MIXED,
        ),
    ] = None,
    target_sqnr: Annotated[
        float | None, _mixed_option("--target-sqnr", "DB", "Until the outputs have this SQNR.")
    ] = None,
    target_agreement: Annotated[
        float | None,
        _mixed_option("--target-agreement", "PERCENT", "Until so many have the same top class."),
    ] = None,
    evaluate: Annotated[
        str | None,
        _mixed_option(
            "--evaluate", "MODULE:FUNCTION", "Takes a model's path, returns how good it is."
        ),
    ] = None,
    max_drop: Annotated[
        float | None, _mixed_option("--max-drop", "X", "What --evaluate may lose against float.")
    ] = None,
    passes: Annotated[
        list[PassName] | None,
        typer.Option(
            "--pass", help="An accuracy pass besides those of the level; may be repeated."
        ),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(help="The runtime; default: onnxruntime on this kind of processor."),
    ] = None,
    isa: Annotated[
        Isa | None,
        typer.Option(help="Of the x86 processor that will run it; default: of this one."),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric", help="Of activations; default: the target's choice."
        ),
    ] = None,
    integer_io: Annotated[
        bool | None,
        typer.Option("--integer-io/--float-io", help="Integer inputs and outputs; default float."),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare both models on samples held out from calibration; default yes.",
        ),
    ] = None,
    tune_latency: Annotated[
        bool | None,
        typer.Option(
            "--tune-latency/--no-tune-latency",
            help="Time it in onnxruntime here, and leave float what loses time; default no.",
        ),
    ] = None,
) -> Settings:
    """Settings of static mode but for samples and images; what was not given is None."""
    return {
        "granularity": granularity,
        "weight_correction": weight_correction,
        "bits": None if bits is None else int(bits.value),
        "statistics": None if statistics is None else str(statistics),
        "method": method,
        "percentile": percentile,
        "accuracy": accuracy,
        "mixed_precision": mixed_precision,
        "target_sqnr": target_sqnr,
        "target_agreement": target_agreement,
        "evaluate": evaluate,
        "max_drop": max_drop,
        "passes": [name.value for name in passes] if passes else None,
        "target": target,
        "isa": isa,
        "symmetric": symmetric,
        "integer_io": integer_io,
        "verify": verify,
        "tune_latency": tune_latency,
    }


def takes(*builders: Builder, recipe: bool = True) -> Callable[[Command], Command]:
    """Give a command the parameters of `builders`; it receives what they return as `settings`.

    recipe: also those that all recipes have. Of parameters with one name the first counts.
    """
    used = (_common, *builders) if recipe else builders

    def decorate(command: Command) -> Command:
        own = [p for p in _parameters(command) if p.name != "settings"]
        added: dict[str, inspect.Parameter] = {}
        for builder in used:
            for parameter in _parameters(builder):
                added.setdefault(parameter.name, parameter)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            settings: Settings = {}
            for builder in used:
                names = [p.name for p in _parameters(builder)]
                settings |= builder(**{name: values[name] for name in names})
            command(settings=settings, **{p.name: values[p.name] for p in own})

        everything = [*own, *added.values()]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in everything]
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]  # inspect reads it
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        return run

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def recipe_of(settings: Settings, mode: str | None) -> Recipe:
    """The recipe of a call: what is given goes before what a recipe file says.

    mode: None for that of the recipe file, or static.
    """
    from onnxq.recipe_file import read_settings, recipe_from_dict

    given = _given(settings)
    path = given.pop("recipe", None)
    base = {} if path is None else read_settings(path)
    mode = mode or base.get("mode", "static")
    if base.get("mode", mode) != mode:
        raise OptionError(f"{path} is a recipe for {base['mode']} mode, not {mode}")
    for one, other in (("data", "statistics"), ("statistics", "data")):
        if one in given:
            base.pop(other, None)
    if "images" in given:
        before = base.get("images", {})
        given["images"] = {**(before if isinstance(before, dict) else {}), **given["images"]}
    return recipe_from_dict({**base, **given, "mode": mode}, str(path) if path else "options")


def images_of(settings: Settings) -> ImageOptions | None:
    """The image options of a command that takes no recipe."""
    recipe = recipe_of({"images": settings.get("images")}, "static")
    return getattr(recipe, "images", None)


def shapes_of(texts: list[str] | None) -> dict[str, list[int]] | None:
    """The shapes of inputs that `--shape INPUT=1x3x224x224` gives; INPUT= alone is a scalar."""
    if not texts:
        return None
    shapes = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        sizes = [size.strip() for size in dims.lower().split("x")] if dims else []
        if not equals or not all(size.isdigit() for size in sizes):
            raise OptionError(f"--shape takes INPUT=1x3x224x224, got {text!r}")
        shapes[name] = [int(size) for size in sizes]
    return shapes


def _given(settings: Settings) -> Settings:
    plain = {k: v.value if isinstance(v, StrEnum) else v for k, v in settings.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _numbers(flag: str, text: str | None) -> list[float] | None:
    return None if text is None else [_fraction(flag, part) for part in text.split(",")]


def _fraction(flag: str, text: str) -> float:
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or "1")
    except (ValueError, ZeroDivisionError) as error:
        raise OptionError(f"{flag} takes numbers or fractions like 1/255, got {text!r}") from error


def _pair(flag: str, text: str | None) -> list[int] | None:
    found = _number_or_pair(flag, text)
    return [found, found] if isinstance(found, int) else found


def _number_or_pair(flag: str, text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise OptionError(f"{flag} takes N or HxW in pixels, got {text!r}")
    numbers = [int(part) for part in parts]
    return numbers if len(numbers) == 2 else numbers[0]
