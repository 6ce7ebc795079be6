"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) as PEFT computes it, in the training loop of this program.

AdaLoRA starts with the same rank in every place. It scores the single ranks during training, masks the lowest ones
step by step, and trains the rest in the last steps. PEFT counts its budget in ranks, and a study counts parameters. So
at the last allocation its number of ranks is the highest one whose ranks, in PEFT's own order, cost at most the budget.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

import pytorch_lightning as pl
import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.element import Element, at_ranks
from model.lightning import window_ends

ADAPTER = "default"  # PEFT's name of the first adapter
_START = 1.5  # ranks at the start, relative to those at the end, as in the paper
_FEWEST_STEPS = 3  # one step scores the ranks, the next one allocates them, and the last one trains with them


def adalora_config(places: Sequence[Element], budget: int, steps: int, **shared: Any) -> AdaLoraConfig:
    """The configuration for a budget in parameters and a run of `steps` optimizer steps.

    `target_r` is the average rank that the budget pays for at the mean cost of a rank. `init_r` is 1.5 times that,
    rounded up, and at most the width of the narrowest place. Ranks are constant in the first tenth of the steps, and in
    the second half, which is close to the paper's settings for GLUE.
    """
    if steps < _FEWEST_STEPS:
        raise UserError(f"peft:adalora has {steps} optimizer steps", f"it needs at least {_FEWEST_STEPS}")
    ranks = int(budget / fmean(element.width for element in places))
    if ranks < 1:
        raise UserError(f"a budget of {budget} is below one rank", "give a higher one")
    narrowest = min(element.highest_rank for element in places)
    start = min(-int(-_START * ranks // len(places)), narrowest)
    return AdaLoraConfig(
        init_r=start,
        target_r=cast(int, min(ranks, start * len(places) - 1) / len(places)),  # PEFT computes with any number
        lora_alpha=cast(int, start * places[0].settings.scaling),  # and divides it by init_r
        tinit=steps // 10,
        tfinal=steps // 2,
        deltaT=max(1, steps // 700),
        total_step=steps,
        **shared,
    )


class Allocate(pl.Callback):
    """Adds AdaLoRA's regulariser to the gradients of each optimizer step, and allocates the ranks after it.

    Args:
        network: a network with PEFT's AdaLoRA layers in all `places`.
        budget: parameters of the ranks at the end.
    """

    def __init__(self, network: PeftModel, places: Sequence[Element], budget: int) -> None:
        config, tuner = network.peft_config[ADAPTER], network.base_model
        assert isinstance(config, AdaLoraConfig)
        assert isinstance(tuner, AdaLoraModel)
        self.config, self.tuner, self.places, self.budget = config, tuner, places, budget
        self.allocator = cast(RankAllocator, tuner.rankallocator)  # torch types attributes as tensors and modules
        self.allocator.target_bgt = round(self.config.target_r * len(places))
        self.names = {element.key: f"{element.module}.lora_E.{ADAPTER}" for element in places}  # of singular values

    def state_dict(self) -> dict[str, Any]:
        allocator = self.allocator
        sums = {"sensitivity": dict(allocator.exp_avg_ipt), "uncertainty": dict(allocator.exp_avg_unc)}
        return {**sums, "target": allocator.target_bgt, "pattern": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc = state["sensitivity"], state["uncertainty"]
        self.allocator.target_bgt, self.config.rank_pattern = state["target"], state["pattern"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        allocator, own = self.allocator, dict(self.tuner.model.named_parameters())
        for sums in (allocator.exp_avg_ipt, allocator.exp_avg_unc):  # of a checkpoint, which is read onto the CPU
            sums.update({name: value.to(own[name].device) for name, value in sums.items()})
        allocator.ipt = dict(allocator.exp_avg_ipt)  # PEFT overwrites its values, and looks for its keys

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        matrices = _matrices(self.tuner.model)
        gradients = torch.autograd.grad(self.config.orth_reg_weight * orthogonality(self.tuner.model), matrices)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient if matrix.grad is None else matrix.grad + gradient

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not window_ends(trainer):
            return
        step, config = trainer.global_step, self.config
        if step == present(config.total_step) - config.tfinal:
            self.allocator.target_bgt = bisect_right(range(self.allocator.init_bgt), self.budget, key=self._cost) - 1
        self.tuner.update_and_allocate(step)

    def _cost(self, ranks: int) -> int:
        """The parameters of the best `ranks` ranks. The network is unchanged."""
        values = {name: parameter for name, parameter in self.tuner.model.named_parameters() if ".lora_E." in name}
        before = {name: parameter.detach().clone() for name, parameter in values.items()}
        pattern = self.allocator.mask_to_budget(self.tuner.model, ranks)
        with torch.no_grad():
            for name, parameter in values.items():
                parameter.copy_(before[name])
        return sum(element.parameters for element in self._at(pattern))

    def final_elements(self, part: bool = False) -> list[Element]:
        """The places with a rank after the last allocation, at that rank. Raises UserError if it did not happen, unless
        the run is stopped after a `part` of it: then at the ranks at the start.
        """
        if self.config.rank_pattern is None and part:
            return at_ranks(self.places, dict.fromkeys(self.names, self.config.init_r))
        if self.config.rank_pattern is None:
            raise UserError("the run ended before AdaLoRA's last allocation", "leave out what ends it, or train again")
        return self._at(self.config.rank_pattern)

    def _at(self, pattern: Mapping[str, Sequence[bool]]) -> list[Element]:
        return at_ranks(self.places, {key: sum(pattern[name]) for key, name in self.names.items()})


def _matrices(network: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in network.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def orthogonality(network: nn.Module) -> Tensor:
    """The mean of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ over all places: A is (r, in), and B is (out, r).

    PEFT adds it to a loss that the network computes. Here the task computes the loss.
    """
    products = [(m @ m.T if m.shape[0] < m.shape[1] else m.T @ m) for m in _matrices(network)]
    return torch.stack([torch.linalg.norm(p - torch.eye(len(p), device=p.device)) for p in products]).mean()
