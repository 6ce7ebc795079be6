"""Tiny models of many architectures, from their own configuration classes: two blocks, 32 wide, random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import model.family as families
from heterolora.elements.found import stacked_weights
from tests.tiny import PAD, VOCABULARY, unusual_network

#: One of each form, on which every action runs in the fast tests: capped logits, transposed weights, fused projections,
#: an encoder, experts.
REPRESENTATIVES = ("gpt2", "deberta-v2", "qwen3_moe")

LM, CLASSIFICATION, SUMMARIZATION = "causal_language_modeling", "classification", "summarization"
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_ENCODER = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GROUPED = {"num_key_value_heads": 2}
_GEMMA = {"num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


@dataclass(frozen=True)
class Architecture:
    """A tiny model.

    Attributes:
        task: the task of the tests: classification for encoders.
        keys: of its configuration, besides the common ones; None leaves a common one out.
        places: the names of the places for LoRA in a block.
        experts: those of the weights of experts.
        packs: whether `--packing` is accepted.
        classifies: whether it has a head for classification.
    """

    model_type: str
    places: str
    task: str = LM
    keys: dict[str, Any] = field(default_factory=dict)
    packs: bool = True
    classifies: bool = True
    experts: str = ""

    def network(self, seed: int = 0, task: str | None = None, **more: Any) -> PreTrainedModel:
        """A network in evaluation mode, as `unusual_network` makes it. `more` are keys of its configuration."""
        task = task or self.task
        labels = {"num_labels": 2} if task == CLASSIFICATION else {}
        keys = {key: value for key, value in {**_COMMON, **labels, **self.keys, **more}.items() if value is not None}
        config = AutoConfig.for_model(self.model_type, **keys)
        return unusual_network(config, task, seed)


_LLAMA = "q_proj k_proj v_proj o_proj w1 w2 gate"
_EXPERT_PLACES = "experts.gate_up_proj experts.down_proj"
_BERT = "q_proj k_proj v_proj o_proj w1 w2"
ARCHITECTURES = {
    each.model_type: each
    for each in (
        Architecture("qwen3", _LLAMA, keys={**_GROUPED, "head_dim": 8}),
        Architecture("qwen2", _LLAMA, keys=_GROUPED),
        Architecture("gemma", _LLAMA, keys=_GEMMA),
        Architecture("gemma2", _LLAMA, keys=_GEMMA, packs=False),
        Architecture("gemma3_text", _LLAMA, keys=_GEMMA),
        Architecture("llama", _LLAMA, keys=_GROUPED),
        Architecture(
            "llama4_text",
            _LLAMA,
            keys={**_GROUPED, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
            classifies=False,
            experts=_EXPERT_PLACES,
        ),
        Architecture("mistral", _LLAMA, keys={**_GROUPED, "sliding_window": None}),
        Architecture("phi", _BERT, keys={"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
        Architecture("phi3", "o_proj w2 qkv_proj gate_up_proj", keys={"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
        Architecture("gpt2", "o_proj w1 w2 c_attn", keys={**_GPT, "intermediate_size": None}),
        Architecture("gpt_neox", "o_proj w1 w2 query_key_value"),
        Architecture("gptj", _BERT, keys={**_GPT, "rotary_dim": 4, "intermediate_size": None}),
        Architecture(
            "gpt_neo", _BERT, keys={"attention_types": [[["global", "local"], 1]], "num_layers": 2}, packs=False
        ),
        Architecture("falcon", "o_proj w1 w2 query_key_value", keys={"num_kv_heads": 4, "intermediate_size": None}),
        Architecture("bloom", "o_proj w1 w2 query_key_value", keys={"intermediate_size": None}, packs=False),
        Architecture("olmo", _LLAMA, keys=_GROUPED),
        Architecture("olmo2", _LLAMA, keys=_GROUPED),
        Architecture("smollm3", _LLAMA, keys=_GROUPED),
        Architecture("stablelm", _LLAMA, keys=_GROUPED),
        Architecture("granite", _LLAMA, keys={**_GROUPED, "residual_multiplier": 0.22}, classifies=False),
        Architecture("cohere", _LLAMA, keys=_GROUPED, classifies=False),
        Architecture("starcoder2", _BERT, keys=_GROUPED),
        Architecture("opt", _BERT, keys={"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}),
        Architecture(
            "mixtral",
            "q_proj k_proj v_proj o_proj",
            keys={**_GROUPED, "num_local_experts": 4},
            experts=_EXPERT_PLACES,
        ),
        Architecture(
            "qwen2_moe",
            _LLAMA,
            keys={**_EXPERTS, "shared_expert_intermediate_size": 32},
            experts=_EXPERT_PLACES,
        ),
        Architecture(
            "qwen3_moe", "q_proj k_proj v_proj o_proj", keys={**_EXPERTS, "head_dim": 8}, experts=_EXPERT_PLACES
        ),
        Architecture(
            "gpt_oss",
            "q_proj k_proj v_proj o_proj",
            keys={
                **_GROUPED,
                "head_dim": 8,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            packs=False,
            experts=_EXPERT_PLACES,
        ),
        Architecture(
            "olmoe",
            "q_proj k_proj v_proj o_proj",
            keys={**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
            classifies=False,
            experts=_EXPERT_PLACES,
        ),
        Architecture(
            "distilbert",
            _BERT,
            CLASSIFICATION,
            {
                "dim": 32,
                "n_heads": 4,
                "n_layers": 2,
                "hidden_dim": 64,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "seq_classif_dropout": 0.0,
                "hidden_size": None,
                "num_hidden_layers": None,
                "num_attention_heads": None,
            },
        ),
        Architecture("bert", _BERT, CLASSIFICATION, _ENCODER),
        Architecture("roberta", _BERT, CLASSIFICATION, _ENCODER),
        Architecture("xlm-roberta", _BERT, CLASSIFICATION, _ENCODER),
        Architecture("electra", _BERT, CLASSIFICATION, {**_ENCODER, "embedding_size": 16}),
        Architecture(
            "albert", _BERT, CLASSIFICATION, {**_ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.0}
        ),
        Architecture("mpnet", _BERT, CLASSIFICATION, _ENCODER),
        Architecture("deberta", "o_proj w1 w2 in_proj", CLASSIFICATION, {**_ENCODER, "relative_attention": True}),
        Architecture(
            "deberta-v2",
            _BERT,
            CLASSIFICATION,
            {
                **_ENCODER,
                "relative_attention": True,
                "pos_att_type": "p2c|c2p",
                "position_biased_input": False,
                "share_att_key": True,
                "position_buckets": 16,
                "norm_rel_ebd": "layer_norm",
                "type_vocab_size": 0,
            },
        ),
        Architecture("modernbert", "o_proj w2 Wqkv Wi", CLASSIFICATION, {"cls_token_id": 4, "sep_token_id": 5}),
    )
}


#: Architectures whose blocks have no form that shortcuts know, and the reason that the program gives.
WITHOUT_FORM = {
    "albert": "a block runs several times, or gets its input by name",
    "cohere": "both halves of a block have the same input",
    "deberta": "the layers that get the inputs of its halves are not v_proj and w1",
    "falcon": "both halves of a block have the same input",
    "gpt_neox": "both halves of a block have the same input",
    "gptj": "both halves of a block have the same input",
    "granite": "the output of a block is not the sum of its input and of the outputs of its halves",
    "phi": "both halves of a block have the same input",
}

#: Classes on which vLLM serves LoRA: the column LoRA of docs/models/supported_models.md in its repository, at
#: commit 0046f770d322e202c2000e325a0c8cc1fcb2fc76.
_IN_VLLM = {
    f"{name}ForCausalLM"
    for name in (
        *("Cohere", "Gemma", "Gemma2", "Gemma3", "Granite", "Llama", "Mistral", "Mixtral", "OPT", "Olmo", "Olmo2"),
        *("Phi", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "SmolLM3", "Starcoder2"),
    )
}


_TWO_PARTS = dict.fromkeys(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "bos_token_id")
)
_T5_PLACES = "q_proj k_proj v_proj o_proj layer.1.DenseReluDense.wi layer.1.DenseReluDense.wo"
_T5_DECODER = (
    "layer.1.EncDecAttention.q layer.1.EncDecAttention.k layer.1.EncDecAttention.v layer.1.EncDecAttention.o "
    "layer.2.DenseReluDense.wi layer.2.DenseReluDense.wo"
)
_BART_PLACES = "w1 w2 self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj"
_BART_DECODER = "encoder_attn.k_proj encoder_attn.v_proj encoder_attn.q_proj encoder_attn.out_proj"
#: With an encoder and a decoder, of two blocks each, and 32 places: 6 in a block of the encoder, 10 of the decoder.
ENCODER_DECODERS = {
    each.model_type: each
    for each in (
        Architecture(
            "t5",
            f"{_T5_PLACES} {_T5_DECODER}",
            SUMMARIZATION,
            {
                **_TWO_PARTS,
                **{"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
                **{"decoder_start_token_id": PAD, "max_position_embeddings": None},
            },
        ),
        Architecture(
            "bart",
            f"{_BART_PLACES} {_BART_DECODER}",
            SUMMARIZATION,
            {
                **_TWO_PARTS,
                **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "forced_eos_token_id": 2},
                **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
                **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 2},
            },
        ),
    )
}


def table() -> str:
    """The table of the page on models. A test compares it with the page; `python -m tests.test_docs` writes it."""
    columns = (
        "`model_type`",
        "places for LoRA",
        "shortcuts",
        "tasks",
        "`--packing`",
        "`fsdp`",
        "4 bits",
        "vLLM",
        "tests",
    )
    rows = [columns, ("---",) * len(columns)]
    rows += [_row(each) for _, each in sorted({**ARCHITECTURES, **ENCODER_DECODERS}.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(each: Architecture) -> tuple[str, ...]:
    name, classifies = each.model_type, each.task == CLASSIFICATION
    if name in ENCODER_DECODERS:
        return _row_of_two_parts(each)
    tabled = families.for_model_type(name) is not None
    return (
        f"`{name}`",
        " ".join(f"`{place}`" for place in (*each.places.split(), *each.experts.split())),
        "no" if name in WITHOUT_FORM else "table" if tabled else "found",
        "classification" if classifies else "all" if each.classifies else "language models",
        "–" if classifies else "yes" if each.packs else "no",
        "yes",
        "no" if name == "falcon" else "but for the experts" if stacked_weights(each.network()) else "yes",
        "–" if classifies else "yes" if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] in _IN_VLLM else "merged",
        "each change" if name in REPRESENTATIVES else "slow",
    )


def _row_of_two_parts(each: Architecture) -> tuple[str, ...]:
    places = " ".join(f"`{place}`" for place in each.places.split())
    tasks = "classification, summaries"
    packed = "but for `wo`" if each.model_type == "t5" else "yes"
    return (f"`{each.model_type}`", places, "no", tasks, "no", "to rounding", packed, "merged", "slow")
