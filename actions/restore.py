"""A trained model without its data, for exports and inspection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from actions.experiment import plan_elements, put_weights
from actions.resolve import Request
from heterolora.adapt import adapt, heads
from heterolora.search_space import SearchSpace
from model.checkpoint import Record
from model.load import load_base, load_config
from model.skeleton import skeleton


@dataclass(frozen=True)
class Restored:
    """A network with its trained weights.

    Attributes:
        network: adapted, or plain.
        space: its search space if it is adapted.
        record: of the run that trained it.
        notes: lines to print.
    """

    network: PreTrainedModel
    space: SearchSpace | None
    record: Record
    notes: tuple[str, ...] = ()


def restore_trained(request: Request) -> Restored:
    """The trained weights, in a base whose tensors are on the meta device: only its configuration is read.

    Without a checkpoint or adapter the elements are on the meta device too.

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
    """The whole model. Its base has the dtype of its files, or is quantised as in training.

    Args:
        request: names a checkpoint or an adapter.
        config: of the base.
        tokenizer: of the base.

    Raises:
        UserError: base, configuration, checkpoint or adapter do not fit.
    """
    options, spec = request.options, request.spec
    planned = plan_elements(request, config)
    precision = None if options.quantize is None else options.devices.precision
    base = load_base(request.base, config, tokenizer, spec.task, precision, options.quantize)
    space = None if planned is None else adapt(base.network, planned)
    return _with_weights(request, base.network, space, base.sha256)


def _with_weights(request: Request, network: PreTrainedModel, space: SearchSpace | None, sha256: str) -> Restored:
    own = Record(request.action, {}, request.base, sha256)
    put_weights(request, own, network, space)
    if request.checkpoint is not None:
        return Restored(network, space, replace(request.checkpoint.record, base=request.base))
    recorded = None if request.adapter is None else request.adapter.record
    return Restored(network, space, recorded or own)


def _sha256(request: Request) -> str:
    """The recorded fingerprint of the base, for a network without the base's weights."""
    if request.checkpoint is not None:
        return request.checkpoint.record.base_sha256
    noted = request.adapter.record if request.adapter is not None else None
    return "" if noted is None else noted.base_sha256
