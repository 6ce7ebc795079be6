"""ModernBERT (Warner et al. 2024, arXiv:2412.13663). A pre-norm encoder with fused layers. Classification only."""

from heterolora.elements.family import Family, always
from heterolora.elements.task import CLASSIFYING

FAMILY = Family(
    name="modernbert",
    model_types=("modernbert",),
    blocks="layers",
    linears={"o_proj": "attn.Wo", "w2": "mlp.Wo", "Wqkv": "attn.Wqkv", "Wi": "mlp.Wi"},
    norm1="attn_norm",  # the identity in the first block
    norm2="mlp_norm",
    pre_norm=always,
    before_blocks=("embeddings.norm",),
    after_blocks=("final_norm",),
    tasks=CLASSIFYING,
)
