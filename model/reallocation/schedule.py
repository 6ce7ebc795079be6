"""When a dynamic run reallocates: at the start of each epoch, and every so many batches after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Schedule:
    """When elements are reallocated.

    Attributes:
        interval: training batches between two reallocations, from the start of the epoch.
        warmup_epochs: epochs in which the elements that were on least often are turned on.
    """

    interval: int
    warmup_epochs: int = 0

    def due(self, batch: int) -> bool:
        """Return whether there is a reallocation before batch `batch` of an epoch."""
        return batch % self.interval == 0

    def warming_up(self, epoch: int) -> bool:
        return epoch < self.warmup_epochs

    def batches_until_due(self, batch: int, per_epoch: int) -> int:
        """Return the number of batches, from this one, that are trained before the next reallocation."""
        return min(self.interval - batch % self.interval, per_epoch - batch)


def realloc_interval(n: int | float, per_epoch: int, accumulate: int = 1) -> int:
    """Return `--realloc-N` as a number of batches, rounded up to a multiple of the accumulation window.

    An int counts batches. A float in (0, 1] is a share of the epoch, in exact decimals and rounded up.
    """
    batches = math.ceil(Decimal(str(n)) * per_epoch) if isinstance(n, float) else n
    return math.ceil(batches / accumulate) * accumulate
