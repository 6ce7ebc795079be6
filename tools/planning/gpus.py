"""GPUs, with the figures of their makers.

Sources: NVIDIA's data sheets of A10, L4, L40S, A100, H100 and H200, and NVIDIA's white papers on the architectures
Ampere GA102 (RTX 3090) and Ada (RTX 4090). Rates are for dense matrices with sums in float32. A link is what one GPU
sends to the others of its machine in one direction: half of NVLink's total, or PCIe 4.0 with 16 lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heterolora.common.errors import UserError, nearest

GIGA = 10**9


@dataclass(frozen=True)
class Gpu:
    """A GPU: bytes, floating-point operations a second, bytes a second."""

    name: str
    memory: int
    flops16: float  # of matrix products in bfloat16 or float16
    flops32: float  # of matrix products in float32, without TF32
    bandwidth: float  # of its memory
    link: float


def _gpu(name: str, gigabytes: int, tera16: float, tera32: float, bandwidth: float, link: float) -> Gpu:
    return Gpu(name, gigabytes * GIGA, tera16 * 1e12, tera32 * 1e12, bandwidth * GIGA, link * GIGA)


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("rtx-3090", 24, 71, 35.6, 936, 32),
        _gpu("rtx-4090", 24, 165.2, 82.6, 1008, 32),
        _gpu("a10", 24, 125, 31.2, 600, 32),
        _gpu("l4", 24, 121, 30.3, 300, 32),
        _gpu("l40s", 48, 362, 91.6, 864, 32),
        _gpu("a100-40gb", 40, 312, 19.5, 1555, 300),
        _gpu("a100-80gb", 80, 312, 19.5, 2039, 300),
        _gpu("h100", 80, 989, 67, 3350, 450),
        _gpu("h200", 141, 989, 67, 4800, 450),
    )
}
BY_DEFAULT = "rtx-4090"


def gpu_named(name: str) -> Gpu:
    """Raise UserError with the nearest name if there is none."""
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key not in GPUS:
        raise UserError(f"--card '{name}' is not known", nearest(key, GPUS))
    return GPUS[key]
