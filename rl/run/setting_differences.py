"""What differs between stored settings and those a command asks for, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl.config.recipe import dotted_leaves

MAX_NAMED = 5


def setting_differences(
    before: Mapping[str, Any], after: Mapping[str, Any], may_differ: Sequence[str] = ()
) -> str:
    """`a.b was 1, is 2; c was 3, is not set; and 4 more`; empty where the trees are equal.

    may_differ: keys that are left out, each with all beneath it.
    """
    old, new = dotted_leaves(before), dotted_leaves(after)
    differences = [
        f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
        for key in dict.fromkeys([*old, *new])
        if not any(f"{key}.".startswith(f"{free}.") for free in may_differ)
        and (key not in old or key not in new or old[key] != new[key])
    ]
    more = len(differences) - MAX_NAMED
    return "; ".join(differences[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
