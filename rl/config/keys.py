"""The keys that a section takes: to name the nearest to a wrong one, and to print as help."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel

NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}
NAMES |= {Path: "path", Any: "anything"}
WILDCARDS = ("NAME", "N")
"""What stands for a name that a person chooses, and for a number in a list."""
BOUNDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}


@dataclass(frozen=True)
class Key:
    """One key of a section, as people read about it."""

    name: str
    """Dotted, with wildcards, as in `modes.NAME.share`."""
    type: str
    """Such as `whole number above 0, or null`."""
    default: str
    """As it would be written; of a key without one an example, if there is any."""
    help: str
    section: type[BaseModel] | None
    """Of a key that holds a section of its own, that section."""


def keys_of(section: type[BaseModel], prefix: str = "") -> list[Key]:
    """The keys of a section in the order of the source, without those of sections within it.

    A mapping of sections, such as `modes`, is one key, in which NAME stands for any name.
    """
    keys = []
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{field.alias or name}"
        # A field holds one kind of section at most, with or without null beside it.
        inner, wildcard = next(sections_of(field.annotation), (None, ""))
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if field.examples and default is None:
            shown = str(field.examples[0])
        elif field.is_required() or isinstance(default, BaseModel):
            # The keys of a section have defaults of their own.
            shown = ""
        else:
            shown = default if isinstance(default, str) else json.dumps(default, default=str)
        required = ", required" if field.is_required() else ""
        keys.append(
            Key(
                dotted + (f".{wildcard}" if wildcard else ""),
                _type_text(field.annotation, field.metadata) + required,
                shown,
                " ".join((field.description or "").split()),
                inner,
            )
        )
    return keys


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """The keys of a section, each followed by those of the section that it holds."""
    for key in keys_of(section, prefix):
        yield key
        if key.section is not None:
            yield from all_keys(key.section, f"{key.name}.")


def find_key(section: type[BaseModel], dotted: str) -> Key | None:
    """The key that is called `dotted`; None if there is none.

    Example: `modes`, `modes.NAME` and `modes.long` are the same key.
    """
    parts = dotted.split(".")
    for key in all_keys(section):
        # `modes` alone stands for modes.NAME.
        pattern = key.name.split(".")
        if len(parts) == len(pattern) - 1 and pattern[-1] in WILDCARDS:
            pattern.pop()
        if len(parts) == len(pattern) and all(
            wanted == part or wanted in WILDCARDS
            for wanted, part in zip(pattern, parts, strict=True)
        ):
            return key
    return None


def matching_keys(section: type[BaseModel], word: str) -> list[Key]:
    """The keys whose name or help has this word, or else those with the most similar names."""
    keys = list(all_keys(section))
    word = word.lower()
    matching = [key for key in keys if word in f"{key.name} {key.help}".lower()]
    if matching:
        return matching
    # People remember the name of a setting and not its section.
    last = {key: [p for p in key.name.split(".") if p not in WILDCARDS][-1] for key in keys}
    close = difflib.get_close_matches(word, set(last.values()), n=1)
    return [key for key in keys if last[key] in close]


def nearest(key: str, keys: Sequence[str]) -> str:
    """Return `did you mean KEY?` with the most similar key, or an empty string.

    A key whose last part is right but whose section is missing or wrong counts as near.
    """
    last = key.rpartition(".")[2]
    same_name = [valid for valid in keys if valid.rpartition(".")[2] == last and valid != last]
    # Any similarity will do among keys of the same name, whose sections alone differ.
    close = difflib.get_close_matches(key, same_name, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    if not close:
        by_last = {valid.rpartition(".")[2]: valid for valid in keys}
        close = [by_last[name] for name in difflib.get_close_matches(last, list(by_last), n=1)]
    return f"did you mean {close[0]}?" if close else ""


def valid_keys(section: type[BaseModel], tree: Any, prefix: str = "") -> list[str]:
    """Every dotted key that a section takes; the names of modes come from the tree itself."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        keys.append(key)
        inside = tree.get(name) if isinstance(tree, Mapping) else None
        for model, wildcard in sections_of(field.annotation):
            if wildcard:
                for entry, value in (inside if isinstance(inside, Mapping) else {}).items():
                    keys += valid_keys(model, value, f"{key}.{entry}.")
            else:
                keys += valid_keys(model, inside, f"{key}.")
    return keys


def sections_of(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections in a field's type, each with the wildcard for its name, if it is one of many."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif origin in (dict, list):
        for model, _ in sections_of(arguments[-1]):
            yield model, "NAME" if origin is dict else "N"
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from sections_of(argument)


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The type in words, with the bounds that pydantic keeps in `metadata`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = " and".join(
        f" {words} {getattr(bound, name):,}"
        for kind, (name, words) in BOUNDS.items()
        for bound in metadata
        if isinstance(bound, kind)
    )
    if origin is Annotated:
        text = _type_text(arguments[0], annotation.__metadata__)
    elif origin in (Union, types.UnionType):
        others = [each for each in arguments if each is not types.NoneType]
        text = " or ".join(_type_text(each, metadata) for each in others)
        text += ", or null" if types.NoneType in arguments else ""
    elif origin is Literal:
        text = " | ".join(str(choice) for choice in arguments)
    elif origin is tuple and arguments[-1] is not Ellipsis:
        text = f"[{', '.join(_type_text(each) for each in arguments)}]"
    elif origin in (list, tuple):
        text = f"list of {_type_text(arguments[0])}"
    elif origin is dict:
        text = f"mapping of names to {_type_text(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "section"
    else:
        text = NAMES.get(annotation, str(annotation)) + bounds
    is_counted = origin in (list, tuple, dict) and any(isinstance(m, MinLen) for m in metadata)
    return f"{text}, not empty" if is_counted else text
