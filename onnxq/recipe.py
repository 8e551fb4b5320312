"""Recipes: all that can be asked of a quantization, as frozen values.

`DynamicRecipe` and `StaticRecipe` hold what the options of `quantize_dynamic` and `quantize_static`
say, and `rules` for single nodes. `recipe_file.py` reads and writes them as TOML and JSON.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from onnxq.data.images import ImageOptions
from onnxq.errors import OptionError
from onnxq.isa import ISAS, SATURATING, host_isa
from onnxq.numerics.ranges import AUTO, AUTO_START, METHODS
from onnxq.targets import TARGETS, target_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DEFAULT_METHOD",
    "Accuracy",
    "DynamicRecipe",
    "Encoding",
    "Granularity",
    "MethodOptions",
    "Recipe",
    "Rule",
    "StaticRecipe",
    "names",
]

Granularity = Literal["channel", "tensor"]
Encoding = Literal["qdq", "fold"]
Accuracy = Literal["none", "fast", "balanced", "best"]

DEFAULT_METHOD = "mse"
BITS = (8, 16)
GRANULARITIES = ("channel", "tensor")
ENCODINGS = ("qdq", "fold")
# The one target of whose kernels is known what they do on which instruction set
GUARDED_TARGET = "onnxruntime-x86"
ACCURACIES = ("none", "fast", "balanced", "best")
# Passes that can be asked for by name; improve/levels.py has them
PASSES = ("smoothquant", "equalization", "range_choice", "bias_correction", "rounding", "adaround")
# What a rule may set in each mode; the rest means nothing there
STATIC_ONLY = ("method", "percentile")


@dataclass(frozen=True)
class MethodOptions:
    """The calibration method and its own parameter.

    percentile: for `hist` and `percentile`; a share (0.9999) or percent (99.99).
    """

    method: str = DEFAULT_METHOD
    percentile: float = 0.9999

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("method", self.method, METHODS)
        if not (0.5 < self.percentile <= 1.0 or 50.0 < self.percentile <= 100.0):
            raise OptionError(
                f"percentile {self.percentile:g} is out of range: give a share above 0.5 and up to "
                "1 (0.9999) or percent above 50 and up to 100 (99.99)"
            )

    @property
    def share(self) -> float:
        return self.percentile / 100 if self.percentile > 1.0 else self.percentile

    @property
    def words(self) -> str:
        """The method by which a range is made, and its parameter."""
        name = AUTO_START if self.method == AUTO else self.method
        return f"{name} {self.share:g}" if name in ("hist", "percentile") else name


@dataclass(frozen=True)
class Rule:
    """What is asked of the nodes that match; None leaves a setting as it is.

    nodes: glob patterns for names of nodes, of the tensors they give or of the weights they read.
    ops: op types. With both, both have to match.

    leave_float: True keeps the nodes float, False quantizes them although something before this
        rule left them out.
    bits: of the weights. 16 in static mode stores them as INT16 and calculates in float, as no
        target has kernels for 16 bits (but see `bits` of StaticRecipe).
    granularity: one scale a channel or a tensor, of the weights.
    symmetric: in dynamic mode of the weights, in static mode of the tensors that the nodes give.
    method, percentile: in static mode, for the range of the tensors that the nodes give (or of a
        graph input whose name matches).
    """

    nodes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    leave_float: bool | None = None
    bits: int | None = None
    granularity: Granularity | None = None
    symmetric: bool | None = None
    method: str | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not self.nodes and not self.ops:
            raise OptionError("a rule matches nothing: give it nodes or ops")
        if not self.settings:
            names = [f.name for f in dataclasses.fields(self)][2:]
            raise OptionError(f"{self.label} sets nothing: give it one of {', '.join(names)}")
        if self.bits is not None:
            check_choice(f"{self.label}: bits", self.bits, BITS)
        if self.granularity is not None:
            check_choice(f"{self.label}: granularity", self.granularity, GRANULARITIES)
        self.method_from(MethodOptions())

    def method_from(self, base: MethodOptions) -> MethodOptions:
        """The method options where this rule applies on top of others."""
        changes = {
            name: value
            for name in ("method", "percentile")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(base, **changes)

    @property
    def settings(self) -> list[str]:
        """Names of what it sets."""
        names = [f.name for f in dataclasses.fields(self)][2:]
        return [name for name in names if getattr(self, name) is not None]

    @property
    def label(self) -> str:
        """How messages name it."""
        matched = [*self.nodes, *self.ops]
        return f"rule for {', '.join(matched)}" if matched else "a rule"


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What both modes have: which nodes, and rules for some of them."""

    granularity: Granularity = "channel"
    weight_correction: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_ops: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("granularity", self.granularity, GRANULARITIES)


@dataclass(frozen=True, kw_only=True)
class DynamicRecipe(_Common):
    """Weights become integers, activations stay float; fields as in `quantize_dynamic`."""

    mode: ClassVar[Literal["dynamic"]] = "dynamic"

    bits: int = 8
    symmetric: bool = True
    encoding: Encoding = "qdq"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("bits", self.bits, BITS)
        check_choice("encoding", self.encoding, ENCODINGS)
        for rule in self.rules:
            wrong = [name for name in rule.settings if name in STATIC_ONLY]
            if wrong:
                raise OptionError(
                    f"{rule.label}: {wrong[0]} is for ranges of activations, which dynamic mode "
                    "leaves float; use static mode"
                )

    @property
    def narrowest(self) -> int:
        """The fewest bits that it asks for."""
        return min([self.bits, *(rule.bits for rule in self.rules if rule.bits)])

    def effective(self) -> DynamicRecipe:
        """Itself: nothing depends on the machine."""
        return self


@dataclass(frozen=True, kw_only=True)
class StaticRecipe(_Common):
    """Weights and activations become integers; fields as in `quantize_static`.

    bits: of weights and activations; 16 runs as float in all kernels known here.
    target: None for onnxruntime on this machine's kind of processor.
    isa: of the x86 processor that runs it; None for that of this machine. On those without VNNI
        (avx2, avx512) sums of products can saturate: there weights are made to fit.
    symmetric: of activations; None for the target's own choice.
    tune_latency: time it in onnxruntime on this machine, and leave float what loses time. The
        report says which rules make the same choice without timing.
    evaluate: MODULE:FUNCTION, in place of a function given to the call.
    data, statistics: paths, from where the command was run; a call's own `data` or `statistics`
        argument goes before them.
    """

    mode: ClassVar[Literal["static"]] = "static"

    bits: int = 8
    target: str | None = None
    isa: str | None = None
    method: str = DEFAULT_METHOD
    percentile: float = 0.9999
    accuracy: Accuracy = "fast"
    mixed_precision: bool = True
    target_sqnr: float | None = None
    target_agreement: float | None = None
    evaluate: str | None = None
    max_drop: float | None = None
    passes: tuple[str, ...] = ()
    symmetric: bool | None = None
    integer_io: bool = False
    data: str | None = None
    statistics: str | None = None
    samples: int | None = None
    batch_size: int = 1
    verify: bool = True
    tune_latency: bool = False
    images: ImageOptions | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        MethodOptions(self.method, self.percentile)
        check_choice("bits", self.bits, BITS)
        check_choice("accuracy", self.accuracy, ACCURACIES)
        for name in self.passes:
            check_choice("passes", name, PASSES)
        if self.bits > 8 and "KL" in (self.method, *(rule.method for rule in self.rules)):
            raise OptionError("KL degenerates above 8 bits: choose another method")
        target = target_of(self.target)
        if self.isa is not None:
            check_choice("isa", self.isa, ISAS)
        if self.isa in SATURATING and target.name != GUARDED_TARGET:
            raise OptionError(
                f"isa {self.isa} is for target {GUARDED_TARGET}, whose kernels are known; for "
                f"{target.name} leave it out"
            )
        self._check_goal()
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        if self.data is not None and self.statistics is not None:
            raise OptionError("give either data or statistics, not both")
        asked = [self.symmetric, *(rule.symmetric for rule in self.rules)]
        if target.activation.symmetric and False in asked:
            raise OptionError(
                f"target {target.name} runs symmetric activations only: leave out symmetric = "
                f"false, or choose one of {', '.join(_asymmetric())}"
            )
        if self.bits > 8 and False in asked:
            raise OptionError("activations of 16 bits are symmetric: leave out symmetric = false")

    def _check_goal(self) -> None:
        if self.target_agreement is not None and not 0 < self.target_agreement <= 100:
            raise OptionError(
                f"target_agreement {self.target_agreement:g} is out of range: give percent, above "
                "0 and up to 100"
            )
        if self.evaluate is not None and self.max_drop is None:
            raise OptionError("evaluate needs max_drop: how far its number may fall")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise OptionError(f"max_drop must be at least 0, got {self.max_drop:g}")
        if self.has_target and not self.mixed_precision:
            raise OptionError(
                "a target is reached by leaving nodes float: leave out mixed_precision = false"
            )

    @property
    def has_target(self) -> bool:
        """Something has to hold, for which nodes may be left float."""
        goals = (self.target_sqnr, self.target_agreement, self.max_drop)
        return any(goal is not None for goal in goals)

    @property
    def method_options(self) -> MethodOptions:
        return MethodOptions(self.method, self.percentile)

    def effective(self) -> StaticRecipe:
        """The same with target and isa spelled out, so that it means the same on any machine."""
        target = target_of(self.target).name
        asked = target == GUARDED_TARGET and self.bits == 8
        return dataclasses.replace(
            self, target=target, isa=(self.isa or host_isa()) if asked else None
        )


Recipe = DynamicRecipe | StaticRecipe


def _asymmetric() -> list[str]:
    return [target.name for target in TARGETS.values() if not target.activation.symmetric]


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises OptionError, which lists the choices, if the value is none of them."""
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_types(values: DataclassInstance) -> None:
    """Raises OptionError for a field that holds another type than it is declared with."""
    hints = get_type_hints(type(values))
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if not _fits(value, hints[field.name]):
            raise OptionError(f"{field.name} must be {_words(hints[field.name])}, got {value!r}")


def names(field: str, value: Sequence[str]) -> tuple[str, ...]:
    """A sequence of names as a tuple. Raises OptionError for a str, which is one of letters."""
    if isinstance(value, str):
        raise OptionError(f"{field} must be a list of names, got {value!r}: write [{value!r}]")
    return tuple(value)


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str)  # which one is checked with the choices
    if origin in (types.UnionType, Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A type in words, without None."""
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(_words(a) for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is tuple:
        return f"a tuple of {_words(get_args(hint)[0])} values"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    known = {bool: "True or False", int: "an integer", float: "a number", str: "a str"}
    return known.get(hint, getattr(hint, "__name__", str(hint)))
