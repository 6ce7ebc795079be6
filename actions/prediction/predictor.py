"""From a request to the rows and the model of a prediction. Mistakes in the rows are found before weights are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from actions.command.request import Request
from actions.run.console import note
from actions.training.experiment import load_model, plan_elements, sharding_of
from actions.training.limits import check_generation
from dataset.encoding.encode import Lengths, lengths
from dataset.encoding.identity import rows_digest, tokenizer_digest
from dataset.encoding.prompts import Prompts, encode_new_rows, ends_of_answers
from dataset.reading.cache import digest
from dataset.reading.new_rows import NewRows, read_new_rows, rows_of_texts
from heterolora.common.errors import UserError
from heterolora.elements.adapt import Placement
from model.load import length_limit, load_config, load_tokenizer
from model.task import class_of
from model.task.fine_tuning import FineTuning, TaskParts
from model.task.generation import Generation
from model.tensor_file import digest_of
from options.actions import CHAT

MOST_NEW = 256  # default of `--max-new-tokens`
_UNLIMITED = 10**9  # tokens


@dataclass(frozen=True)
class Base:
    """A model before its weights are read."""

    request: Request
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    planned: Placement | None
    limits: Lengths
    generation: Generation | None  # None for a model that writes no text

    @classmethod
    def of(cls, request: Request) -> Base:
        """Read configuration and tokenizer. Raises UserError if they do not fit the request."""
        config = load_config(request.base.name, request.spec, request.options.attention)
        planned = plan_elements(request, config)
        tokenizer = load_tokenizer(request.base.name, config)
        limits = limits_of(request, tokenizer, length_limit(config, tokenizer))
        generation = generation_of(request, tokenizer, limits) if request.spec.writes_text else None
        for text in dict.fromkeys((*request.notes, *(planned.notes if planned else ()))):
            note(text)
        return cls(request, config, tokenizer, planned, limits, generation)

    def encode(self, rows: NewRows) -> Prompts:
        return encode_new_rows(rows.texts, self.request.spec, self.tokenizer, self.limits)

    def load(self) -> FineTuning:
        """The model with its weights. Raises UserError if its classification head is not trained."""
        request, spec = self.request, self.request.spec
        loaded = load_model(request, request.options, self.config, self.tokenizer, self.planned)
        if loaded.untrained_head:
            raise UserError(
                f"{request.base.name} has no trained classification head",
                "give --load the folder of a run, or a result",
            )
        parts = TaskParts(
            network=loaded.network,
            space=loaded.space,
            spec=spec,
            validation_names=(),
            test_names=(),
            optimization=request.options.optimization,
            record=loaded.record,
            batches_per_epoch=lambda world: 0,
            sharding=sharding_of(request),
            generation=self.generation,
        )
        return class_of(spec)(parts)

    def identity(self, rows: NewRows, task: FineTuning) -> str:
        """A digest of everything that the predictions depend on, apart from rounding."""
        spec, options = self.request.spec, self.request.options
        weights = dict(task.network.named_parameters(remove_duplicate=False))
        of_rows = [rows_digest(rows.texts, spec), tokenizer_digest(self.tokenizer, spec.chat), asdict(self.limits)]
        of_model = [
            digest_of({name: weights[name] for name in task.trained}).hexdigest(),
            task.record.base_sha256,
            task.current_record().on,
        ]
        how = None if self.generation is None else self.generation.config().to_json_string()
        numbers = [options.devices.precision, options.quantize, options.seed, options.data.batch_size if how else 0]
        return digest([*of_rows, *of_model, spec.cue, spec.labels, how, *numbers])


def read_rows(request: Request) -> NewRows:
    """The rows of `--dataset`, or of `--text`."""
    texts = request.options.predicting.text
    return rows_of_texts(request.spec, texts) if texts else read_new_rows(request.spec)


def limits_of(request: Request, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> Lengths:
    """The limits on tokens. Those of generated text are `Lengths.max_target_len`, and the prompt gets the rest."""
    options, spec = request.options, request.spec
    given, target = options.data.max_token_len, options.data.max_target_len
    if not spec.writes_text or spec.generates:
        found = lengths(spec, tokenizer, given, target, positions)
        check_generation(options, found, positions)
        return found
    total = min(given or positions or _UNLIMITED, positions or _UNLIMITED)
    new = options.max_new_tokens or min(MOST_NEW, total // 2)
    if new >= total:
        raise UserError(
            f"--max-new-tokens {new} leaves no room for a prompt in the {total} tokens that the model takes",
            f"give at most {total - 1}",
        )
    return Lengths(total, new)


def generation_of(request: Request, tokenizer: PreTrainedTokenizerBase, limits: Lengths) -> Generation:
    options = request.options
    return Generation(
        tokenizer,
        options.max_new_tokens or limits.max_target_len,
        1 if request.action == CHAT else options.num_beams,
        ends_of_answers(request.spec, tokenizer),
        options.predicting.temperature,
        options.predicting.top_p,
        strips=not request.spec.packed,
    )
