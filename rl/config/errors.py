"""Turns what pydantic finds wrong into one line per problem: the key, what it got, what to do."""

from __future__ import annotations

from collections.abc import Mapping
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
            section = key.rpartition(".")[0]
            prefix = f"{section}." if section else ""
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
