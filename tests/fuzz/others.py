"""Kinds of input that are no damaged file: places, names, programs, weights that are NaN, and library arguments."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.case import Case, Change
from tests.fuzz.strategies import VALUES, choice
from tests.fuzz.world import TEST, measuring

LONG = "é" * 200  # 400 bytes
NOT_UTF8 = "\udcff\udcfe"  # as Python keeps such bytes
NAN_WEIGHTS, LIBRARY = "NaN weights", "library arguments"

_BUDGET = ("--turn-on-percentile", "0.5")
_ONE_STEP = ("--max-steps", "1", "--limit-val-batches", "1", "--project", "run")


# ---- outputs, onto every kind of file

_OUT = "out"
#: What is at the place of an output before. `precious` files, and devices and pipes, must be as before afterwards.
_PLACES: Mapping[str, tuple[Change, ...]] = {
    "nothing": (),
    "a file": ((_OUT, "precious"),),
    "an empty file": ((_OUT, "bytes", ""),),
    "a link to a file": (("kept", "precious"), (_OUT, "link", "kept")),
    "a link to nothing": ((_OUT, "link", "{case}/elsewhere"),),
    "a link to itself": ((_OUT, "link", _OUT),),
    "a folder": ((f"{_OUT}/kept", "precious"),),
    "a link to a folder": (("folder/kept", "precious"), (_OUT, "link", "folder")),
    "a pipe": ((_OUT, "pipe"),),
    "a device": ((_OUT, "device"),),
    "a socket": ((_OUT, "socket"),),
    "an input": ((_OUT, "link", "{case}/scored/scores.toml"),),
}
_NAMES = (_OUT, f"{_OUT}/below", LONG, NOT_UTF8, f"a/{LONG}/b", f"{NOT_UTF8}/b", "a/b/c", ".", "..", "", "é\u202e\n")
_WRITERS = (
    ("report", "{world}/trained"),
    ("report", "{world}/trained", "{world}/dynamic", "{case}/scored"),
    ("realloc_lora_rank", "{case}/scored", *_BUDGET),
    ("realloc_lora_rank", "{case}/scored", *_BUDGET, "--format", "peft"),
    ("realloc_lora_rank", "{world}/dynamic", "--format", "axolotl"),
    ("plot_realloc", "{world}/dynamic"),
    ("plot_realloc", "{world}/dynamic", "{world}/trained"),
    ("export", "{world}/trained", "--format", "peft", "--drop-shortcuts"),
    ("study", "{world}/study.toml", "--report-only"),
)


def _outputs(world: Path) -> st.SearchStrategy[Case]:
    def case(writer: tuple[str, ...], place: str, name: str) -> Case:
        arguments = (*writer[1:], "--output", f"{{case}}/{name}" if name else "")
        return Case("outputs", writer[0], arguments, ("scored",), _PLACES[place])

    names = choice(st.just(_OUT), st.just(_OUT), st.sampled_from(_NAMES))
    return st.builds(case, st.sampled_from(_WRITERS), st.sampled_from([*_PLACES]), names)


# ---- names

_READERS = (
    *(
        ("main", *measuring(flag))
        for flag in ("--dataset", "--dataset-saved-path", "--load", "--lora-config", "--model")
    ),
    *(("main", *measuring(flag)) for flag in ("--config", "--project-dir", "--project")),
    ("main", *measuring(*_ONE_STEP, "--cache-frozen-prefix", "--cache-folder", action="train")),
    ("report",),
    ("plot_realloc",),
    ("compare_scores", "{world}/scored/scores.toml"),
    ("realloc_lora_rank", *_BUDGET, "--output", "{case}/lora.toml"),
    ("inspect_model", "--load"),
    ("export", "--format", "peft", "--output", "{case}/exported"),
    ("study", "--report-only", "--output"),
)
_ODD = st.sampled_from(
    [LONG, NOT_UTF8, "loop", "dangling", "a\nb", " ", "é", "x" * 255, "x" * 256, "..", "pipe", "dir"]
)
_LINKS: tuple[Change, ...] = (
    ("loop", "link", "loop"),
    ("dangling", "link", "none"),
    ("pipe", "pipe"),
    ("dir", "folder"),
)


def _names(world: Path) -> st.SearchStrategy[Case]:
    def case(reader: tuple[str, ...], parts: list[str], start: str) -> Case:
        return Case("names", reader[0], (*reader[1:], start + "/".join(parts)), (), _LINKS)

    return st.builds(
        case, st.sampled_from(_READERS), st.lists(_ODD, min_size=1, max_size=3), st.sampled_from(["{case}/", "", "./"])
    )


# ---- chat templates

_PIECES = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if add_generation_prompt %}assistant {% endif %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10 ** 30) %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% set n = namespace(s='x') %}{% for a in range(80) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{{ 10 ** (10 ** 9) }}", "{{ '%1000000000d' % 1 }}", "{{ '{:>1000000000}'.format(1) }}",
    "{{ messages[0].content * 10 ** 9 }}", "{{ 'x' | center(10 ** 12) }}", "{{ [0] * 10 ** 10 }}",
    "{{ raise_exception('no\x1b[2J') }}", "{{ messages[99].content }}", "{{ 1 / 0 }}", "{{ ''.__class__ }}",
    "{{ cycler.__init__.__globals__ }}", "{{ messages | tojson }}", "{{ strftime_now('%Y' * 9999) }}",
    "{% include '/etc/hostname' %}", "{{", "{% endfor %}", "{{ undefined.x }}", "\udcff", "\x00", "", "text",
)  # fmt: skip


def _templates(world: Path) -> st.SearchStrategy[Case]:
    def case(pieces: list[str]) -> Case:
        text = "".join(pieces).encode("utf-8", "surrogateescape")
        change = ("model/chat_template.jinja", "bytes", base64.b64encode(text).decode())
        command = measuring("--dataset", "{world}/talks/train.jsonl", "--load", "{case}/model")
        command = (*command[: (at := command.index("--dataset-saved-path"))], *command[at + 2 :])
        return Case("chat template", "main", command, ("model",), (change,))

    return st.builds(case, st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4))


# ---- lists of weight files

_FILES = (
    "model.safetensors", "model-00001-of-00001.safetensors", "/dev/zero", "/etc/passwd", "../../../../etc/passwd",
    "..", ".", "", "{world}/model/model.safetensors", "loop", "config.json", "x" * 300, "./model.safetensors", "a\x00b",
)  # fmt: skip


def _indices(world: Path) -> st.SearchStrategy[Case]:
    def case(named: dict[str, object], document: object, is_map: bool, moved: bool) -> Case:
        weights = {"model.decoder.embed_tokens.weight": "model.safetensors", **named}
        content = {"metadata": {"total_size": 1}, "weight_map": weights} if is_map else document
        changes: list[Change] = [
            ("model/model.safetensors.index.json", "text", json.dumps(content)),
            ("model/loop", "link", "loop"),
        ]
        if moved:
            changes += [
                ("model/model-00001-of-00001.safetensors", "copy", "{world}/model/model.safetensors"),
                ("model/model.safetensors", "gone"),
            ]
        return Case("index file", "main", measuring("--load", "{case}/model"), ("model",), tuple(changes))

    files = choice(st.sampled_from(_FILES), st.sampled_from(_FILES), VALUES)
    named = st.dictionaries(st.sampled_from(["lm_head.weight", "a", "model.decoder.layers.0.fc1.weight"]), files)
    return st.builds(case, named, VALUES, st.sampled_from([True, True, True, False]), st.booleans())


# ---- homes that cannot be written (whoever runs the tests may be allowed to write into folders that are read-only)

_HOMES: tuple[tuple[Change, ...], ...] = (
    (("cache", "bytes", ""),),
    (("cache", "link", "none/below"),),
    (("cache", "link", "cache"),),
    (("cache", "socket"),),
    (("cache", "pipe"),),
    (("cache/heterolora", "bytes", ""),),
    (("cache/metrics", "bytes", ""),),
    (("cache/metrics", "link", "metrics"),),
)
_AT_HOME = (
    TEST,
    measuring("--disable-dataset-cache"),
    measuring("--disable-dataset-cache", *_ONE_STEP, action="train"),
    measuring("--imp-limit-test-batches", "1", action="imp-test"),
)


def _homes(world: Path) -> st.SearchStrategy[Case]:
    return st.builds(
        lambda changes, command: Case("read-only home", "main", command, (), changes),
        st.sampled_from(_HOMES),
        st.sampled_from(_AT_HOME),
    )


# ---- weights that are no numbers

_BAD = st.sampled_from(["nan", "inf", "-inf"])


def _nans(world: Path) -> st.SearchStrategy[Case]:
    of = {
        "model/model.safetensors": ("{case}/model",),
        "trained/adapter/adapter_model.safetensors": ("{case}/trained/adapter",),
        "trained/adapter/shortcuts.safetensors": ("{case}/trained/adapter",),
        "trained/checkpoints/best.ckpt": ("{case}/trained/checkpoints/best.ckpt",),
    }
    actions = (TEST, measuring(action="imp-test"))

    def case(file: str, action: tuple[str, ...], at: int, value: str) -> Case:
        words = list(action)
        words[words.index("{world}/model")] = of[file][0]
        if file.startswith("trained"):
            at_model = words.index("opt_lora")
            words[at_model] = "opt_lora_ags"
            at_config = words.index("--lora-config")
            del words[at_config : at_config + 2]
            words.remove("--pretrained")
        return Case(NAN_WEIGHTS, "main", tuple(words), (file.split("/")[0],), ((file, "weight", at, value),))

    return st.builds(case, st.sampled_from([*of]), st.sampled_from(actions), st.integers(0, 10**6), _BAD)


# ---- arguments of the library

_SCORE = ("heuristic", "loss", "target_modules", "rank", "alpha", "max_batches", "warmup_batches", "warmup_lr", "seed",
          "family", "track", "model", "batches")  # fmt: skip
_CONFIG = ("scores", "parameters", "total_rank", "share", "policy", "rank", "max_rank", "task_type", "use_rslora",
           "use_dora")  # fmt: skip
_ADAPT = ("model", "target_modules", "target_parameters", "rank", "alpha", "dropout", "use_rslora")
_TO_PEFT, _COMPACT = ("task_type", "plain"), ("adapter", "plain")
_SENSIBLE = st.sampled_from(["snip", "topk", "greedy", "all-linear", ["first"], 1, 0.5, 8, "CAUSAL_LM", True])


def _library(world: Path) -> st.SearchStrategy[Case]:
    values = choice(VALUES, _SENSIBLE, st.sampled_from(["@nan", "@list", "@function", "@text score", "@width 0"]))

    def case(function: str, given: dict[str, object]) -> Case:
        return Case(LIBRARY, "library", (function, json.dumps(given)))

    functions = {"score": _SCORE, "lora_config": _CONFIG, "adapt": _ADAPT, "to_peft": _TO_PEFT, "compact": _COMPACT}
    return choice(
        *(
            st.builds(case, st.just(function), st.dictionaries(st.sampled_from(names), values, max_size=3))
            for function, names in functions.items()
        )
    )


#: kind -> its share of the cases, and its cases on a world.
OTHERS: Mapping[str, tuple[int, Callable[[Path], st.SearchStrategy[Case]]]] = {
    "outputs": (9, _outputs),
    "names": (6, _names),
    "chat template": (5, _templates),
    "index file": (5, _indices),
    "read-only home": (3, _homes),
    NAN_WEIGHTS: (4, _nans),
    LIBRARY: (8, _library),
}
