"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745). Pre-norm, with one layer of queries, keys and values.

The published models compute both halves of a block from the same input, so only others can have shortcuts.
"""

from typing import Any

from heterolora.elements.family import Family, always


def _parallel(config: Any) -> bool:
    return config.use_parallel_residual


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="layers",
    linears={
        "o_proj": "attention.dense",
        "w1": "mlp.dense_h_to_4h",
        "w2": "mlp.dense_4h_to_h",
        "query_key_value": "attention.query_key_value",
    },
    norm1="input_layernorm",
    norm2="post_attention_layernorm",
    pre_norm=always,
    parallel=_parallel,
    after_blocks=("final_layer_norm",),
)
