"""Frozen bases in 4 or 8 bits, by bitsandbytes through transformers.

`nf4`: normal floats with doubly quantised constants (Dettmers et al. 2023, arXiv:2305.14314). `int8`: LLM.int8()
(Dettmers et al. 2022, arXiv:2208.07339). Linear layers inside the base are quantised; embeddings, norms and whatever
makes the output, a classification head included, are not.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from heterolora.adapt import HEADS
from heterolora.errors import UserError

_NEEDED = ("bitsandbytes", "accelerate")
_NOT_QUANTIZED = [*HEADS, "lm_head"]
_COMPUTE_DTYPES = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


def check_quantize(quantize: str, precision: str, on_gpu: bool) -> None:
    """Raises UserError where a base can't be quantised: no GPU, a package missing, a precision that does not go."""
    if not on_gpu:
        raise UserError(
            f"--quantize {quantize} needs a GPU", "leave it out here; for a quantised checkpoint give --quantize none"
        )
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--quantize {quantize} needs {' and '.join(missing)}", f"pip install {' '.join(missing)}")
    if precision == "64":
        raise UserError(f"--quantize {quantize} does not go with --precision 64", "use 32 or a 16-bit kind")


def loading_arguments(quantize: str, precision: str) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise while it loads, onto this process's device."""
    if quantize == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_COMPUTE_DTYPES.get(precision, torch.float32),
            llm_int8_skip_modules=_NOT_QUANTIZED,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
        # A warning at every call that inputs become float16 for the product, which is how the method works.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": config, "device_map": {"": _device()}}


def _device() -> int | str:
    """The GPU that Lightning gives this process: layers are quantised where they will stay.

    Launchers say which by an environment variable, before there is a process group. bitsandbytes computes on a CPU too,
    slowly, so that code can be tried where there is no GPU.
    """
    if not torch.cuda.is_available():
        return "cpu"
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
