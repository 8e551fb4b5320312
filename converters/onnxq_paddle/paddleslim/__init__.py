"""PaddleSlim's calls for post-training quantization, done by onnxq.

    from onnxq_paddle import paddleslim

in place of `import paddleslim` is all that a script has to change.
"""

from onnxq_paddle.paddleslim import quant

__all__ = ["quant"]
