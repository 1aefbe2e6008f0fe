"""The pages of the project: HTML with its style, its script and its images inside.

A page of samples (samples.py) has a card for each prompt in one mode, and on it the items that
belong to it: trajectories of a ledger, or preference pairs. run.py has the page of a whole run.

What a run has written is text and never becomes markup: the templates escape every value. Behind
that stands a content security policy, under which the browser runs the script of page.js, known by
its hash, and nothing else.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rl.run.pictures import GREY, GRID, INK, MODE_COLORS
from rl.run.templates import templates

_HERE = Path(__file__).parent
# The colours come before the style, which replaces some of them where the screen is dark.
_COLORS = [f":root {{ --ink: {INK}; --grey: {GREY}; --line: {GRID} }}"]
_COLORS += [f".mode-{n} {{ --mode: {color} }}" for n, color in enumerate(MODE_COLORS)]
_STYLE = "\n".join([*_COLORS, (_HERE / "page.css").read_text("utf-8")])
_SCRIPT = (_HERE / "page.js").read_text("utf-8")


@dataclass(frozen=True)
class Picture:
    """An image of a prompt, or frames of a video side by side."""

    name: str
    uri: str | None
    """A data URI; None where it is not shown."""
    problem: str | None
    """Why it is not shown, or how it differs from what the policy saw."""
    is_strip: bool = False
    """Whether it is frames of a video."""


@dataclass(frozen=True)
class Card:
    """One prompt in one mode, and the items that belong to it."""

    prompt_id: str
    mode: str
    facts: tuple[str, ...]
    messages: tuple[tuple[str, str], ...]
    """Role and text of each."""
    reference: str
    pictures: tuple[Picture, ...]
    items: tuple[Any, ...]
    """What the template of the page's items writes; the form shows or hides each as one."""


@dataclass(frozen=True)
class Page:
    name: str
    """The run's."""
    extent: str
    """Which part of the run it is of."""
    modes: tuple[str, ...]
    """All that the run has, in the order of their colours."""
    items: str
    """What the items are called; ITEMS.html.j2 is their template."""
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    """The table of counts and means, a line for each mode, of all that the page is of, shown or
    not."""
    num_groups: int
    num_items: int
    cards: tuple[Card, ...]
    """The groups that are shown."""

    @property
    def shown(self) -> list[Any]:
        """The items of all cards."""
        return [item for card in self.cards for item in card.items]


def as_html(page: Page) -> str:
    """Return the whole document of a page of samples."""
    title = f"{page.name}, {page.extent}"
    return render(f"{page.items}.html.j2", title, page=page)


def framed(title: str, body: str, images: str = "data:") -> str:
    """Return the document of a page without a script.

    body: HTML that is safe, with its heading. images: where the browser may take them from, as in
    a content security policy; by default only from the page itself.
    """
    return render("page.html.j2", title, images, body=body)


def render(template: str, title: str, images: str = "data:", **values: Any) -> str:
    """Return the whole document that a template of this room makes of its values."""
    hashes = [hashlib.sha256(code.encode()).digest() for code in (_SCRIPT, _STYLE)]
    script, style = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    # Even if a text slipped through the escapes, the browser would run and load nothing of it.
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {images}; "
        "base-uri 'none'; form-action 'none'"
    )
    return _TEMPLATES.get_template(template).render(
        title=title,
        policy=policy,
        style=_STYLE,
        script=_SCRIPT,
        num_colors=len(MODE_COLORS),
        **values,
    )


def as_ranges(numbers: Sequence[int]) -> str:
    """Example: as_ranges([1, 2, 3, 7]) == "1..3, 7" """
    # In a run of consecutive numbers each is as far above its index as the others.
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(members) for _, members in runs)]
    return ", ".join(f"{first}..{last}" if last > first else f"{first}" for first, last in ends)


def as_number(value: float, sign: str = "") -> str:
    """Return the value with four digits."""
    # Rounded to hide the rounding errors of a mean; the 0 that is added turns -0 into 0.
    return format(round(value, 6) + 0.0, f"{sign}.4g")


# Compiled once; the templates are few and the pages may be large.
_TEMPLATES = templates(_HERE)
_TEMPLATES.filters |= {"number": as_number, "is_finite": math.isfinite}
