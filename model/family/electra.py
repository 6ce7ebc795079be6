"""ELECTRA (Clark et al. 2020, arXiv:2003.10555). It has the same modules as BERT. Classification only."""

from dataclasses import replace

from model.family import bert

FAMILY = replace(
    bert.FAMILY,
    name="electra",
    model_types=("electra",),
    before_blocks=("embeddings.LayerNorm", "embeddings_project"),
)
