"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108). A post-norm encoder. Classification only."""

from heterolora.elements.family import Family, never
from heterolora.elements.task import CLASSIFYING

FAMILY = Family(
    name="distilbert",
    model_types=("distilbert",),
    blocks="transformer.layer",
    linears={
        "q_proj": "attention.q_lin",
        "k_proj": "attention.k_lin",
        "v_proj": "attention.v_lin",
        "o_proj": "attention.out_lin",
        "w1": "ffn.lin1",
        "w2": "ffn.lin2",
    },
    norm1="sa_layer_norm",
    norm2="output_layer_norm",
    pre_norm=never,
    before_blocks=("embeddings.LayerNorm",),
    tasks=CLASSIFYING,
)
