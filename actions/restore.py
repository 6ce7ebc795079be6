"""A model as a run left it, without its data: for exports, and for looking at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from actions.experiment import plan_elements
from actions.resolve import Request
from heterolora.adapt import adapt, heads
from heterolora.search_space import SearchSpace
from model.checkpoint import Record, record_of
from model.load import load_base, load_config
from model.peft_format.fit import check_weights, put_into
from model.skeleton import skeleton
from model.trained import take

_IN_TASK = "network."  # a checkpoint's names are those of the task around the network


@dataclass(frozen=True)
class Restored:
    """A network with its trained weights.

    Attributes:
        network: adapted, or plain.
        space: its search space if it is adapted.
        record: of the run that trained it.
        notes: lines worth telling the user.
    """

    network: PreTrainedModel
    space: SearchSpace | None
    record: Record
    notes: tuple[str, ...] = ()


def restore_trained(request: Request) -> Restored:
    """What was trained, in a base whose tensors are on the meta device: nothing of the base is read but its
    configuration. Without a checkpoint or adapter the elements are on the meta device too.

    Raises:
        UserError: configuration, checkpoint or adapter do not fit.
    """
    config = load_config(request.base.name, request.spec)
    planned = plan_elements(request, config)
    network = skeleton(config, request.spec.task)
    space = None if planned is None else adapt(network, planned)
    if space is not None and (request.checkpoint or request.adapter):
        for low_rank in space:
            low_rank.to_empty(device="cpu")
        for head in heads(network):
            head.to_empty(device="cpu")
    notes = () if planned is None else planned.notes
    return replace(_with_weights(request, network, space, _sha256(request)), notes=notes)


def restore(request: Request, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Restored:
    """The whole model, its base in the dtype of its files, or quantised as it was trained.

    Args:
        request: names a checkpoint or an adapter.
        config: of the base.
        tokenizer: of the base.

    Raises:
        UserError: base, configuration, checkpoint or adapter do not fit.
    """
    options, spec = request.options, request.spec
    planned = plan_elements(request, config)
    precision = None if options.quantize is None else options.precision
    base = load_base(request.base, config, tokenizer, spec.task, precision, options.quantize)
    space = None if planned is None else adapt(base.network, planned)
    return _with_weights(request, base.network, space, base.sha256)


def _with_weights(request: Request, network: PreTrainedModel, space: SearchSpace | None, sha256: str) -> Restored:
    own = Record(request.action, {}, request.base, sha256)
    if request.checkpoint is not None:
        record = record_of(request.checkpoint)
        take(network, space, own, record, _own_names(request.checkpoint["state_dict"]))
        return Restored(network, space, replace(record, base=request.base))
    if request.adapter is not None:
        check_weights(request.adapter, sha256, request.spec.task)
        put_into(request.adapter, network, space)
        return Restored(network, space, request.adapter.record or own)
    return Restored(network, space, own)


def _sha256(request: Request) -> str:
    """The fingerprint of the base that checkpoint or adapter was trained on, where none can be taken."""
    if request.checkpoint is not None:
        return record_of(request.checkpoint).base_sha256
    noted = request.adapter.record if request.adapter is not None else None
    return "" if noted is None else noted.base_sha256


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_IN_TASK): tensor for name, tensor in state.items()}
