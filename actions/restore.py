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
    sha256 = request.recorded.base_sha256 if request.recorded else ""  # none can be computed
    return replace(_with_weights(request, network, space, sha256), notes=() if planned is None else planned.notes)


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
    record = request.recorded or own
    return Restored(network, space, record if request.adapter is not None else replace(record, base=request.base))
