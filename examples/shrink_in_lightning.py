"""A LightningModule of one's own that holds a PEFT model, with a callback that decides which LoRA layers to keep.

pip install ".[peft]" pytorch-lightning
python examples/shrink_in_lightning.py --model HuggingFaceTB/SmolLM2-135M --parameters 75000
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import peft
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from heterolora.lightning import Reallocate

TOY_OPT = Path(__file__).resolve().parents[1] / "model" / "toy_opt"
THINGS, STATES = ("tea", "soup", "coat", "lamp", "boat"), ("hot", "cold", "big", "small", "bright")


class LanguageModel(pl.LightningModule):
    def __init__(self, network: peft.PeftModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, **batch: Any) -> Any:
        return self.network(**batch)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TOY_OPT), help="hub name or folder (default: the tiny OPT)")
    parser.add_argument("--parameters", type=int, default=1000, help="LoRA parameters that are left at the end")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--output", default="shrunk", help="folder of the adapter")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on a CPU (default: 1)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [f"The {a} was {b}." for a, b in itertools.product(THINGS, STATES)]
    data = [{"input_ids": tokenizer(text).input_ids} for text in texts]
    batches = DataLoader(
        data, batch_size=4, shuffle=True, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False)
    )
    config = peft.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(args.model, use_kernels=False), config)

    callback = Reallocate(parameters=args.parameters)
    trainer = pl.Trainer(
        max_steps=args.steps, callbacks=[callback], logger=False, enable_checkpointing=False,
        default_root_dir=args.output, devices=args.devices,
        strategy="ddp_find_unused_parameters_true" if args.devices > 1 else "auto",
    )  # fmt: skip
    trainer.fit(LanguageModel(network), batches)
    if trainer.is_global_zero:
        network.save_pretrained(args.output)


if __name__ == "__main__":
    main()
