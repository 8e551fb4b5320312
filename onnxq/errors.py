"""Everything onnxq raises on purpose. One tree, so that `except OnnxqError` catches it all.

OnnxqError
├── ModelError         the model cannot be read, is invalid, or onnxruntime cannot run it
│   ├── ExternalDataError  a weight file beside the model is missing, too short or elsewhere
│   └── ConversionError    a converter of another framework cannot convert it
├── OptionError        an option, a pattern or a combination of them
├── DataError          samples: name, shape, rank, dtype, NaN or Inf, none at all
├── CalibrationError   statistics: missing, of another model, or an activation that is not finite
└── OutputError        the result could not be written
"""

__all__ = [
    "CalibrationError",
    "ConversionError",
    "DataError",
    "ExternalDataError",
    "ModelError",
    "OnnxqError",
    "OptionError",
    "OutputError",
    "one_line",
]


class OnnxqError(Exception):
    """Base of all errors that onnxq raises; the message names the thing, the cause and a remedy."""


class ModelError(OnnxqError):
    """The model file or graph: unreadable, invalid, or not runnable by onnxruntime."""


class ExternalDataError(ModelError):
    """A file with the model's weights is missing, truncated or outside the model's directory."""


class ConversionError(ModelError):
    """A model of another framework cannot be converted to ONNX, or back."""


class OptionError(OnnxqError):
    """An option has a value that is not valid, or a pattern matches nothing."""


class DataError(OnnxqError):
    """A sample does not fit the model, holds NaN or Inf, or there is none."""


class CalibrationError(OnnxqError):
    """Statistics are missing or of another model, or an activation is not finite."""


class OutputError(OnnxqError):
    """The result could not be written; what was at the output path is as it was."""


def one_line(error: BaseException) -> str:
    """The text of an exception in one line, without onnxruntime's own prefix."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")
