"""DeBERTa-v2 and v3 (He et al. 2021, arXiv:2111.09543). The blocks of BERT, and positions that are relative."""

from dataclasses import replace

from model.family import bert

FAMILY = replace(
    bert.FAMILY,
    name="deberta_v2",
    model_types=("deberta-v2",),
    linears={
        **bert.FAMILY.linears,
        "q_proj": "attention.self.query_proj",
        "k_proj": "attention.self.key_proj",
        "v_proj": "attention.self.value_proj",
        "pos_key_proj": "attention.self.pos_key_proj",  # v3 has none: it uses k_proj and q_proj for positions
        "pos_query_proj": "attention.self.pos_query_proj",
    },
    returns_tuple=True,
)
