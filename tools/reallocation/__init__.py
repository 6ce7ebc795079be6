"""The parts of `tools/realloc_lora_rank.py`: where a choice comes from, and the formats of other trainers."""
