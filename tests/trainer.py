"""Lightning's trainer for tests: without logger, checkpoints and output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl


def quiet_trainer(callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{"accelerator": "cpu", "limit_val_batches": 0, "enable_progress_bar": False, **options},
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
