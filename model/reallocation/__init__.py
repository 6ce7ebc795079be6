"""Dynamic HeteroLoRA: which elements are on is decided again and again while a network trains."""
