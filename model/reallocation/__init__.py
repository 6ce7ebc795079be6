"""Dynamic HeteroLoRA: elements are turned on and off during training."""
