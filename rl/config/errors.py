"""Turns pydantic's findings into one line per problem: the key, what it got, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from rl.config.keys import nearest, valid_keys
from rl.config.run import Config


class RecipeError(ValueError):
    """A recipe or command line that cannot be run, with one line per problem."""


def problems(
    error: ValidationError,
    tree: Mapping[str, Any],
    origins: Mapping[str, str],
    model: type[BaseModel] = Config,
) -> list[str]:
    """Return one line per problem of the merged `tree`.

    origins: the layer that set each dotted key last, for people to find it.
    """
    keys = valid_keys(model, tree)
    return [_line(finding, keys, origins) for finding in error.errors()]


def _line(finding: Mapping[str, Any], keys: Sequence[str], origins: Mapping[str, str]) -> str:
    key = _dotted(finding["loc"])
    where = _where(key, origins)
    got = _shown(finding["input"])
    if finding["type"] == "extra_forbidden":
        advice = nearest(key, keys) or f"the valid ones here are {', '.join(_siblings(key, keys))}"
        return f"{key}: no such key, got {got}{where}; {advice}"
    if finding["type"] == "missing" and isinstance(finding["loc"][-1], int):
        return f"{key}: a value is missing from the list, got {got}{where}"
    if finding["type"] == "missing":
        return f"{key}: is required; set it in the recipe, by a scale=NAME, or as {key}=VALUE"
    if finding["type"] == "value_error":
        message = finding["msg"].removeprefix("Value error, ")
        return f"{key}: {message}{where}" if key else message
    message = finding["msg"].replace("Input should be", "must be", 1)
    return f"{key}: {message}, got {got}{where}"


def _dotted(location: Iterable[str | int]) -> str:
    # A union adds the name of the member it tried, which is no key of the recipe.
    return ".".join(
        str(part) for part in location if isinstance(part, int) or "[" not in part
    ).removesuffix(".str")


def _where(key: str, origins: Mapping[str, str]) -> str:
    names = [origin for set_key, origin in origins.items() if f"{set_key}.".startswith(f"{key}.")]
    return f" ({names[-1]})" if key and names else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _siblings(key: str, keys: Sequence[str]) -> list[str]:
    section = key.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    inside = [valid[len(prefix) :] for valid in keys if valid.startswith(prefix)]
    return sorted({name.partition(".")[0] for name in inside})
