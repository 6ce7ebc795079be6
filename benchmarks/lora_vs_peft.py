"""Training step of LoRA against the peft package and the frozen base: time and peak memory, same model and batch.

A step is forward, backward and AdamW. Before it is timed, both models must give the same logits and gradients from the
same A and B. The frozen base passes the gradient back to its embeddings, and trains its head, if it has one. The model
is an OPT classifier with random weights, or that of a folder: a language model if its configuration names one, and
otherwise a classifier.
"""

from __future__ import annotations

import argparse
import copy

import peft
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from actions.run.console import say
from benchmarks import measure, subjects
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="FOLDER", help="a base model with a family table (default: a random OPT)")


def run(args: argparse.Namespace) -> None:
    base = subjects.base(args) if args.base is None else pretrained(args)
    batch = subjects.batch(args, base.config.vocab_size)
    if is_language_model(base):
        batch = {**batch, "labels": batch["input_ids"]}
    say(measure.heading(args, f"training step of {base.config.model_type} with LoRA, with peft.LoraModel, and frozen"))
    for title, names in {"q, v": subjects.QV, "all projections": tuple(subjects.table(base).places)}.items():
        ours, space = subjects.adapted(base, subjects.lora(args.rank, names))
        head = trained_beside(ours, space)
        theirs = with_peft(copy.deepcopy(base), space, args.rank, head)
        check_same(ours, theirs, batch)
        networks = {"ours": ours, "peft": theirs, "frozen base": frozen(copy.deepcopy(base), head)}
        subjects.compare_steps(networks, batch, title, args)


def pretrained(args: argparse.Namespace) -> PreTrainedModel:
    """Return the model of a folder, without dropout."""
    config = AutoConfig.from_pretrained(args.base, trust_remote_code=False)
    kind = AutoModelForCausalLM if is_language_model(config) else AutoModelForSequenceClassification
    network = kind.from_pretrained(args.base, trust_remote_code=False, use_kernels=False, dtype=torch.float32)
    network.to(args.device)
    network.config.pad_token_id = network.config.pad_token_id or 0
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def is_language_model(described: PreTrainedModel | PretrainedConfig) -> bool:
    """Whether a network, or the one that a configuration names, has a language-modelling head."""
    if isinstance(described, PreTrainedModel):
        return described.get_output_embeddings() is not None
    return any(name.endswith("ForCausalLM") for name in described.architectures or ())


def trained_beside(network: nn.Module, space: SearchSpace) -> frozenset[str]:
    """Return the names of the trained parameters that are not of elements: those of the head."""
    elements = {id(parameter) for parameter in space.parameters}
    return frozenset(n for n, p in network.named_parameters() if p.requires_grad and id(p) not in elements)


def frozen(network: PreTrainedModel, head: frozenset[str]) -> PreTrainedModel:
    """Freeze all but the head. The gradient still passes through every block, as LoRA in the first one needs it."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in head)
    network.enable_input_require_grads()
    return network


def with_peft(network: PreTrainedModel, space: SearchSpace, rank: int, head: frozenset[str]) -> peft.LoraModel:
    """PEFT's LoRA in the places of `space`, with its A and B. The head is trainable, as in our model."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[element.module for element in space.elements])
    model = peft.LoraModel(network, config, "default")
    for name, parameter in model.model.named_parameters():
        if name in head:
            parameter.requires_grad_(True)
    wrapped = dict(model.model.named_modules())
    with torch.no_grad():
        for low_rank in space:
            theirs = wrapped[low_rank.element.module]
            theirs.lora_A["default"].weight.copy_(low_rank.A)
            theirs.lora_B["default"].weight.copy_(low_rank.B)
    return model


def check_same(ours: nn.Module, theirs: nn.Module, batch: Batch) -> None:
    """Check that both models give the same logits and gradient norms."""
    results = []
    for model in (ours, theirs):
        output = model(**batch)
        output.loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        results.append(torch.stack([*sorted(norms), *output.logits.detach().flatten()]))
        model.zero_grad()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
