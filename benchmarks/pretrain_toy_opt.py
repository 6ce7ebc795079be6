"""Train the tiny OPT that comes with the program, tokenizer and model, from scratch on text of the toy world.

The text contains only facts of the training split (dataset/toy/world.py), and no row of any task. Every document is
generated when it is needed, is read once, and is a row of its own.

example:
  python -m benchmarks.pretrain_toy_opt --output model/toy_opt
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.cli import Parser, real, run, whole_number

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from actions.request.origin import TOY_BASE
from actions.run.console import say
from dataset.toy.corpus import document, question
from dataset.toy.language import NEGATED, describe
from dataset.toy.world import draw_scene, stream
from heterolora.common.checks import ABOVE_0, present
from heterolora.common.errors import UserError
from heterolora.common.files import whole
from options.ranges import at_least, seed_range

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
POSITIONS = 256
AFFIRMED = 0.4  # share of the documents, the first ones, that contain no negation
TOKENIZER_DOCUMENTS = 20_000
HELD_OUT_DOCUMENTS = 500
SORTED_TOGETHER = 64  # batches whose documents are sorted by length: little padding, and still a random order
WIDTH = 8  # rows are padded to a multiple of it: few shapes, for which kernels are compiled


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the tokenizer and the model, and write them. Raises UserError if an argument or the folder is wrong."""
    args = _parser().parse_args(arguments)
    _check(args)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed, args.vocabulary)
    network = build_network(args, tokenizer)
    millions = network.num_parameters() / 1e6
    say(f"{len(tokenizer)} tokens, {millions:.2f} million parameters, {torch.get_num_threads()} threads")
    train(network, tokenizer, args)
    say(f"perplexity on held-out documents: {perplexity(network, tokenizer, args.seed):.3f}")
    say(f"correct answers to questions about them: {answered_right(network, tokenizer, args.seed):.1%}")
    write(network, tokenizer, args.output)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    say(f"wrote {args.output} ({size / 1e6:.1f} MB)")


def _parser() -> Parser:
    parser = Parser(__doc__, "python -m benchmarks.pretrain_toy_opt")
    add = parser.add_argument
    add("--output", type=Path, default=TOY_BASE, metavar="DIR", help="default: model/toy_opt")
    counts = (
        ("documents", 300_000, "documents to train on"), ("vocabulary", 1024, "largest number of tokens"),
        ("hidden-size", 64, "width of the model"), ("layers", 4, "blocks"), ("heads", 4, "attention heads"),
        ("batch-size", 64, "documents of a batch"), ("seed", 0, "of text, weights and order"),
    )  # fmt: skip
    for name, default, meaning in counts:
        check = seed_range if name == "seed" else at_least(1)
        add(
            f"--{name}",
            type=whole_number(check),
            default=default,
            metavar="N",
            help=f"{meaning} (default: %(default)s)",
        )
    add("--learning-rate", type=real(ABOVE_0), default=3e-3, metavar="X", help="peak (default: %(default)s)")
    add("--precision", choices=("bf16-mixed", "32"), default="32", help="default: %(default)s")
    return parser


def _check(args: argparse.Namespace) -> None:
    least = len(pre_tokenizers.ByteLevel.alphabet()) + 4
    if args.vocabulary < least:
        need = f"it must be at least {least}: the bytes and four special tokens"
        raise UserError(f"--vocabulary is {args.vocabulary}", need)
    if args.hidden_size % args.heads:
        raise UserError(
            f"--hidden-size {args.hidden_size} is no multiple of --heads {args.heads}", "expected a multiple"
        )
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be made ({error.strerror})", "name another folder") from None


# ---- text


def train_tokenizer(seed: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in OPT, but a word at the start of a text is the same token as elsewhere."""
    rng = stream("tokenizer", "train", seed)
    backend = Tokenizer(models.BPE(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((document(rng, "train") for _ in range(TOKENIZER_DOCUMENTS)), trainer)
    # A pair is encoded as one text after the other, like sentences in the training text.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"bos_token": BOS, "pad_token": PAD, "eos_token": EOS, "unk_token": UNK},
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, split: str, seed: int, documents: int, batch_size: int, affirmed: int = 0
) -> Iterator[Tensor]:
    """Padded ids (rows, tokens) of new documents of `split`. Rows of a batch have similar lengths.

    The first `affirmed` documents contain no negation.
    """
    rng = stream("pretraining", split, seed)
    for first in range(0, documents, batch_size * SORTED_TOGETHER):
        count = min(batch_size * SORTED_TOGETHER, documents - first)
        negated = NEGATED if first >= affirmed else 0.0
        texts = [document(rng, split, negated) + EOS for _ in range(count)]
        rows = sorted((ids[:POSITIONS] for ids in tokenizer(texts).input_ids), key=len)
        chunks = [rows[start : start + batch_size] for start in range(0, count, batch_size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            width = min(POSITIONS, math.ceil(len(chunk[-1]) / WIDTH) * WIDTH)
            yield torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in chunk])


# ---- model


def build_network(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        word_embed_proj_dim=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        ffn_dim=4 * args.hidden_size,
        max_position_embeddings=POSITIONS,
        init_std=0.1,  # about 1/√width; with OPT's 0.02, for far wider layers, attention learns nothing here
        dropout=0.0,
        attention_dropout=0.0,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")},
    )
    return OPTForCausalLM(config)


def loss_of(network: OPTForCausalLM, ids: Tensor) -> tuple[Tensor, int]:
    """Summed cross-entropy of the next tokens of ids (rows, tokens), and their number."""
    pad = present(network.config.pad_token_id)
    logits = network(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits
    flat, targets = logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
    total = F.cross_entropy(flat, targets, ignore_index=pad, reduction="sum")
    return total, int((targets != pad).sum())


def train(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """AdamW with a short warm-up and a cosine down to a twentieth of the peak."""
    steps = math.ceil(args.documents / args.batch_size)
    warmup = min(300, math.ceil(steps / 10))
    matrices = {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.01}
    vectors = {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=args.learning_rate, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (0.525 + 0.475 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    # Text without negation is learned quickly; with negation from the start, the model learns nothing for long.
    affirmed = int(AFFIRMED * args.documents)
    network.train()
    loss_column = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), loss_column) as progress:
        bar, smooth = progress.add_task("training", total=steps, loss=math.nan), math.nan
        for ids in batches(tokenizer, "train", args.seed, args.documents, args.batch_size, affirmed):
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16-mixed"):
                total, count = loss_of(network, ids)
            loss = total / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
            progress.update(bar, advance=1, loss=smooth)


@torch.no_grad()
def perplexity(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Perplexity of documents with facts that are not in the training text."""
    network.eval()
    parts = [loss_of(network, ids) for ids in batches(tokenizer, "validation", seed, HELD_OUT_DOCUMENTS, 32)]
    return math.exp(sum(float(total) for total, _ in parts) / sum(count for _, count in parts))


@torch.no_grad()
def answered_right(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Share of correct answers to yes-or-no questions about held-out scenes; chance is one half."""
    rng, right = stream("questions", "validation", seed), 0
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    for _ in range(HELD_OUT_DOCUMENTS):
        scene = draw_scene(rng, "validation")
        asked, answer = question(scene, rng).rsplit(" ", 1)
        ids = tokenizer(f"{describe(scene, rng)} {asked}", return_tensors="pt").input_ids
        logits = network(input_ids=ids).logits[0, -1]
        right += bool(logits[yes] > logits[no]) == (answer == "Yes.")
    return right / HELD_OUT_DOCUMENTS


def write(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the files of `save_pretrained` to a temporary folder, then copy all of them to `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        network.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        for file in Path(unfinished).iterdir():
            with whole(folder / file.name) as copy:
                shutil.copyfile(file, copy)


if __name__ == "__main__":
    run(main)
