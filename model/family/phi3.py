"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219). Llama's block with two fused layers."""

from heterolora.elements.family import Family, always

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    blocks="layers",
    linears={
        "o_proj": "self_attn.o_proj",
        "w2": "mlp.down_proj",
        "qkv_proj": "self_attn.qkv_proj",
        "gate_up_proj": "mlp.gate_up_proj",
    },
    norm1="input_layernorm",
    norm2="post_attention_layernorm",
    pre_norm=always,
    after_blocks=("norm",),
)
