"""The keys that a section takes: printed as help, and named where somebody writes a wrong one."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

WILDCARDS = ("NAME", "N")
"""What stands for a name that a person chooses, and for a number in a list."""
# The words of JSON schema, which pydantic derives from the types, in words for people.
TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false"}
TYPES |= {"string": "text", "path": "path"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least"}
BOUNDS |= {"exclusiveMaximum": "below", "maximum": "at most"}
Schema = Mapping[str, Any]
SIMILAR = 0.75
"""How similar a name must be to be what was meant, from 0 to 1."""
SHOWN_KEYS = 3
# What other systems call a key, by its last part.
ELSEWHERE = {
    "lr": ("policy.optimizer.learning_rate",),
    **dict.fromkeys(
        ("n", "num_generations", "n_samples_per_prompt", "samples_per_prompt", "num_samples"),
        ("rollout.group_size",),
    ),
    **dict.fromkeys(("batch_size", "train_batch_size"), ("rollout.prompts_per_step",)),
    **dict.fromkeys(
        ("max_new_tokens", "max_response_length", "max_completion_length"),
        ("modes.NAME.max_tokens",),
    ),
    **dict.fromkeys(("save_every", "save_steps", "save_freq"), ("checkpoint.every",)),
    **dict.fromkeys(("eval_steps", "test_freq"), ("eval.every",)),
    **dict.fromkeys(("epsilon", "clip_ratio"), ("algorithm.clip_low", "algorithm.clip_high")),
}


class RecipeError(ValueError):
    """A recipe or command line that cannot be run, with one line per problem."""


@dataclass(frozen=True)
class Key:
    """One key of a section, as people read about it."""

    name: str
    """Dotted, with wildcards, as in `modes.NAME.share`."""
    parent: str
    """The key that holds it, as in `modes.NAME`; empty for those of the outermost section."""
    type: str
    """Such as `whole number above 0, or null`."""
    default: str
    """As it would be written; of a key without one an example, if there is any."""
    help: str
    section: str | None
    """Of a key that holds a section of its own, what that section is."""


def keys_of(section: type[BaseModel]) -> list[Key]:
    """Every key of a section in the order of the source, followed by those that it holds itself.

    A mapping of sections, such as `modes`, is one key, in which NAME stands for any name.
    """
    schema = section.model_json_schema()
    return list(_keys(schema, schema.get("$defs", {}), ""))


def _keys(schema: Schema, definitions: Schema, parent: str) -> Iterator[Key]:
    for name, about in schema["properties"].items():
        # A key holds one kind of section at most: alone, beside null, in a list or under names.
        inner = re.search(r"#/\$defs/(\w+)", json.dumps(about))
        held = definitions[inner[1]] if inner else None
        wildcard = {"object": ".NAME", "array": ".N"}.get(about.get("type"), "") if held else ""
        dotted = f"{parent}.{name}{wildcard}".removeprefix(".")
        is_required, default = name in schema.get("required", ()), about.get("default")
        if default is None and "examples" in about:
            shown = str(about["examples"][0])
        elif is_required or "$ref" in about:
            # The keys of a section have defaults of their own.
            shown = ""
        else:
            shown = default if isinstance(default, str) else json.dumps(default)
        kind = _type_text(about) + (", required" if is_required else "")
        section = held and held.get("description", "")
        # Most sections stand at one place, and their key needs no other words.
        words = " ".join((about.get("description") or section or "").split())
        yield Key(dotted, parent, kind, shown, words, section)
        if held:
            yield from _keys(held, definitions, dotted)


def matching_keys(keys: Sequence[Key], word: str) -> list[Key]:
    """The keys whose name or help has this word, or else those with the most similar names."""
    word = word.lower()
    matching = [key for key in keys if word in f"{key.name} {key.help}".lower()]
    # People remember the name of a setting and not its section.
    last = {key: [p for p in key.name.split(".") if p not in WILDCARDS][-1] for key in keys}
    close = difflib.get_close_matches(word, set(last.values()), n=1)
    return matching or [key for key in keys if last[key] in close]


def one_line(said: object) -> str:
    """What a library says, which may go over many lines, as a part of an error of one line."""
    return " ".join(str(said).split())


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
        key = re.sub(r"\.(str|bool|constrained-float)$", "", ".".join(parts))
        setters = [name for set_key, name in origins.items() if f"{set_key}.".startswith(f"{key}.")]
        where = f" ({setters[-1]})" if key and setters else ""
        got = repr(finding["input"])
        got = got if len(got) <= 80 else f"{got[:77]}..."
        message = finding["msg"].removeprefix("Value error, ")
        # pydantic says that extra inputs are not permitted; a person wants to know which are.
        if finding["type"] == "extra_forbidden":
            # With the names that the wrong key has, such as those of modes.
            names = [named_as(valid.name, key) for valid in keys_of(model)]
            keys, prefix = [n.removesuffix(".NAME") for n in names], key[: key.rfind(".") + 1]
            inside = {k[len(prefix) :].partition(".")[0] for k in keys if k.startswith(prefix)}
            advice = nearest(key, keys) or f"the valid ones here are {', '.join(sorted(inside))}"
            lines.append(f"{key}: no such key, got {got}{where}; {advice}")
        elif finding["type"] == "missing" and isinstance(finding["loc"][-1], int):
            lines.append(f"{key}: a value is missing from the list, got {got}{where}")
        elif finding["type"] == "missing":
            # Of what a person names himself, such as modes, a wrong name makes another one.
            parent, _, name = key.rpartition(".")[0].rpartition(".")
            inside = [k.removeprefix(f"{parent}.") for k in origins if k.startswith(f"{parent}.")]
            others = {k.partition(".")[0] for k in inside} - {name}
            meant = difflib.get_close_matches(name, others, 1, SIMILAR)
            lines.append(
                f"{key}: is required; set it in the recipe, by a scale=NAME, or as {key}=VALUE"
                + (f", or did you mean {parent}.{meant[0]}?" if meant else "")
            )
        elif finding["type"] == "value_error":
            # Our own messages, which say what was got. One about several keys names them itself.
            lines.append(f"{key}: {message}{where}" if key else message)
        else:
            message = message.replace("Input should be", "must be", 1)
            lines.append(f"{key}: {message}, got {got}{where}")
    return lines


def nearest(key: str, keys: Sequence[str]) -> str:
    """Return `did you mean KEY?` with the keys that may be meant, or an empty string."""
    section, _, last = key.rpartition(".")
    # Not the section itself that the key was looked for in.
    valid = [each for each in keys if not f"{key}.".startswith(f"{each}.")]
    names = {each: each.rpartition(".")[2] for each in valid}
    beside = {name: each for each, name in names.items() if each.rpartition(".")[0] == section}
    # Of equal names the one that is least deep.
    anywhere = {names[each]: each for each in sorted(valid, key=lambda k: -k.count("."))}
    slips = [beside[name] for name in difflib.get_close_matches(last, beside, 1, SIMILAR)]
    # A slip of the pen in a section; a word of other systems; the right name in a wrong section, or
    # without one; a slip of the pen outside all sections, and anywhere.
    close = slips if section else []
    close = close or [each for each in ELSEWHERE.get(last, ()) if each in names]
    close = close or [each for each, name in names.items() if name == last] or slips
    close = close or [anywhere[n] for n in difflib.get_close_matches(last, anywhere, 1, SIMILAR)]
    return f"did you mean {' or '.join(close[:SHOWN_KEYS])}?" if close else ""


def named_as(pattern: str, dotted: str) -> str:
    """The pattern with the names and numbers of `dotted` in place of its wildcards.

    Example: as `modes.long.shar`, `modes.NAME.share` is `modes.long.share`, and `modes.NAME` is
    `modes.long`.
    """
    parts, given = pattern.split("."), dotted.split(".")
    for index, part in enumerate(parts):
        if part in WILDCARDS and parts[:index] == given[:index]:
            # Empty where `dotted` ends here: `modes` alone stands for modes.NAME.
            parts[index : index + 1] = given[index : index + 1]
    return ".".join(parts)


def _type_text(schema: Schema) -> str:
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
