"""An independent forward pass of every family with LoRA and shortcuts: plain torch, straight from the equations.

It knows neither the project's tables nor the library's blocks, only the names of the pretrained weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_OPT = {
    "block": "model.decoder.layers.{}.",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj",
    "w1": "fc1",
    "w2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
}
_ROBERTA = {
    "block": "roberta.encoder.layer.{}.",
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "w1": "intermediate.dense",
    "w2": "output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
}
_LLAMA = {
    "block": "model.layers.{}.",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "w1": "mlp.up_proj",
    "w2": "mlp.down_proj",
    "gate": "mlp.gate_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
_NAMES = {
    "opt": _OPT,
    "roberta": _ROBERTA,
    "bert": {**_ROBERTA, "block": "bert.encoder.layer.{}."},
    "gemma": _LLAMA,
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA,
}
_ROTARY = ("gemma", "llama", "qwen2", "mistral")  # pre-norm, RMS norms and rotary positions


@dataclass
class Reference:
    """The forward pass.

    Attributes:
        config: Hugging Face configuration.
        weights: the pretrained network's state dict.
        deltas: `(block, name)` -> (A, B, scaling) of every element that is on.
        renormalize: the second normalisation.
    """

    config: Any
    weights: Mapping[str, Tensor]
    deltas: Mapping[tuple[int, str], tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    renormalize: bool = False

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits: (rows, labels) with a classification head, else (rows, tokens, vocabulary)."""
        x = self._embed(input_ids, attention_mask)
        h_before = None
        for layer in range(self.config.num_hidden_layers):
            x, h_before = self._block(layer, x, h_before, attention_mask)
        return self._head(x, input_ids)

    @property
    def family(self) -> str:
        return self.config.model_type

    @property
    def pre_norm(self) -> bool:
        return getattr(self.config, "do_layer_norm_before", self.family in _ROTARY)

    def _block(self, layer: int, x: Tensor, h_before: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        def delta(name: str, source: Tensor | None) -> Tensor | float:
            if (layer, name) not in self.deltas:
                return 0.0
            A, B, scaling = self.deltas[layer, name]
            return source @ A.T @ B.T * scaling

        def linear(name: str, source: Tensor) -> Tensor:
            return self._linear(self._path(layer, name), source) + delta(name, source)

        def norm(name: str, source: Tensor) -> Tensor:
            return self._norm(self._path(layer, name), source)

        def feed_forward(source: Tensor) -> Tensor:
            if "gate" in _NAMES[self.family]:
                return linear("w2", self._activation(linear("gate", source)) * linear("w1", source))
            return linear("w2", self._activation(linear("w1", source)))

        LN1: Callable = lambda source: norm("norm1", source)  # noqa: E731
        LN2: Callable = lambda source: norm("norm2", source)  # noqa: E731
        again = self.renormalize
        if self.pre_norm:
            a = self._attention(linear, LN1(x), mask)
            h = x + delta("residual1", x) + a + delta("shortcut2", h_before)
            if again and layer > 0:
                h = LN1(h)
            y = h + delta("residual2", h) + feed_forward(LN2(h)) + delta("shortcut1", x)
            return (LN2(y) if again else y), h
        a = self._attention(linear, x, mask)
        if again and layer > 0:
            h = LN1(LN1(x + delta("residual1", x) + a) + delta("shortcut2", h_before))
        else:
            h = LN1(x + delta("residual1", x) + a + delta("shortcut2", h_before))
        f = feed_forward(h)
        if again:
            return LN2(LN2(h + delta("residual2", h) + f) + delta("shortcut1", x)), h
        return LN2(h + delta("residual2", h) + f + delta("shortcut1", x)), h

    def _path(self, layer: int, name: str) -> str:
        return _NAMES[self.family]["block"].format(layer) + _NAMES[self.family][name]

    def _linear(self, path: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{path}.weight"], self.weights.get(f"{path}.bias"))

    def _norm(self, path: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{path}.weight"]
        if self.family in _ROTARY:
            scale = 1 + weight if self.family == "gemma" else weight
            return x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * scale
        eps = getattr(self.config, "layer_norm_eps", 1e-5)
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + self.weights[f"{path}.bias"]

    def _activation(self, x: Tensor) -> Tensor:
        kind = {"opt": "relu", "roberta": "gelu", "bert": "gelu", "gemma": "gelu_tanh"}.get(self.family, "silu")
        if kind == "relu":
            return x.clamp(min=0)
        if kind == "silu":
            return x / (1 + (-x).exp())
        if kind == "gelu":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def _attention(self, linear: Callable[[str, Tensor], Tensor], x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        heads = self.config.num_attention_heads
        groups = getattr(self.config, "num_key_value_heads", None) or heads
        q = linear("q_proj", x).view(rows, length, heads, -1).transpose(1, 2)
        k = linear("k_proj", x).view(rows, length, groups, -1).transpose(1, 2)
        v = linear("v_proj", x).view(rows, length, groups, -1).transpose(1, 2)
        if self.family in _ROTARY:
            q, k = self._rotate(q), self._rotate(k)
        k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
        visible = mask.bool()[:, None, None, :].expand(rows, 1, length, length)
        if self.family not in ("roberta", "bert"):
            visible = visible & torch.ones(length, length).tril().bool()
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        # A row that sees nothing (a padded place in front) is nobody's business: finite is all that it must be.
        p = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
        return linear("o_proj", (p @ v).transpose(1, 2).reshape(rows, length, -1))

    def _rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def _embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights
        if self.family == "opt":
            x = weights["model.decoder.embed_tokens.weight"][ids]
            if "model.decoder.project_in.weight" in weights:
                x = self._linear("model.decoder.project_in", x)
            positions = mask.cumsum(1) * mask - 1 + 2
            return x + weights["model.decoder.embed_positions.weight"][positions]
        if self.family in ("roberta", "bert"):
            stem = f"{self.family}.embeddings."
            if self.family == "bert":
                positions = torch.arange(ids.shape[1]).expand_as(ids)
            else:
                real = (ids != self.config.pad_token_id).long()
                positions = real.cumsum(1) * real + self.config.pad_token_id
            x = weights[f"{stem}word_embeddings.weight"][ids] + weights[f"{stem}token_type_embeddings.weight"][0]
            return self._norm(f"{stem}LayerNorm", x + weights[f"{stem}position_embeddings.weight"][positions])
        x = weights["model.embed_tokens.weight"][ids]
        return x * math.sqrt(self.config.hidden_size) if self.family == "gemma" else x

    def _head(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.family == "roberta":
            return self._linear("classifier.out_proj", torch.tanh(self._linear("classifier.dense", x[:, 0])))
        if self.family == "bert":
            return self._linear("classifier", torch.tanh(self._linear("bert.pooler.dense", x[:, 0])))
        if self.family == "opt":
            if self.pre_norm:
                x = self._norm("model.decoder.final_layer_norm", x)
            if "model.decoder.project_out.weight" in self.weights:
                x = self._linear("model.decoder.project_out", x)
        else:
            x = self._norm("model.norm", x)
        if "score.weight" not in self.weights:
            return self._linear("lm_head", x)
        last = [int((row != self.config.pad_token_id).nonzero()[-1]) for row in ids]
        return self._linear("score", x)[torch.arange(len(ids)), last]
