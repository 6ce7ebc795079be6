"""Score a vision transformer, spend a parameter budget on the best layers, and train it on images with Trainer.

The images here are random, and bright ones are of class 1. The model is a ViT of Transformers; by default it is a tiny
one with random weights. Only the library is used: the command line is for text.

    pip install ".[peft]" accelerate
    python examples/finetune_vit.py --model google/vit-base-patch16-224-in21k --parameters 300000
"""

from __future__ import annotations

import argparse
import itertools
import tempfile

import peft
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig, default_data_collator

import heterolora as hl

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def images(size: int, count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Replace this function by your own data: pixel values (3, size, size) and a label of each image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 3, size, size, generator=generator)
    return [{"pixel_values": image + label, "labels": label} for image, label in zip(noise, labels, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name or folder of a ViT (default: a tiny one with random weights)")
    parser.add_argument("--heuristic", default="grad_norm", choices=hl.heuristics())
    parser.add_argument("--parameters", type=int, default=2000, help="budget of trainable parameters of LoRA")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.model is None:
        tiny = ViTConfig(**TINY, image_size=32, patch_size=8, num_labels=2)
        model = AutoModelForImageClassification.from_config(tiny)
    else:
        model = AutoModelForImageClassification.from_pretrained(args.model, num_labels=2, use_kernels=False)
    data = images(model.config.image_size)

    # 1. Score LoRA on every linear layer except the classifier. The model is unchanged afterwards.
    batches = DataLoader(data[:32], batch_size=8, collate_fn=default_data_collator)
    scores = hl.score(model, batches, heuristic=args.heuristic)
    for module, score in itertools.islice(scores.by_module().items(), 5):
        print(f"{score:10.4f}  {module}")

    # 2. Turn the scores into a PEFT configuration. The new classifier is trained completely.
    config = hl.lora_config(scores, parameters=args.parameters, modules_to_save=["classifier"])

    # 3. Train as always.
    model = peft.get_peft_model(model, config)
    model.print_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=args.steps,
            learning_rate=1e-2,
            logging_steps=max(1, args.steps // 2),
            report_to="none",
            remove_unused_columns=False,
        )
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, data_collator=default_data_collator)
        trainer.train()
        print(f"loss after training: {trainer.evaluate()['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
