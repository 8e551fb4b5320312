"""PaddleSlim's calls: every mistake is found before anything is written, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq_paddle.paddleslim import quant
from tests.paddle.slim import images, reader


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"round_type": "up"}, ["round_type must be one of round, adaround"]),
        ({"onnx_format": False}, ["onnx_format=False", "quantize_linear"]),
        ({"weight_bits": 16}, ["weight_bits 16 and activation_bits 8 must be equal"]),
        ({"weight_bits": 4, "activation_bits": 4}, ["must be one of 8, 16"]),
        ({"weight_bits": 16, "activation_bits": 16, "algo": "KL"}, ["degenerates above 8 bits"]),
        ({"algo": "kl"}, ["algo must be one of KL, hist"]),
        ({"hist_percent": 99.99}, ["hist_percent 99.99", "share"]),
        ({"quantizable_op_type": ["conv2b"]}, ["'conv2b'", "near are", "conv2d", "known are"]),
        ({"quantizable_op_type": ["gelu"]}, ["no int8 kernel for 'gelu'"]),
        ({"quantizable_op_type": ["lookup_table_v2"]}, ["quant_post_dynamic alone"]),
        ({"quantizable_op_type": "conv2d"}, ["a list of names"]),
        ({"activation_quantize_type": "max"}, ["activation_quantize_type must be one of"]),
        ({"weight_quantize_type": "max"}, ["weight_quantize_type must be one of"]),
        ({"deploy_backend": "openvino"}, ["deploy_backend must be one of"]),
        ({"skip_tensor_list": ["linear_0.w_1"]}, ["no operator", "near are", "linear_0.w_0"]),
        ({"save_params_filename": None}, ["separate files are not written"]),
        ({"save_params_filename": "model.onnx"}, ["must be three files"]),
        ({"save_model_filename": "a/model"}, ["is no file name"]),
        ({"batch_nums": 0}, ["batch_nums must be a whole number from 1 on"]),
        ({"sample_generator": None}, ["give one of", "got none"]),
        ({"data_loader": [1]}, ["got sample_generator and data_loader"]),
        ({"sample_generator": 3}, ["must be an iterable", "int"]),
        ({"sample_generator": []}, ["is empty"]),
        ({"sample_generator": [(images()[0], 3)]}, ["2 arrays", "'x'", "no labels"]),
        ({"sample_generator": [images()[0].astype(np.uint8)]}, ["is uint8", "astype"]),
        ({"model_filename": "nothing.pdmodel"}, ["nothing.pdmodel"]),
    ],
)
def test_mistakes_say_what_to_do(
    slim_net: Path, tmp_path: Path, arguments: dict[str, Any], words: list[str]
) -> None:
    given = {"sample_generator": reader, "verify": False, **arguments}
    with pytest.raises(onnxq.OnnxqError) as caught:
        quant.quant_post_static(
            None, slim_net, tmp_path, **given, paddle_model=arguments.get("weight_bits") != 16
        )
    for word in words:
        assert word in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weight_bits": 4}, ["weight_bits must be one of 8, 16"]),
        ({"weight_quantize_type": "max"}, ["channel_wise_abs_max, abs_max"]),
        ({"quantizable_op_type": ["pool2d"]}, ["'pool2d' has no weights"]),
        ({"quantizable_op_type": []}, ["nothing would be quantized"]),
    ],
)
def test_mistakes_of_dynamic_mode(
    slim_net: Path, tmp_path: Path, arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(onnxq.OptionError) as caught:
        quant.quant_post_dynamic(slim_net, tmp_path, **arguments)
    for word in words:
        assert word in str(caught.value)
