"""The plan of a model, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from actions.command.request import Request
from actions.result.restore import restore_trained
from dataset.encoding.encode import DEFAULT_LENGTH
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from model.load import base_dtype
from tools.planning.base import base_of, packed_layers
from tools.planning.gpus import GIGA, Gpu
from tools.planning.plan import BLOCKS_AT_ONCE, RESERVED, GpuPlan, Setting, Trained, settings
from tools.planning.step import BatchShape, steps

_BOTH = (False, True)  # without and with gradient checkpointing
CHECKPOINTING = "--gradient-checkpointing"
_STATES = {"adam": 2, "adamw": 2, "sgd": 0}


@dataclass(frozen=True)
class PlanReport:
    """What the tool shows of a plan."""

    plan: GpuPlan
    batch: BatchShape
    title: str
    notes: tuple[str, ...]

    def as_values(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "card": None if plan.gpu is None else asdict(plan.gpu),
            "memory": plan.memory,
            "batch": asdict(self.batch),
            "elements": plan.trained.elements,
            "optimizer": plan.trained.optimizer,
            "base": asdict(plan.base),
            "plain": asdict(plan.steps[0]),
            "checkpointing": asdict(plan.steps[1]),
            "fits": None if (smallest := plan.smallest()) is None else asdict(smallest),
            "rows": [_values(plan, setting) for setting in settings(plan)],
        }

    def shown(self) -> Iterator[Table | str]:
        yield verdict(self.plan)
        yield self.title
        for part in (step_table(self.plan), gpu_table(self.plan), explanation(self.plan)):
            yield ""
            yield part


def plan_report(request: Request, gpu: Gpu | None, memory: int) -> PlanReport:
    """Trace a training step of the request. Raises UserError if an option has no plan."""
    options = request.options
    precision, quantize = options.devices.precision, options.quantize
    if quantize == "int8":
        raise UserError("--plan does not know the memory of --quantize int8", "use --quantize nf4, or leave it out")
    if precision == "64":
        raise UserError("--plan has no rates of GPUs for --precision 64", "use 32 or a 16-bit kind")
    restored = restore_trained(request, base_dtype(precision))
    network, space = restored.network, present(restored.space)
    network.config.use_cache = False
    network.config.pad_token_id = network.config.pad_token_id or 0
    labels = request.spec.num_labels if request.spec.classifies else None
    batch = BatchShape(options.data.batch_size, _length(request, network.config), labels)
    packed = packed_layers(network, quantize, precision)
    base = base_of(network, space, packed, precision)
    updated = {p for p in network.parameters() if p.requires_grad}
    every = updated | {p for low_rank in space for p in low_rank.parameters()}
    trained = Trained(_numbers(every), _numbers(updated), _STATES[options.optimization.optimizer])
    weights = _numbers({*network.parameters()} - every)
    half = precision.startswith(("16", "bf16"))
    plan = GpuPlan(base, trained, steps(network, space, batch, precision, packed), gpu, memory, half)
    how = f"--precision {precision}" + (f" --quantize {quantize}" if quantize else "")
    title = (
        f"{request.base.name}: {weights:,} weights, {how}; a batch of {batch.rows:,} × {batch.tokens:,} tokens on each "
        f"GPU ({'' if gpu is None else f'{gpu.name}, '}{memory / GIGA:.1f} GB)"
    )
    return PlanReport(plan, batch, title, restored.notes)


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _length(request: Request, config: Any) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    if present(request.adapted).family.positions_after_padding:
        positions -= config.pad_token_id + 1
    given = request.options.data.max_token_len
    if given is not None and given > positions:
        raise UserError(f"--max-token-len {given} is more than the model takes", f"at most {positions}")
    return given or min(positions, DEFAULT_LENGTH)


# ---- tables


def verdict(plan: GpuPlan) -> str:
    """The answer in one line."""
    unit, each = _unit(plan), f"{plan.memory / GIGA:.3g} GB"
    found = plan.smallest()
    if found is None:
        least = min(settings(plan), key=plan.peak)
        needs = f"{unit.shown(plan.peak(least) + RESERVED)} {unit.name}"
        return f"does not fit: {least.gpus} GPUs of {each} are too small, each needs {needs}"
    given = {"--strategy fsdp": found.sharded, CHECKPOINTING: found.checkpointing}
    how = " and ".join(flag for flag, is_given in given.items() if is_given)
    return f"fits on {found.gpus} × {each}" + (f" with {how}" if how else "")


def step_table(plan: GpuPlan) -> Table:
    """What does not depend on the number of GPUs."""
    unit = _unit(plan)
    table = _table(f"{unit.name} of a GPU, besides the base", "plain", CHECKPOINTING)
    plain, checkpointed = plan.steps
    trained = plan.trained
    for name, one, other in (
        ("elements and head, with gradients", trained.elements, trained.elements),
        ("state of the optimizer", trained.optimizer, trained.optimizer),
        ("activations", plain.activations, checkpointed.activations),
        ("  of them kept during the loss", plain.kept, checkpointed.kept),
        ("logits", plain.logits, checkpointed.logits),
    ):
        table.add_row(name, unit.shown(one), unit.shown(other))
    table.add_section()
    table.add_row("TFLOP of a step", f"{plain.flops / 1e12:.3g}", f"{checkpointed.flops / 1e12:.3g}")
    return table


def gpu_table(plan: GpuPlan) -> Table:
    """A row for each number of GPUs, with a replicated and with a sharded base."""
    unit = _unit(plan)
    columns = ("peak",) if plan.gpu is None else ("peak", "seconds")
    table = _table("GPUs", "base", "share", "gathered", *columns, *(f"{name}*" for name in columns), "sent")
    for gpus, sharded in _rows(plan):
        both = [Setting(gpus, sharded, checkpointing) for checkpointing in _BOTH]
        first = both[0]
        cells = [unit.shown(plan.base_share(first)), unit.shown(plan.gathered(first)) if sharded else ""]
        for setting in both:
            fits, seconds = plan.fits(setting), plan.seconds(setting)
            cells.append(unit.shown(plan.peak(setting)) + ("" if fits else " (no)"))
            if plan.gpu is not None:
                cells.append("" if seconds is None or not fits else f"{seconds:.2g}")
        sent = unit.shown(plan.sent(first)) if gpus > 1 else ""
        table.add_row(str(gpus), "sharded" if sharded else "whole", *cells, sent)
    return table


def explanation(plan: GpuPlan) -> str:
    unit = _unit(plan).name
    seconds = f"seconds: an estimate of a step on {plan.gpu.name} GPUs in one machine. " if plan.gpu is not None else ""
    return (
        f"{unit} of each GPU. share: what it holds of the base. gathered: {BLOCKS_AT_ONCE} whole blocks, and what is "
        "outside the blocks. peak: share, gathered, elements, optimizer, and the larger of activations and kept + "
        f"logits. (no): more than {plan.memory / GIGA:.3g} GB, less {RESERVED / GIGA:.0f} GB for CUDA itself. {seconds}"
        f"*: with {CHECKPOINTING}. sent: bytes that it sends in a step."
    )


def _values(plan: GpuPlan, setting: Setting) -> dict[str, Any]:
    """The JSON object of a setting."""
    return {
        **asdict(setting),
        "base_share": plan.base_share(setting),
        "gathered": plan.gathered(setting),
        "peak": plan.peak(setting),
        "fits": plan.fits(setting),
        "sent": plan.sent(setting),
        "seconds": plan.seconds(setting),
    }


def _rows(plan: GpuPlan) -> Iterator[tuple[int, bool]]:
    yield from dict.fromkeys((setting.gpus, setting.sharded) for setting in settings(plan))


def _table(*names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(names):
        table.add_column(name, overflow="fold", justify="left" if place == 0 or name == "base" else "right")
    return table


class _Unit(NamedTuple):
    name: str
    size: int

    def shown(self, size: int) -> str:
        value = size / self.size
        return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _unit(plan: GpuPlan) -> _Unit:
    return _Unit("GB", GIGA) if plan.base.whole >= GIGA else _Unit("MB", 10**6)
