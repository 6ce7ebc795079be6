"""BERT (Devlin et al. 2018, arXiv:1810.04805). It has the same modules as RoBERTa. Classification only."""

from dataclasses import replace

from model.family import roberta

FAMILY = replace(roberta.FAMILY, name="bert", model_types=("bert",), positions_after_padding=False)
