"""GPT-2 (Radford et al. 2019). Pre-norm. Its layers are `Conv1D`, and one has queries, keys and values."""

from heterolora.elements.family import Family, always

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    blocks="h",
    linears={"o_proj": "attn.c_proj", "w1": "mlp.c_fc", "w2": "mlp.c_proj", "c_attn": "attn.c_attn"},
    norm1="ln_1",
    norm2="ln_2",
    pre_norm=always,
    after_blocks=("ln_f",),
)
