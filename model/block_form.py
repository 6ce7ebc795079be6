"""The form of the blocks of any model, found by running a small copy of it: which numbers are x, h, and the halves'.

Shortcuts are defined for the forms of `heterolora.elements.shortcut`: pre-norm, post-norm, and blocks whose only norms
are those of the halves' outputs. A form that fits the numbers is then tried with shortcuts: each block must compute
their equations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.blocks import blocks_of
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Settings
from heterolora.elements.family import Family, always, never
from heterolora.elements.linear import is_linear
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.task import Task
from model.family import PAGE
from model.tiny_copy import VOCABULARY, tiny_copy

_TOLERANCE = 1e-4  # of the largest number
_SHORTCUTS = ElementConfig("shortcut", "network", Settings(rank=2, alpha=4.0), {})


def with_norms(network: PreTrainedModel, family: Family, task: Task) -> Family:
    """The family with the form of the blocks of a network, whose tensors may be on the meta device.

    Raises UserError with the reason if they have none of the known forms.
    """
    kinds = [_kind(block) for block in blocks_of(network, family)]
    found = _found(family, network.config, task, kinds)
    if isinstance(found, Family):
        return found
    name = network.config.model_type
    raise UserError(
        f"a model of type '{name}' has no table, and its blocks have no form that shortcuts know: {found}",
        f"give --model lora, or see {PAGE}",
    )


def _kind(block: nn.Module) -> tuple[tuple[str, type[nn.Module]], ...]:
    """Path and class of each module: blocks of one kind have the same."""
    return tuple((path, type(module)) for path, module in block.named_modules())


def _found(family: Family, config: PretrainedConfig, task: Task, kinds: Sequence[object]) -> Family | str:
    """The family with the form of its blocks, which have these kinds, or the reason why there is none."""
    layers = max(2, 1 + max(kinds.index(kind) for kind in kinds))  # the first ones, of all kinds
    for narrow in (True, False):
        network = tiny_copy(config, task, narrow, layers)
        every = None if network is None else _runs(network, family)
        if network is None or every is None:
            continue
        if not {*kinds} <= {_kind(block) for block in blocks_of(network, family)}:
            return "a small copy of it has other blocks"
        runs = [run for run in every if run is not None]
        if len(runs) < len(every):
            return "a block runs several times, or gets its input by name"
        found = next((form for form in _forms(runs, family) if _computes(network, form)), None)
        return _why_not(runs, family) if found is None else found
    return "a small copy of it could not be tried"


@dataclass(frozen=True)
class _Call:
    """A call of a module inside a block: its path, its first input, and its output or the first value of that."""

    path: str
    given: Tensor
    made: Tensor
    is_norm: bool
    is_linear: bool


@dataclass(frozen=True)
class _Run:
    """A forward pass of a block: x, y, and the calls in it, in the order in which they ended."""

    x: Tensor
    y: Tensor
    calls: tuple[_Call, ...]
    returns_tuple: bool

    def at(self, path: str) -> _Call:
        return next(call for call in self.calls if call.path == path)

    def has(self, *paths: str) -> bool:
        return {*paths} <= {call.path for call in self.calls}


class _Recorder:
    """Records the calls in a block. Hooks that are registered later do not change what it sees."""

    def __init__(self, block: nn.Module) -> None:
        self.calls: list[_Call] = []
        self.whole: list[tuple[Tensor, Any]] = []
        for path, module in block.named_modules():
            module.register_forward_hook(partial(self._keep, path) if path else self._keep_whole)

    def _keep(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        made = _first(output)
        if args and isinstance(args[0], Tensor) and isinstance(made, Tensor):
            kinds = (_is_norm(module), is_linear(module))
            self.calls.append(_Call(path, args[0].clone(), made.clone(), *kinds))

    def _keep_whole(self, _block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args:
            self.whole.append((args[0].clone(), output))

    def run(self) -> _Run | None:
        """The run, without modules that were called more than once. None if the block was not called once."""
        if len(self.whole) != 1:
            return None
        (x, output), paths = self.whole[0], [call.path for call in self.calls]
        once = tuple(call for call in self.calls if paths.count(call.path) == 1)
        return _Run(x, _first(output), once, isinstance(output, tuple))


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm. Some models have the identity in the place of one."""
    name = type(module).__name__.lower()
    return next(module.children(), None) is None and ("norm" in name or isinstance(module, nn.Identity))


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


@torch.no_grad()
def _runs(network: PreTrainedModel, family: Family) -> list[_Run | None] | None:
    """A run of each block. None if the network does not run."""
    network = copy.deepcopy(network)
    recorders = [_Recorder(block) for block in blocks_of(network, family)]
    try:
        _run_once(network)
    except Exception:  # of a copy whose widths do not fit together
        return None
    return [recorder.run() for recorder in recorders]


def _run_once(network: PreTrainedModel) -> None:
    ids = torch.randint(3, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))
    network(input_ids=ids, attention_mask=torch.ones_like(ids))


def _forms(runs: list[_Run], family: Family) -> Iterator[Family]:
    """The forms that fit every block. The ends of the halves are layers, or else the whole halves."""
    first, *others = ([*_pre_norm(run), *_post_norm(run)] for run in runs)
    layers = {call.path for call in runs[0].calls if call.is_norm or call.is_linear}

    def outside(form: _Form) -> int:
        return sum(path.count(".") + 1 for path in (form.end1, form.end2) if path not in layers)

    for form in sorted(first, key=outside):
        if all(form in found for found in others):
            yield form.of(family, runs[0])


@dataclass(frozen=True)
class _Form:
    """Paths in a block: its norms, and the modules whose outputs are those of the halves."""

    pre_norm: bool
    norm1: str
    norm2: str
    end1: str
    end2: str

    def of(self, family: Family, run: _Run) -> Family:
        o_proj, w2 = (family.linears.get(name) for name in ("o_proj", "w2"))
        norms = {call.path for call in run.calls if call.is_norm}
        return replace(
            family,
            norm1=self.norm1,
            norm2=self.norm2,
            pre_norm=always if self.pre_norm else never,
            end_norm1=self.end1 if self.end1 in norms else "",
            end_norm2=self.end2 if self.end2 in norms else "",
            attention="" if self.end1 in {*norms, o_proj} else self.end1,
            feed_forward="" if self.end2 in {*norms, w2} else self.end2,
            returns_tuple=run.returns_tuple,
        )


def _pre_norm(run: _Run) -> Iterator[_Form]:
    """h = x + a and y = h + f, where h is the input of a later module."""
    for index, a in enumerate(run.calls):
        h, later = _sum(run.x, a.made), run.calls[index + 1 :]
        takers = [] if h is None else [call for call in later if _same(call.given, h)]
        if h is None or not takers:
            continue
        norms1, norms2 = (
            [call.path for call in calls if call.is_norm and _same(call.given, source)]
            for calls, source in ((run.calls, run.x), (takers, h))
        )
        for f in later:
            if _same(_sum(h, f.made), run.y):
                yield from (
                    _Form(True, norm1, norm2, a.path, f.path)
                    for norm1, norm2 in product(norms1 or [""], norms2 or [""])
                    if bool(norm1) == bool(norm2)
                )


def _post_norm(run: _Run) -> Iterator[_Form]:
    """h = norm1(x + a) and y = norm2(h + f)."""
    norms = [call for call in run.calls if call.is_norm]
    for a, norm1 in product(run.calls, norms):
        if not _same(_sum(run.x, a.made), norm1.given):
            continue
        for f, norm2 in product(run.calls, norms):
            if _same(_sum(norm1.made, f.made), norm2.given) and _same(norm2.made, run.y):
                yield _Form(False, norm1.path, norm2.path, a.path, f.path)


def _why_not(runs: list[_Run], family: Family) -> str:
    if next(_forms(runs, family), None) is not None:
        return "the layers that get the inputs of its halves are not v_proj and w1"
    if all(any(_forms([run], family)) for run in runs):
        return "its blocks differ in their forms"
    for run in runs:
        halves = (_sum(a.made, f.made) for a, f in product(run.calls, run.calls) if a is not f)
        if not any(half is not None and _same(_sum(run.x, half), run.y) for half in halves):
            return "the output of a block is not the sum of its input and of the outputs of its halves"
    return "both halves of a block have the same input"


@torch.no_grad()
def _computes(network: PreTrainedModel, family: Family) -> bool:
    """Whether the blocks compute the equations of shortcuts. The network gets shortcuts in a copy."""
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recorders = [_Recorder(block) for block in blocks_of(network, family)]  # before the hooks of the shortcuts
        try:
            space = adapt(network, placement_of(network, family, None, _SHORTCUTS))
        except (KeyError, AttributeError):  # the form needs a layer that the blocks do not have
            return False
        for low_rank in space:
            low_rank.B.normal_(std=0.3)
    _run_once(network)
    before = None
    for layer, recorder in enumerate(recorders):
        run = recorder.run()
        first, second = family.starts(space.pre_norm)
        if run is None or not run.has(first, second, *family.ends):
            return False
        h, y = _equations(run, space, layer, before)
        if not (_same(run.at(first).given, run.x) and _same(run.at(second).given, h) and _same(run.y, y)):
            return False
        before = h
    return True


def _equations(run: _Run, space: SearchSpace, layer: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """h and y of a block, from what its halves made; see `heterolora.elements.shortcut`."""
    block, family, x = space.blocks[layer], present(space.family), run.x
    delta = {low_rank.element.name: low_rank for low_rank in space if low_rank.element.layer == layer}
    a, f = (run.at(path).made.view_as(x) for path in family.ends)
    h = x + a + delta["residual1"](x) + (0.0 if before is None else delta["shortcut2"](before))
    if not space.pre_norm:
        h = block.get_submodule(family.norm1).forward(h)  # without its hooks
    y = h + f + delta["residual2"](h) + delta["shortcut1"](x)
    return h, (y if space.pre_norm else block.get_submodule(family.norm2).forward(y))


def _sum(one: Tensor, other: Tensor) -> Tensor | None:
    """The sum of as many numbers, in the shape of the first."""
    return one + other.reshape(one.shape) if one.numel() == other.numel() and one.is_floating_point() else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.numel() != other.numel():
        return False
    difference = (one.flatten() - other.flatten()).abs().max()
    return bool(difference <= _TOLERANCE * other.abs().max())
