"""OPT (Zhang et al. 2022, arXiv:2205.01068). Pre-norm, except OPT-350M, whose configuration declares post-norm."""

from typing import Any

from heterolora.elements.family import Family


def _pre_norm(config: Any) -> bool:
    return config.do_layer_norm_before


FAMILY = Family(
    name="opt",
    model_types=("opt",),
    blocks="decoder.layers",
    linears={
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.out_proj",
        "w1": "fc1",
        "w2": "fc2",
    },
    norm1="self_attn_layer_norm",
    norm2="final_layer_norm",
    pre_norm=_pre_norm,
    before_blocks=("decoder.project_in",),
    after_blocks=("decoder.final_layer_norm", "decoder.project_out"),
)
