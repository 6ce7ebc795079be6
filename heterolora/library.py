"""The library's two functions: score the linear layers of any network, and turn scores into a PEFT configuration."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heterolora import saliency
from heterolora.choosing.allocation import Scored, of_kind, tie_generator
from heterolora.choosing.ranks import Budget, Greedy, Policy, Proportional, TopK, Unit, assign
from heterolora.choosing.scores import Scores
from heterolora.common.checks import (
    ABOVE_0,
    LIST_OF_NAMES,
    NAMES,
    RATE,
    TEXT,
    Condition,
    check_known,
    instance,
    whole_number,
)
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import UserError
from heterolora.elements.adapt import wrap
from heterolora.elements.blocks import blocks_of
from heterolora.elements.element import Element, Settings, at_ranks, check_ranks
from heterolora.elements.family import Family
from heterolora.elements.inside import has_elements, space_of
from heterolora.elements.peft_config import peft_config
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.targets import ALL_LINEAR, capped, lora_elements, not_scored
from heterolora.saliency.no_trace import random_state
from heterolora.saliency.problem import Loss, Metric, Problem, Track, rows_in, untracked
from heterolora.saliency.score import scored as score_problem
from heterolora.saliency.warm_up import WarmUp

if TYPE_CHECKING:
    from peft import LoraConfig

LossFunction = Callable[[nn.Module, Any], Tensor]

_MORE_PARAMETERS = ("use_dora", "lora_bias")
_FROM_SCORES = ("r", "lora_alpha", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern")


@torch.inference_mode(False)  # elements and batches that are made in inference mode would have no gradients
def score(
    model: nn.Module,
    batches: Iterable[Any],
    heuristic: str = "grad_norm",
    *,
    loss: LossFunction | None = None,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    target_parameters: Sequence[str] = (),
    rank: int = 8,
    alpha: float = 16.0,
    max_batches: int | None = None,
    warmup_batches: int | None = None,
    warmup_lr: float = 5e-4,
    seed: int = 0,
    family: Family | None = None,
    track: Track = untracked,
) -> Scores:
    """Score how useful LoRA is on each linear layer of a network. The network is unchanged afterwards.

    Args:
        model: any network with linear layers, e.g. a Transformers model, or a PEFT model, whose adapter is scored as it
            is. Weights, hooks, modes, `requires_grad` and the random state are the same after the call, also if it
            raises.
        batches: batches on the device of the model, e.g. a DataLoader of dictionaries.
        heuristic: one of `heterolora.heuristics()`.
        loss: (network, batch) -> scalar loss; by default `network(**batch).loss`.
        target_modules: the layers to score, as in PEFT: `all-linear`, a list of names, or a regular expression.
        target_parameters: names, or ends of names, of parameters with the weights of experts to score in addition, as
            in PEFT, such as `experts.down_proj`. With `target_modules=[]`, only they are scored.
        rank: the rank at which the elements are scored; lower for a layer of less width.
        alpha: the scaling of the elements is alpha / rank.
        max_batches: the number of batches to use; by default all.
        warmup_batches: the number of batches on which the elements are trained before scoring; the training is undone
            afterwards. By default the heuristic's own number.
        warmup_lr: the learning rate of that training.
        seed: seed of the elements' start and of ties.
        family: the table of the architecture, which `synflow` needs.
        track: (items, description) -> the same items, to show progress.

    Returns:
        the score of every element. A warning names weights of experts that `target_parameters` leaves out.

    Raises:
        UserError: no layer matches, the model has no weights, a batch is on another device, there is no
            loss, a number is out of its range, or a score is not finite.
    """
    _check_types(model, batches, heuristic, loss, target_modules, family, track)
    LIST_OF_NAMES.check("score", "target_parameters", target_parameters)
    chosen = saliency.get(heuristic)
    whole_number(1).check("score", "rank", rank)
    whole_number(0).check("score", "seed", seed)
    ABOVE_0.check("score", "alpha", alpha)
    RATE.check("score", "warmup_lr", warmup_lr)
    for name, number in (("max_batches", max_batches), ("warmup_batches", warmup_batches)):
        whole_number(0).check("score", name, 0 if number is None else number)
    names = {} if family is None else {path: name for name, path in family.linears.items()}
    adapted = has_elements(model)
    if adapted and (target_modules != ALL_LINEAR or target_parameters):
        given = "target_parameters" if target_parameters else "target_modules"
        raise UserError(f"the model has LoRA layers already, and {given} is given", f"leave {given} out")
    elements: list[Element] = []
    if not adapted:
        settings = Settings(int(rank), float(alpha))
        elements = capped(lora_elements(model, target_modules, settings, names, target_parameters))
        for text in not_scored(model, elements) if target_modules == ALL_LINEAR else ():
            warnings.warn(text, stacklevel=2)
    with random_state(model):  # a DataLoader draws random numbers
        kept = list(itertools.islice(batches, max_batches))
    if 0 in gather_lists([len(kept)]) and not chosen.is_baseline:
        raise UserError("there are no batches to score on", "give every process at least one batch")
    _check_parameters(model, chosen.is_baseline)
    steps = chosen.warmup_batches if warmup_batches is None else warmup_batches
    as_called = _autocast(model)
    # The algebra of the scores needs float32, also if the caller is inside autocast.
    outside = torch.autocast(as_called.device, enabled=False)
    wrapped = nullcontext(space_of(model)) if adapted else _wrapped(model, elements, family)
    with outside, random_state(model, seed), wrapped as space:
        problem = problem_of(model, space, kept, loss, track, as_called)
        scored = score_problem(heuristic, problem, WarmUp(kept[:steps], warmup_lr))
    modules = None if adapted else tuple(path for path, _ in model.named_modules())
    rows = rows_in(kept[:1]) or 1
    return Scores(scored, heuristic, batches=len(kept), batch_size=rows, seed=seed, modules=modules)


def _check_types(
    model: Any, batches: Any, heuristic: Any, loss: Any, target_modules: Any, family: Any, track: Any
) -> None:
    instance(nn.Module, "a torch.nn.Module").check("score", "model", model)
    instance(Iterable, "batches that can be iterated over, such as a list").check("score", "batches", batches)
    TEXT.check("score", "heuristic", heuristic)
    NAMES.check("score", "target_modules", target_modules)
    function = Condition(lambda value: callable(value) and not isinstance(value, nn.Module), "a function")
    for name, given in (("loss", loss), ("track", track)):
        if name == "track" or given is not None:
            function.check("score", name, given)
    if family is not None:
        instance(Family, "a heterolora.Family").check("score", "family", family)
        if not hasattr(model, "config"):
            raise UserError("family is given, and the model has no config", "give a model of Transformers")


@dataclass(frozen=True)
class Autocast:
    """The autocast in which a network is evaluated."""

    device: str
    enabled: bool
    dtype: torch.dtype


def problem_of(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Any],
    loss: LossFunction | None = None,
    track: Track = untracked,
    autocast: Autocast | None = None,
) -> Problem:
    """The input of a heuristic, for a network that holds the elements already.

    `loss` and `batches` are as for `score`. `autocast` is by default the one in which this function is called.
    """
    within = autocast or _autocast(model)

    def evaluated(batch: Any) -> Loss:
        try:
            with torch.autocast(within.device, within.dtype, enabled=within.enabled):
                value = (loss or _loss_of_output)(model, batch)
        except RuntimeError:
            _check_devices(model, batch)
            raise
        return Loss(_scalar(value), torch.ones(()))

    return Problem(model, space, evaluated, batches, Metric(nonnegative=False), track)


def _autocast(model: nn.Module) -> Autocast:
    device = next(model.parameters()).device.type
    device = device if torch.amp.is_autocast_available(device) else "cpu"  # a model on the meta device can be listed
    return Autocast(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))


def lora_config(
    scores: Scores,
    *,
    parameters: int | None = None,
    total_rank: int | None = None,
    share: float | None = None,
    policy: str = "proportional",
    rank: int | None = None,
    max_rank: int | None = None,
    task_type: str | None = None,
    **more: Any,
) -> LoraConfig:
    """A PEFT configuration that spends a budget on the best scores. Give one budget.

    Args:
        scores: the result of `score`, or of `heterolora.choosing.scores.read`.
        parameters: the budget in trainable parameters of the elements, r · (in + out), with experts so much for each.
            DoRA, which trains more, takes another budget.
        total_rank: the budget as the sum of all ranks.
        share: the budget as a share in (0, 1] of the whole search space.
        policy: `proportional` (ranks in proportion to the scores), `topk` (the best elements, all at one rank) or
            `greedy` (rank by rank, for heuristics that score every rank, such as `spectral`).
        rank: for `topk` only: the rank of each element; by default the rank at which it was scored.
        max_rank: for `proportional` only: the highest rank; by default the highest rank in the scores.
        task_type: PEFT's name of the task, e.g. `CAUSAL_LM`.
        more: further arguments of `peft.LoraConfig`, except those that follow from the scores: `r`, `lora_alpha`,
            targets and patterns. `use_rslora=True` keeps alpha at every rank.

    Returns:
        `peft.LoraConfig` with `target_modules`, `target_parameters`, `rank_pattern` and `alpha_pattern`. The scaling of
        each layer is that with which it was scored, or alpha / sqrt(rank) for elements with rsLoRA.

    Raises:
        UserError: not exactly one budget, a budget below the cheapest element or above the whole space, a wrong rank.
    """
    from peft import LoraConfig, TaskType

    instance(Scores, "the result of heterolora.score").check("lora_config", "scores", scores)
    if task_type is not None:
        check_known("lora_config: task_type", task_type, (each.value for each in TaskType))
    if parameters is not None and (also := next((name for name in _MORE_PARAMETERS if more.get(name)), None)):
        raise UserError(
            f"{also} adds parameters to each layer, and the budget `parameters` is of A and B alone",
            "give total_rank or share",
        )
    units: dict[str, Unit] = {"parameters": "parameters", "total_rank": "rank", "share": "share"}
    amounts = zip(units.items(), (parameters, total_rank, share), strict=True)
    given = [(name, Budget(unit, amount)) for (name, unit), amount in amounts if amount is not None]
    if len(given) != 1:
        raise UserError(f"{len(given)} budgets are given", "give one of parameters, total_rank and share")
    if fixed := [name for name in _FROM_SCORES if name in more]:
        raise UserError(f"lora_config is given {fixed[0]}", "leave it out: it follows from the scores and the budget")
    TEXT.check("lora_config", "policy", policy)
    for limit, number in (("rank", rank), ("max_rank", max_rank)):
        whole_number(1).check("lora_config", limit, 1 if number is None else number)
    name, budget = given[0]
    ABOVE_0.check("lora_config", name, budget.amount)
    lora = of_kind(scores.scored, "lora")
    assigned = assign(lora, _policy(policy, rank, max_rank, lora), budget, "off", tie_generator(scores.seed, 0))
    elements = [item.element for item in lora]
    if more.pop("use_rslora", False):
        elements = _with_rslora(elements)
    on = at_ranks(elements, assigned.ranks)
    check_ranks(on)
    values = peft_config(on, task_type, modules=scores.modules)
    del values["peft_type"]
    return LoraConfig(**{**values, **more})


def _with_rslora(elements: Sequence[Element]) -> list[Element]:
    """The elements with the alpha of the highest rank. A narrow layer was scored at a lower rank and a lower alpha."""
    highest = max((each.rank for each in elements), default=0)
    return [
        replace(each, settings=replace(each.settings, alpha=each.settings.scaling * highest, use_rslora=True))
        if not each.settings.use_rslora
        else each
        for each in elements
    ]


def _policy(name: str, rank: int | None, max_rank: int | None, lora: Sequence[Scored]) -> Policy:
    if name == "topk" and max_rank is None:
        return TopK(rank)
    if name == "proportional" and rank is None:
        highest = max((item.element.rank for item in lora), default=1)
        return Proportional(0, highest if max_rank is None else max_rank)
    if name == "greedy" and rank is None and max_rank is None:
        return Greedy()
    check_known("policy", name, ("proportional", "topk", "greedy"))
    raise UserError(f"policy '{name}' does not use the given limit", "rank is for 'topk', max_rank for 'proportional'")


@contextmanager
def _wrapped(model: nn.Module, elements: Sequence[Element], family: Family | None) -> Iterator[SearchSpace]:
    """Elements on the linear layers of `model` inside the block; afterwards the layers are as before."""
    layers = {element.host: model.get_submodule(element.host) for element in elements}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # `nn.TransformerEncoder`'s fast path does not call its layers
        if family is None:
            yield SearchSpace(wrap(model, elements))
        else:
            family.check(model.config)
            blocks = tuple(blocks_of(model, family))
            yield SearchSpace(wrap(model, elements), blocks, family, family.pre_norm(model.config))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for path, layer in layers.items():
            model.set_submodule(path, layer)


def _loss_of_output(network: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        expected = "give batches that are dictionaries, or loss=(network, batch) -> scalar"
        raise UserError(f"a batch is a {type(batch).__name__}", expected)
    loss: Tensor | None = getattr(network(**batch), "loss", None)
    if loss is None:
        raise UserError("the output of the network has no loss", "add labels to the batches, or give loss=")
    return loss


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"the loss is {found}", "expected a scalar tensor")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError("the loss does not depend on the scored layers", "expected a loss with gradients")
    return loss.reshape(())


def _check_parameters(model: nn.Module, values_unused: bool) -> None:
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UserError("the model was made in inference mode", "make it outside torch.inference_mode()")
    if not values_unused and any(parameter.is_meta for parameter in model.parameters()):
        raise UserError("the model has parameters without values (on the meta device)", "load the whole model first")


def _check_devices(model: nn.Module, batch: Any) -> None:
    """Raise `UserError` if a tensor of the batch is on a device without any parameter of the model."""
    devices = {parameter.device for parameter in model.parameters()}
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    for tensor in values:
        if isinstance(tensor, Tensor) and tensor.device not in devices:
            raise UserError(
                f"the batches are on {tensor.device}, the model is on {', '.join(sorted(map(str, devices)))}",
                "move the batches to the model's device before scoring",
            )
