"""Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971). Pre-norm, gated feed-forward."""

from heterolora.elements.family import Family, always

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    blocks="layers",
    linears={
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.o_proj",
        "w1": "mlp.up_proj",
        "w2": "mlp.down_proj",
        "gate": "mlp.gate_proj",
    },
    norm1="input_layernorm",
    norm2="post_attention_layernorm",
    pre_norm=always,
    after_blocks=("norm",),
)
