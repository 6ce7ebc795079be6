"""Hypothesis strategies: odd values, documents with something wrong inside, and damage to the bytes of a file."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.case import DEEP, HUGE, Change


@st.composite
def choice(draw: st.DrawFn, *ways: st.SearchStrategy[Any]) -> Any:
    """One of the ways, each as likely as the others. `one_of` would count the ways inside a way, too."""
    return draw(draw(st.sampled_from(ways)))


INTEGERS = st.one_of(st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30]), st.integers())
FLOATS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 0.5, 1e-300, 1e308, math.inf, -math.inf, math.nan]), st.floats())
TEXTS = st.one_of(
    st.sampled_from(["", " ", "NA", "none", "null", "true", "1", "-1", "nan", "x" * 300, "é", "\u202e", "１", "🙂"]),
    st.sampled_from(["..", "/", ".", "~", "a/b", "{case}", "{world}/model", "/dev/null", "/dev/zero"]),
    st.sampled_from(["\x00", "\x1b[2J", "\n", "%s{}", "[b]", "\udcff"]),
    st.text(max_size=20),
)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXTS)
VALUES = choice(
    SCALARS,
    # A copy each time: a later change may be inside of it.
    st.sampled_from([HUGE, DEEP, [], {}, [[]], [None], {"": {}}, [{}], {"a": {"b": [1, {"c": None}]}}]).map(
        copy.deepcopy
    ),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)

Path = tuple[Any, ...]


def paths_in(value: Any, start: Path = ()) -> Iterator[Path]:
    """The path of every value inside a document."""
    if start:
        yield start
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*start, key))


def _inner(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


@st.composite
def wrong_inside(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three changes: another value, a key less, another name, a key more, a row twice."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = list(paths_in(document))
        if not paths:
            return draw(VALUES)
        path = draw(st.sampled_from(paths))
        parent, key = _inner(document, path[:-1]), path[-1]
        change = draw(st.sampled_from(["value", "value", "value", "gone", "name", "more", "twice"]))
        if change == "gone":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]) if change == "twice" else draw(VALUES))
            if change == "value":
                del parent[key + 1]
        elif change == "name":
            parent[draw(TEXTS | st.just(f"{key}s"))] = parent.pop(key)
        elif change in ("more", "twice"):
            parent[draw(TEXTS)] = (
                parent[key] if change == "twice" and not isinstance(parent[key], dict) else draw(VALUES)
            )
        else:
            parent[key] = draw(VALUES)
    return draw(st.sampled_from([document] * 9 + [[document]]))


# ---- text


def toml_text(document: Mapping[str, Any]) -> str:
    """A document as TOML, also one that a careful writer refuses."""
    return "".join(f"{_toml_key(key)} = {_toml(value)}\n" for key, value in document.items())


def _toml_key(key: Any) -> str:
    return json.dumps(str(key))


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return "{}"  # TOML has no null
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV without care: values may hold commas and quotes."""
    rows = [row if isinstance(row, Mapping) else {"": row} for row in rows] if isinstance(rows, list) else [{"": rows}]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return "\n".join([",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]) + "\n"


def text_of(document: Any, form: str) -> str:
    if form == "toml" and isinstance(document, Mapping):
        return toml_text(document)
    if form == "jsonl" and isinstance(document, list):
        return "".join(json.dumps(row) + "\n" for row in document)
    return csv_text(document) if form == "csv" else json.dumps(document)


# ---- bytes

_ANYWHERE = st.one_of(st.integers(0, 400), st.integers(0, 2**24), st.integers(1, 100).map(lambda back: -back))
_GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\x00" * 64, b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\xe9", b"null\n"]),
    st.sampled_from([b"[" * 5_000, b'{"a":' * 5_000]),
).map(lambda data: base64.b64encode(data).decode())


def damage(path: str) -> st.SearchStrategy[tuple[Change, ...]]:
    """One to three changes of the bytes of a file."""
    one = choice(
        st.tuples(st.just(path), st.just("flip"), _ANYWHERE, st.integers(0, 7)),
        st.tuples(st.just(path), st.just("cut"), _ANYWHERE),
        st.tuples(st.just(path), st.just("insert"), _ANYWHERE, _GARBAGE),
        st.tuples(st.just(path), st.just("zero"), _ANYWHERE, st.integers(1, 4_000)),
    )
    return st.sampled_from([1, 1, 2, 3]).flatmap(lambda count: st.lists(one, min_size=count, max_size=count)).map(tuple)


def replaced(path: str, others: Sequence[str]) -> st.SearchStrategy[tuple[Change, ...]]:
    """Something else in the place of a file: another file, any bytes or text, a folder, a socket, a device, nothing."""
    return choice(
        st.sampled_from(others).map(lambda other: (path, "copy", f"{{world}}/{other}")),
        st.sampled_from([(path, "folder"), (path, "gone"), (path, "socket"), (path, "cut", 0)]),
        st.sampled_from(["/dev/zero", "/dev/null", "/proc/self/mem", path.split("/")[-1]]).map(
            lambda target: (path, "link", target)
        ),
        st.binary(max_size=60).map(lambda data: (path, "bytes", base64.b64encode(data).decode())),
        VALUES.map(lambda value: (path, "text", json.dumps(value))),
        st.text(max_size=60).map(lambda text: (path, "text", text)),
    ).map(lambda change: (change,))


def wrong_document(path: str, document: Any, form: str) -> st.SearchStrategy[tuple[Change, ...]]:
    """The text of a document with something wrong inside, now and then with damaged bytes too."""
    text = wrong_inside(document).map(lambda wrong: ((path, "text", text_of(wrong, form)),))
    return choice(*[text] * 4, st.tuples(text, damage(path)).map(lambda both: both[0] + both[1]))


def wrong_record(path: str, document: Any) -> st.SearchStrategy[tuple[Change, ...]]:
    """Other values inside a torch file, whose structure is that of the document."""
    paths = list(paths_in(document))
    plain = VALUES.filter(lambda value: value not in (HUGE, DEEP))
    one = st.tuples(st.just(path), st.just("set"), st.sampled_from(paths).map(list), plain)
    return st.lists(one, min_size=1, max_size=2).map(tuple)
