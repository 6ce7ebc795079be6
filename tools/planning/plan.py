"""The memory and the time of a training step on N GPUs of one machine: arithmetic on sizes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.planning.base import Base
from tools.planning.gpus import GIGA, Gpu
from tools.planning.step import StepCost

# Part of a GPU's rate that training reaches. Llama 3 405B: 38 to 43 % (Grattafiori et al. 2024, arXiv:2407.21783,
# table 4). PaLM 540B: 46 % (Chowdhery et al. 2022, arXiv:2204.02311, table 3).
REACHED = 0.4
# Bytes that CUDA, its libraries and gaps between tensors take: an assumption.
RESERVED = GIGA
# Blocks that FSDP2 holds at once: the running one, the next, and the one whose memory is being freed.
BLOCKS_AT_ONCE = 3
ONE_MACHINE = 8  # GPUs; the card's link joins those of one machine


@dataclass(frozen=True)
class Trained:
    """What is trained: elements and a classification head. Each number takes 4 bytes.

    Attributes:
        numbers: of all elements, on or off, and the head.
        updated: those of elements that are on, and the head.
        states: numbers that the optimizer keeps for each: two means for Adam (Kingma and Ba 2015), none for SGD.
    """

    numbers: int
    updated: int
    states: int

    @property
    def elements(self) -> int:
        """Values (4 bytes · numbers) and gradients (4 bytes · updated)."""
        return 4 * (self.numbers + self.updated)

    @property
    def optimizer(self) -> int:
        return 4 * self.states * self.updated

    def update(self, gpus: int) -> int:
        """Bytes that exist only in the update: Adam's root, or the flat gradient of the all-reduce, which is copied."""
        return 4 * self.updated * (1 if gpus == 1 else 2)


@dataclass(frozen=True)
class Setting:
    """How a step runs on `gpus` GPUs. Every GPU has a batch of its own."""

    gpus: int
    sharded: bool
    checkpointing: bool


@dataclass(frozen=True)
class GpuPlan:
    """The sizes of a model and of its step, and the GPU.

    Attributes:
        steps: without and with gradient checkpointing.
        gpu: None: only the memory is planned.
        half: whether matrix products are in 16 bits.
    """

    base: Base
    trained: Trained
    steps: tuple[StepCost, StepCost]
    gpu: Gpu | None
    memory: int  # bytes of a GPU
    half: bool

    def step(self, setting: Setting) -> StepCost:
        return self.steps[setting.checkpointing]

    # ---- bytes that a GPU holds

    def base_share(self, setting: Setting) -> int:
        """Of the base. The scales of a 4-bit base are whole on every GPU."""
        if not setting.sharded:
            return self.base.whole
        return -(-(self.base.whole - self.base.constants) // setting.gpus) + self.base.constants

    def gathered(self, setting: Setting) -> int:
        """Whole blocks, and what is outside the blocks, which stays gathered from the forward pass on."""
        return self.base.outside + BLOCKS_AT_ONCE * self.base.block if setting.sharded else 0

    def peak(self, setting: Setting) -> int:
        """The parts that always exist, and the largest of those that exist one after another."""
        always = self.base_share(setting) + self.gathered(setting) + self.trained.elements + self.trained.optimizer
        return always + max(self.step(setting).peak, self.trained.update(setting.gpus))

    def fits(self, setting: Setting) -> bool:
        return self.peak(setting) + RESERVED <= self.memory

    # ---- bytes that a GPU sends in a step

    def sent(self, setting: Setting) -> int:
        """A ring: each GPU sends (N - 1) / N of what all gather, and twice that of what they sum (Patarasuk and Yuan
        2009)."""
        return self._gathers(setting) + 2 * 4 * self.trained.updated * (setting.gpus - 1) // setting.gpus

    def _gathers(self, setting: Setting) -> int:
        return self.base.gathered * (setting.gpus - 1) // setting.gpus if setting.sharded else 0

    # ---- seconds

    def seconds(self, setting: Setting) -> float | None:
        """Computing and gathering overlap; the all-reduce comes after them. None without a GPU's rates."""
        if self.gpu is None or setting.gpus > ONE_MACHINE:
            return None
        gathers = self._gathers(setting)
        computing = self._computing(setting, self.gpu)
        return max(computing, gathers / self.gpu.link) + (self.sent(setting) - gathers) / self.gpu.link

    def _computing(self, setting: Setting, gpu: Gpu) -> float:
        """Bounded by arithmetic or by reading the weights in every pass (roofline, Williams et al. 2009)."""
        rate = gpu.flops16 if self.half else gpu.flops32
        passes = 3 if setting.checkpointing else 2
        return max(self.step(setting).flops / (REACHED * rate), passes * self.base.whole / gpu.bandwidth)

    # ---- the smallest setting

    def smallest(self) -> Setting | None:
        """The first setting that fits: few GPUs before many, a whole base before a sharded one, no checkpointing before
        it, which takes time.
        """
        return next((setting for setting in settings(self) if self.fits(setting)), None)


def settings(plan: GpuPlan) -> Iterator[Setting]:
    for gpus in counts(plan):
        for sharded in (False, True) if gpus > 1 else (False,):
            yield from (Setting(gpus, sharded, checkpointing) for checkpointing in (False, True))


def counts(plan: GpuPlan) -> list[int]:
    """1, 2, 4, 8 GPUs, and more if a base that is sharded over 8 does not fit."""
    numbers = [1]
    while numbers[-1] < 64 and (numbers[-1] < 8 or not plan.fits(Setting(numbers[-1], True, True))):
        numbers.append(2 * numbers[-1])
    return numbers
