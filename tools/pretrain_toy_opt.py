"""Train the tiny OPT that comes with the program, from scratch, on the text of the toy world: tokenizer and model.

The text tells only what belongs to the training split (dataset/toy/world.py), and holds no row of any task.
It is drawn anew as it is needed, so every document is read once, and is a row of its own.

example:
  python tools/pretrain_toy_opt.py --output model/toy_opt
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for `python tools/…` from anywhere

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from actions.console import say
from dataset.toy.corpus import document, question
from dataset.toy.language import NEGATED, describe
from dataset.toy.world import draw_scene, stream
from heterolora.errors import UserError
from tools.cli import Parser, run

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
POSITIONS = 256
IGNORED = -100
AFFIRMED = 0.4  # share of the documents, the first ones, that deny nothing
TOKENIZER_DOCUMENTS = 20_000
HELD_OUT_DOCUMENTS = 500
SORTED_TOGETHER = 64  # batches whose documents are sorted by length: little padding, still random order
WIDTH = 8  # rows are padded to a multiple of it: few shapes, which the kernels are compiled for


def main(arguments: Sequence[str] | None = None) -> None:
    """Train tokenizer and model, and write them.

    Raises:
        UserError: an argument that cannot be, or a folder that cannot be written.
    """
    args = _parser().parse_args(arguments)
    _check(args)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed, args.vocabulary)
    network = build_network(args, tokenizer)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    say(f"{len(tokenizer)} tokens, {millions:.2f} million parameters, {torch.get_num_threads()} threads")
    train(network, tokenizer, args)
    say(f"perplexity on held-out documents: {perplexity(network, tokenizer, args.seed):.3f}")
    say(f"questions about them answered right: {answered_right(network, tokenizer, args.seed):.1%}")
    write(network, tokenizer, args.output)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    say(f"wrote {args.output} ({size / 1e6:.1f} MB)")


def _parser() -> Parser:
    root = Path(__file__).resolve().parents[1]
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, default=root / "model" / "toy_opt", metavar="DIR", help="default: model/toy_opt")
    add("--documents", type=int, default=300_000, metavar="N", help="documents to train on (default: %(default)s)")
    add("--vocabulary", type=int, default=1024, metavar="N", help="largest number of tokens (default: %(default)s)")
    add("--hidden-size", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--layers", type=int, default=4, metavar="N", help="default: %(default)s")
    add("--heads", type=int, default=4, metavar="N", help="default: %(default)s")
    add("--batch-size", type=int, default=64, metavar="N", help="documents (default: %(default)s)")
    add("--learning-rate", type=float, default=3e-3, metavar="X", help="peak (default: %(default)s)")
    add("--precision", choices=("bf16-mixed", "32"), default="32", help="default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of text, weights and order (default: %(default)s)")
    return parser


def _check(args: argparse.Namespace) -> None:
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 4
    for name in ("documents", "hidden_size", "layers", "heads", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}", "it must be at least 1")
    if args.vocabulary < smallest:
        raise UserError(
            f"--vocabulary is {args.vocabulary}", f"it must be at least {smallest}: the bytes and four more"
        )
    if args.hidden_size % args.heads:
        raise UserError(f"--hidden-size {args.hidden_size} is no multiple of --heads {args.heads}", "make it one")
    if not args.learning_rate > 0:
        raise UserError(f"--learning-rate is {args.learning_rate}", "it must be above 0")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be made ({error.strerror})", "name another folder") from None


# ---- text


def train_tokenizer(seed: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes, as OPT's, in which a word is the same token wherever it stands."""
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
    # Two texts simply follow each other, as sentences do in the text that the model knows.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, split: str, seed: int, documents: int, batch_size: int, affirmed: int = 0
) -> Iterator[Tensor]:
    """Ids (rows, tokens) of `documents` new documents of `split`, padded; rows of a batch are about as long.

    The first `affirmed` of them deny nothing.
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
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            word_embed_proj_dim=args.hidden_size,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            ffn_dim=4 * args.hidden_size,
            max_position_embeddings=POSITIONS,
            # About 1/√width: OPT's own 0.02 is for far wider layers, and attention learns nothing with it here.
            init_std=0.1,
            dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def loss_of(network: OPTForCausalLM, ids: Tensor) -> tuple[Tensor, int]:
    """Summed cross-entropy of the next tokens of ids (rows, tokens), and how many there are."""
    pad = network.config.pad_token_id
    logits = network(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == pad, IGNORED)
    total = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total, int((targets != IGNORED).sum())


def train(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """AdamW with a short warm-up and a cosine down to a twentieth of the peak."""
    group = args.batch_size * SORTED_TOGETHER
    full, rest = divmod(args.documents, group)
    steps = full * SORTED_TOGETHER + math.ceil(rest / args.batch_size)
    warmup = min(300, math.ceil(steps / 10))
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (0.525 + 0.475 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    # What is not denied is learned in no time; with denials from the start nothing is, for long.
    affirmed = int(AFFIRMED * args.documents)
    network.train()
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=steps, loss=math.nan)
        smooth = math.nan
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
    """Of documents that tell what the training text never tells."""
    network.eval()
    parts = [loss_of(network, ids) for ids in batches(tokenizer, "validation", seed, HELD_OUT_DOCUMENTS, 32)]
    return math.exp(sum(float(total) for total, _ in parts) / sum(count for _, count in parts))


@torch.no_grad()
def answered_right(network: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Share of yes-or-no questions about held-out scenes that get the right answer; half would be chance."""
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
    """The files of `save_pretrained`, all there before the first of them takes its place in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        network.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        for file in Path(unfinished).iterdir():
            os.replace(file, folder / file.name)


if __name__ == "__main__":
    run(main)
