"""`predict`: write what a trained model says about new rows, which need no labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from actions.command.request import Request
from actions.prediction.columns import Row, joined, new_name, predicted, renamed
from actions.prediction.output import check_columns, standard_output, write_lines, write_rows
from actions.prediction.partial import Partial
from actions.prediction.predictor import Base, read_rows
from actions.prediction.streaming import KeepAnswers, Predictions
from actions.run.console import is_first_process, note, say
from actions.training.trainer import check_devices, trainer_of
from dataset.batching.collate import Collator
from dataset.encoding.render import rendered
from dataset.reading.new_rows import NewRows
from heterolora.common.distributed import gather_lists
from model.task.answers import Answer
from options.predicting import file_of


def run(request: Request) -> None:
    check_devices(request.options)
    output = file_of(request.options.predicting.output)
    with standard_output(is_taken=output is None) as stream:
        rows = read_rows(request)
        if output is not None:
            check_columns(output, rows.kept)
        answers = predict(request, rows, output)
        if not is_first_process():
            return
        made = with_answers(request, rows, answers)
        if output is None:
            write_lines(stream, made)
        else:
            write_rows(output, made)
            Partial.beside(output).remove()
            say(f"predicted {len(made):,} rows: {output}")


def predictions(request: Request) -> list[Row]:
    """The rows of the input with their predictions."""
    check_devices(request.options)
    rows = read_rows(request)
    return with_answers(request, rows, predict(request, rows, None))


def predict(request: Request, rows: NewRows, output: Path | None) -> list[Answer]:
    """The answers to all rows, in the first process. They are kept beside the output while they are computed."""
    base, options, spec = Base.of(request), request.options, request.spec
    encoded = base.encode(rows)
    for text in dict.fromkeys(rows.notes):
        note(text)
    if encoded.truncated:
        note(f"{encoded.truncated:,} of {len(rows.kept):,} prompts are truncated")
    partial = Partial.beside(output)
    task = base.load()
    keep = KeepAnswers(partial, base.identity(rows, task), len(rows.kept), options.seed)
    collate = Collator(base.tokenizer, generate=spec.writes_text, choices=spec.choices is not None)
    trainer = trainer_of(options, task, [keep], logger=False, enable_checkpointing=False)
    with partial.in_use():
        trainer.predict(
            task, Predictions(encoded.rows, collate, options.data.batch_size, keep), return_predictions=False
        )
    return gather_lists(keep.answers)


def with_answers(request: Request, rows: NewRows, answers: Sequence[Answer]) -> list[Row]:
    """The rows of the output, in the order of the input."""
    spec, by_row = request.spec, {answer.row: answer for answer in answers}
    choices: list[list[str] | None] = [None] * len(rows.kept)
    if spec.choices is not None:
        choices = [json.loads(text) for table in rendered(rows.texts, spec) for text in table["choices"].to_pylist()]
    probabilities = request.options.predicting.probabilities
    made = [predicted(spec, by_row[row], choices[row], probabilities) for row in range(len(rows.kept))]
    for name in renamed(rows.kept, made[0]):
        note(f"the input has a column '{name}', which is '{new_name(name, made[0])}' in the output")
    return [*joined(rows.kept, made)]
