"""The keys that a section takes: printed as help, and named where somebody writes a wrong one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

WILDCARDS = ("NAME", "N")
"""What stands for a name that a person chooses, and for a number in a list."""
# The words of JSON schema, which pydantic derives from the types, in words for people.
TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false"}
TYPES |= {"string": "text", "path": "path"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least"}
BOUNDS |= {"exclusiveMaximum": "below", "maximum": "at most"}


class RecipeError(ValueError):
    """A recipe or command line that cannot be run, with one line per problem."""


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
    schema = section.model_json_schema()
    keys = []
    for name, field in section.model_fields.items():
        about = schema["properties"][field.alias or name]
        # A field holds one kind of section at most, with or without null beside it.
        inner, wildcard = next(_sections_in(field.annotation), (None, ""))
        default = about.get("default")
        if field.examples and default is None:
            shown = str(field.examples[0])
        elif field.is_required() or "$ref" in about:
            # The keys of a section have defaults of their own.
            shown = ""
        else:
            shown = default if isinstance(default, str) else json.dumps(default)
        dotted = f"{prefix}{field.alias or name}" + (f".{wildcard}" if wildcard else "")
        kind = _type_text(about) + (", required" if field.is_required() else "")
        keys.append(Key(dotted, kind, shown, " ".join((field.description or "").split()), inner))
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
    for key in all_keys(section):
        if _named_as(key.name, dotted) == dotted:
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


def problems(
    error: ValidationError, origins: Mapping[str, str], model: type[BaseModel]
) -> list[str]:
    """Return one line per problem of a tree that is no `model`.

    origins: the layer that set each dotted key last, for people to find it.
    """
    lines = []
    for finding in error.errors():
        # A union adds the name of the member that it tried, which is no key of the recipe.
        parts = [str(p) for p in finding["loc"] if isinstance(p, int) or "[" not in p]
        key = ".".join(parts).removesuffix(".str")
        setters = [name for set_key, name in origins.items() if f"{set_key}.".startswith(f"{key}.")]
        where = f" ({setters[-1]})" if key and setters else ""
        got = repr(finding["input"])
        got = got if len(got) <= 80 else f"{got[:77]}..."
        message = finding["msg"].removeprefix("Value error, ")
        # pydantic says that extra inputs are not permitted; a person wants to know which are.
        if finding["type"] == "extra_forbidden":
            keys, prefix = valid_keys(model, key), key[: key.rfind(".") + 1]
            inside = {k[len(prefix) :].partition(".")[0] for k in keys if k.startswith(prefix)}
            advice = nearest(key, keys) or f"the valid ones here are {', '.join(sorted(inside))}"
            lines.append(f"{key}: no such key, got {got}{where}; {advice}")
        elif finding["type"] == "missing" and isinstance(finding["loc"][-1], int):
            lines.append(f"{key}: a value is missing from the list, got {got}{where}")
        elif finding["type"] == "missing":
            lines.append(
                f"{key}: is required; set it in the recipe, by a scale=NAME, or as {key}=VALUE"
            )
        elif finding["type"] == "value_error":
            # Our own messages, which say what was got. One about several keys names them itself.
            lines.append(f"{key}: {message}{where}" if key else message)
        else:
            message = message.replace("Input should be", "must be", 1)
            lines.append(f"{key}: {message}, got {got}{where}")
    return lines


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


def valid_keys(section: type[BaseModel], wrong: str) -> list[str]:
    """Every dotted key that a section takes, with the names that a wrong key has: its modes."""
    return [_named_as(key.name, wrong).removesuffix(".NAME") for key in all_keys(section)]


def _named_as(pattern: str, dotted: str) -> str:
    """The pattern with the names and numbers of `dotted` in place of its wildcards.

    Example: `modes.NAME.share` as `modes.long.shar` is `modes.long.share`.
    """
    parts, given = pattern.split("."), dotted.split(".")
    for index, part in enumerate(parts):
        if part in WILDCARDS and parts[:index] == given[:index]:
            # Empty where `dotted` ends here: `modes` alone stands for modes.NAME.
            parts[index : index + 1] = given[index : index + 1]
    return ".".join(parts)


def _sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections in a field's type, each with the wildcard for its name, if it is one of many."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif origin in (dict, list):
        for model, _ in _sections_in(arguments[-1]):
            yield model, "NAME" if origin is dict else "N"
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _sections_in(argument)


def _type_text(schema: Mapping[str, Any]) -> str:
    """The type that a JSON schema describes, in words, with its bounds."""
    bounds = (f" {words} {schema[name]:,}" for name, words in BOUNDS.items() if name in schema)
    if "anyOf" in schema:
        others = [each for each in schema["anyOf"] if each.get("type") != "null"]
        text = " or ".join(map(_type_text, others))
        text += ", or null" if len(others) < len(schema["anyOf"]) else ""
    elif "$ref" in schema:
        text = "section"
    elif "enum" in schema:
        text = " | ".join(map(str, schema["enum"]))
    elif "const" in schema:
        text = schema["const"]
    elif "prefixItems" in schema:
        return f"[{', '.join(TYPES[each['type']] for each in schema['prefixItems'])}]"
    elif "items" in schema:
        text = f"list of {_type_text(schema['items'])}"
    elif isinstance(values := schema.get("additionalProperties"), Mapping):
        text = f"mapping of names to {_type_text(values)}"
    elif schema.get("type") == "object":
        text = "mapping of names to anything"
    else:
        text = TYPES.get(schema.get("format", schema.get("type")), "anything") + " and".join(bounds)
    return text + (", not empty" if schema.keys() & {"minItems", "minProperties"} else "")
