"""RoBERTa (Liu et al. 2019, arXiv:1907.11692), XLM-RoBERTa and CamemBERT. Post-norm encoders. Classification only."""

from heterolora.elements.family import Family, never

FAMILY = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    blocks="encoder.layer",
    linears={
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "o_proj": "attention.output.dense",
        "w1": "intermediate.dense",
        "w2": "output.dense",
    },
    norm1="attention.output.LayerNorm",
    norm2="output.LayerNorm",
    pre_norm=never,
    before_blocks=("embeddings.LayerNorm",),
    tasks=("classification",),
    positions_after_padding=True,
)
