"""Quantises frozen base models to 4 or 8 bits, with bitsandbytes through transformers.

`nf4` is NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314). `int8` is LLM.int8() (Dettmers
et al. 2022, arXiv:2208.07339). The linear layers of the base are quantised. The embeddings, the norms and the output
layers, such as a classification head, are not.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from heterolora.common.errors import UserError
from heterolora.elements.adapt import HEADS
from heterolora.elements.linear import is_transposed

_OUTSIDE = (*HEADS, "lm_head", "embed_out")  # names of parts of the network that are not quantised
_NOT_QUANTIZED = [f"^{name}" for name in _OUTSIDE]  # ^: transformers would take a plain name for the end of a path too
_COMPUTE_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16}  # by the first part of `--precision`


def check_quantize(quantize: str, precision: str, on_gpu: bool) -> None:
    """Raise UserError if there is no GPU, if a package is missing, or if the precision does not fit."""
    if not on_gpu:
        raise UserError(
            f"--quantize {quantize} needs a GPU", "leave it out here; for a quantised checkpoint give --quantize none"
        )
    missing = [package for package in ("bitsandbytes", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--quantize {quantize} needs {' and '.join(missing)}", f"pip install {' '.join(missing)}")
    if precision == "64":
        raise UserError(f"--quantize {quantize} does not go with --precision 64", "use 32 or a 16-bit kind")


def is_quantized(path: str) -> bool:
    """Whether a linear layer at this path in the network is quantised."""
    return path.split(".", 1)[0] not in _OUTSIDE


def check_layers(network: nn.Module, quantize: str, source: str) -> None:
    """Raise UserError if bitsandbytes quantises no layer of a network, because they have a class of their own."""
    layers = (module for path, module in network.named_modules() if is_quantized(path))
    if not any(type(module) is nn.Linear or is_transposed(module) for module in layers):
        raise UserError(
            f"--quantize {quantize} has no effect: bitsandbytes packs no layer of '{source}'", "leave it out"
        )


def loading_arguments(quantize: str, precision: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantise the base and place it on this process's device."""
    if quantize == "nf4":
        config = nf4(precision)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
        # Each call warns that the inputs are cast to float16. The method works that way.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": config, "device_map": {"": _device()}}


def nf4(precision: str) -> BitsAndBytesConfig:
    """Return how the layers of a 4-bit base are quantised, and the dtype in which they compute."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_COMPUTE_DTYPES.get(precision.split("-")[0], torch.float32),
        llm_int8_skip_modules=_NOT_QUANTIZED,
    )


def _device() -> int | str:
    """Return the GPU that Lightning assigns to this process. Layers are quantised on the device that they stay on.

    Launchers set it in an environment variable, before there is a process group. bitsandbytes also runs on a CPU, but
    slowly, so the code can be tested without a GPU.
    """
    if not torch.cuda.is_available():
        return "cpu"
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


# ---- a sharded base, whose blocks are quantised one after the other, when they are sharded


def put_nf4_layers(network: nn.Module, precision: str) -> None:
    """Replace the linear layers of the base, in place, by 4-bit layers that are not quantised yet.

    They share the weights of the layers that they replace, which may be mapped from files, until `quantize`. A
    transposed weight (`Conv1D`) is turned.
    """
    from transformers.integrations import replace_with_bnb_linear  # imports bitsandbytes

    plain, config = dict(network.named_modules()), nf4(precision)
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()  # transformers does not pack them either
    replace_with_bnb_linear(network, [*config.llm_int8_skip_modules, *kept], config)
    for path, layer in network.named_modules():
        if layer is not plain[path]:
            layer.quant_storage = layer.weight.quant_storage = _storage(layer)
            weight = plain[path].weight.data
            rows = weight.T.contiguous() if is_transposed(plain[path]) else weight
            layer.weight = type(layer.weight)(rows, **vars(layer.weight))
            layer.bias = plain[path].bias


def quantize(layer: Any, device: torch.device) -> None:
    """Quantise a layer of `put_nf4_layers`, on the device. Has no effect on other modules, and the second time."""
    if getattr(layer, "quant_storage", None) is not None and layer.quant_state is None:
        layer.to(device)  # bitsandbytes quantises here
        if layer.bias is not None:  # it would be cast in the first pass, where FSDP2 does not expect it
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)


def _storage(layer: Any) -> torch.dtype:
    """Return the dtype of a tensor of packed weights: the dtype in which the layer computes, as FSDP-QLoRA has it.

    Two weights are a byte. Bytes if their number is not a multiple of the size of that dtype.
    """
    dtype, packed = layer.compute_dtype, layer.in_features * layer.out_features / 2
    return torch.uint8 if packed % dtype.itemsize else dtype
