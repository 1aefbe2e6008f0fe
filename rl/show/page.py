"""The page of rl/show: HTML with its style, its script and its images inside.

A page has a card for each prompt in one mode, and on it the items that belong to it: trajectories
of a ledger (rl/show/trajectories.py), or preference pairs (rl/show/pairs.py).

What a run has written is text and never becomes markup: `tag` escapes every string that `tag` did
not make itself. Behind that stands a content security policy under which the browser runs this
module's script, known by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any


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


class Html(str):
    """Markup."""


@dataclass(frozen=True)
class Form:
    """What the items of a page are, and the keys of their data that filter and sort them."""

    items: str
    """What many of them are called."""
    choices: tuple[str, ...]
    """One value of it is chosen, or any."""
    measure: str
    """A number, of which the lowest and the highest can be given."""
    sort_keys: tuple[str, ...]
    """Numbers."""
    flags: tuple[tuple[str, str], ...] = ()
    """A key that the shown items must have, and what its box is called."""


@dataclass(frozen=True)
class Item:
    """What the form shows or hides as one."""

    content: tuple[Html, ...]
    data: Mapping[str, str | None]
    """Values by the keys of the form; None where it has none."""


@dataclass(frozen=True)
class Card:
    """One prompt in one mode, and the items that belong to it."""

    prompt_id: str
    mode: str
    facts: tuple[str, ...]
    prompt: tuple[Html, ...]
    """Its messages, and the reference."""
    pictures: tuple[Picture, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Page:
    name: str
    """The run's."""
    extent: str
    """Which part of the run it is of."""
    form: Form
    modes: tuple[str, ...]
    table: Html
    """Counts and means, whether what they are of is shown or not."""
    num_groups: int
    """Shown or not, as are the items."""
    num_items: int
    cards: tuple[Card, ...]
    """The groups that are shown."""

    @property
    def num_shown(self) -> int:
        return sum(len(card.items) for card in self.cards)


class Room:
    """What a page has left of its limit: whole groups as long as they fit, and at least one."""

    def __init__(self, limit: int) -> None:
        """limit: in items."""
        self._left = limit
        self._is_empty = True

    def takes(self, size: int) -> bool:
        """Whether a group of so many items is shown; asked of every group in its order."""
        if self._is_empty or size <= self._left:
            self._is_empty = False
            self._left -= size
            return True
        # From here on none fits: a later, smaller group would stand beside a gap.
        self._left = 0
        return False


def tag(name: str, /, *children: str, **attributes: str | None) -> Html:
    """An element; children that are not Html, and all attributes, are escaped.

    `class_` names the attribute `class` and `data_x` the attribute `data-x`; None leaves it out.

    Example: tag("b", "1 < 2", class_="x") == '<b class="x">1 &lt; 2</b>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    inner = "".join(one if isinstance(one, Html) else _escaped(one) for one in children)
    return Html(f"<{name}{written}>{inner}</{name}>")


_VOID = {"img", "input", "meta"}
# Control characters but tab and newline, which HTML alters or cannot hold, become their pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def _escaped(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode("utf-8").translate(_PICTURES))


def as_html(page: Page) -> str:
    """The whole document."""
    title = f"{page.name}, {page.extent}"
    policy = (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # The policy holds for what comes after it.
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    body = tag(
        "body",
        tag("h1", title),
        tag("p", _counts(page)),
        page.table,
        _form(page),
        tag(
            "main",
            *(_card(card, page.modes.index(card.mode)) for card in page.cards),
            data_items=page.form.items,
        ),
        tag("script", Html(_SCRIPT)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _source(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def as_ranges(numbers: Sequence[int]) -> str:
    """Example: as_ranges([1, 2, 3, 7]) == "1..3, 7" """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}..{run[-1]}" if run[1:] else f"{run[0]}" for run in runs)


def _counts(page: Page) -> str:
    items = page.form.items
    all_of_it = f"Groups: {page.num_groups:,}. {items.capitalize()}: {page.num_items:,}."
    if page.num_shown == page.num_items:
        return all_of_it
    return (
        f"{all_of_it} The table counts all of them; under it are the first {len(page.cards):,} "
        f"groups with {page.num_shown:,} {items}. With limit={page.num_items} all are shown."
    )


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> Html:
    rows = [tag("tr", *(tag("th", name) for name in header))]
    rows += [tag("tr", *(tag("td", cell) for cell in line)) for line in lines]
    return tag("div", tag("table", *rows), class_="wide")


def as_number(value: float, sign: str = "") -> str:
    """Four digits without the rounding errors of a mean; the 0 that is added turns -0 into 0."""
    return format(round(value, 6) + 0.0, f"{sign}.4g")


def as_mean(values: Iterable[float | None], shown: Callable[[float], str] = as_number) -> str:
    known = [value for value in values if value is not None]
    return shown(fmean(known)) if known else "–"


def _form(page: Page) -> Html:
    """The filters; hidden until the script, which they need, has started."""
    form = page.form
    data = [item.data for card in page.cards for item in card.items]
    orders = ["as stored"]
    orders += [f"{key}, {way}" for key in form.sort_keys for way in _WAYS]
    search = tag("input", name="search", type="search")
    return tag(
        "form",
        *(_choice(name, (one[name] or "" for one in data)) for name in form.choices),
        tag("label", f"{form.measure} from ", _bound("least")),
        tag("label", "to ", _bound("most")),
        tag("label", "text ", search),
        *(_flag(*flag) for flag in form.flags),
        tag("label", "order ", tag("select", *_options(orders), name="order")),
        tag("button", "reset", type="reset"),
        tag("output", name="count"),
        tag("span", tag("kbd", "j"), " next group, ", tag("kbd", "k"), " previous"),
        autocomplete="off",
        hidden="",
        data_measure=form.measure,
    )


_WAYS = ("highest first", "lowest first")


def _bound(name: str) -> Html:
    return tag("input", name=name, type="number", step="any")


def _flag(key: str, label: str) -> Html:
    return tag("label", tag("input", type="checkbox", data_flag=key), f" {label}")


def _choice(name: str, values: Iterable[str]) -> Html:
    known = sorted(set(values))
    options = [tag("option", "any"), *_options(known)]
    return tag("label", f"{name} ", tag("select", *options, data_choice=name))


def _options(values: Iterable[str]) -> Iterator[Html]:
    return (tag("option", value or "(none)", value=value) for value in values)


def _card(card: Card, place_of_mode: int) -> Html:
    mode = tag("span", card.mode, class_=f"mode mode-{place_of_mode % 5}")
    return tag(
        "section",
        tag("h2", mode, " ", card.prompt_id),
        tag("p", " · ".join(card.facts), class_="facts"),
        tag("div", tag("div", *card.prompt), *_pictures(card.pictures), class_="prompt"),
        tag("ol", *(_item(item, place) for place, item in enumerate(card.items))),
        class_="group",
        tabindex="-1",
    )


def _item(item: Item, place: int) -> Html:
    data = {f"data_{key}": value for key, value in item.data.items()}
    return tag("li", *item.content, class_="item", data_place=str(place), **data)


def prompt_blocks(messages: Iterable[Mapping[str, Any]], reference: str) -> tuple[Html, ...]:
    """One block a message of the chat; media are named, what else is no text is shown as JSON."""
    return *map(_message, messages), block("reference", reference)


def _message(message: Mapping[str, Any]) -> Html:
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    text = _content(message.get("content")) + (f"\n{_json(rest)}" if rest else "")
    return block(str(message.get("role")), text)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part(part) for part in content)
    return _json(content)


def _part(part: Any) -> str:
    match part:
        case {"type": "text", "text": text}:
            return text
        case {"type": "image" | "video" as kind, **rest} if not rest:
            return f"[{kind}]"
    return _json(part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def block(name: str, text: str) -> Html:
    return tag("div", tag("h3", name), as_text(text), class_="block")


def as_text(text: str) -> Html:
    # No <pre>: it would swallow a newline at the start.
    return tag("div", text, class_="text", dir="auto")


def _pictures(pictures: Sequence[Picture]) -> Iterator[Html]:
    if pictures:
        yield tag("div", *map(_picture, pictures), class_="images")


def _picture(picture: Picture) -> Html:
    shown: list[Html] = []
    if picture.uri is not None:
        shown.append(tag("img", src=picture.uri, alt=picture.name))
    if picture.problem is not None:
        shown.append(tag("p", picture.problem, class_="problem"))
    name = tag("figcaption", picture.name)
    return tag("figure", *shown, name, class_="strip" if picture.is_strip else None)


def sortable(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else repr(value)


def facts_line(elements: Iterable[Html]) -> Html:
    # With a space between them, for those who copy the line or hear it read.
    spaced = (part for element in elements for part in (element, " "))
    return tag("p", *spaced, class_="facts")


def answer_block(answer: str | None) -> Html:
    """answer: None where the text has none."""
    if answer is None:
        return tag("p", "no answer: the reasoning never ended", class_="problem")
    # The newlines after the closing tag of the reasoning belong to the chat template.
    return block("answer", answer.strip("\n"))


def folded(name: str, text: str) -> Html:
    summary = tag("summary", f"{name} ({len(text):,} characters)")
    return tag("details", summary, as_text(text))


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --grey: #59636e; --line: #d7dce1;
  --paper: #ffffff; --card: #f6f8fa; --plus: #116329; --minus: #b3261e; --warn: #8a5a00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --grey: #9aa4af; --line: #3a4149; --paper: #14171a; --card: #1d2126;
    --plus: #56c271; --minus: #ff8a80; --warn: #e0b050 }
}
* { box-sizing: border-box }
[hidden] { display: none !important }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 50vh }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere }
h3 { font-size: .8rem; font-weight: 600; color: var(--grey); margin: 0 }
p { margin: .25rem 0 }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap;
  font-size: .9rem }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
th { color: var(--grey); font-weight: 600 }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; font-size: .9rem;
  padding: .6rem 0; background: var(--paper); border-bottom: 1px solid var(--line) }
label { white-space: nowrap }
input, select, button { font: inherit; max-width: 14rem }
input[type=number] { width: 5.5rem }
output { font-weight: 600 }
form span { color: var(--grey) }
.group { margin: 1.5rem 0; padding: 1rem; background: var(--card); border-radius: .5rem;
  border: 1px solid var(--line); scroll-margin-top: 1rem;
  content-visibility: auto; contain-intrinsic-size: auto 60rem }
.group:focus { outline: 2px solid var(--grey) }
.mode { display: inline-block; padding: 0 .5rem; border-radius: .25rem; color: #000 }
.mode-0 { background: #56b4e9 } .mode-1 { background: #f0a35e } .mode-2 { background: #4cc3a0 }
.mode-3 { background: #dfa0c4 } .mode-4 { background: #f0e442 }
.facts { color: var(--grey); font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere }
.facts > * { margin-right: .6rem }
.facts strong { color: var(--ink) }
.facts .plus { color: var(--plus) }
.facts .minus { color: var(--minus) }
.problem, .facts .problem { color: var(--warn) }
.part { display: inline-block; padding: 0 .4rem; margin-bottom: .2rem;
  border: 1px solid var(--line); border-radius: .25rem }
.prompt { display: flex; flex-wrap: wrap; gap: 1rem }
.prompt > :first-child { flex: 1 1 20rem; min-width: 0 }
.images { display: flex; flex-wrap: wrap; gap: .5rem; flex: 0 1 auto; max-width: 100% }
figure { margin: 0; max-width: 16rem }
figure.strip { max-width: 100% }
img { max-width: 100%; height: auto; display: block; border-radius: .25rem }
figcaption { font-size: .75rem; color: var(--grey); overflow-wrap: anywhere }
.block { margin: .5rem 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 36rem; overflow-y: auto;
  tab-size: 4 }
ol { list-style: none; margin: .75rem 0 0; padding: 0 }
.item { border-top: 1px solid var(--line); padding: .6rem 0 }
.sides { display: flex; flex-wrap: wrap; gap: 0 1.5rem }
.sides > * { flex: 1 1 20rem; min-width: 0 }
ul { list-style: none; margin: .5rem 0; padding: 0 }
.claim { border-left: 3px solid var(--line); padding-left: .75rem; margin: .5rem 0 }
.claim .question { color: var(--grey); font-size: .9rem }
details { margin: .4rem 0 }
summary { cursor: pointer; color: var(--grey); font-size: .9rem }
details .text { padding-left: .75rem; border-left: 3px solid var(--line); margin-top: .3rem }
@media (max-width: 30rem) {
  body { padding: 1rem .6rem 50vh }
  .group { padding: .7rem }
}
@media (min-width: 60rem) and (min-height: 40rem) {
  form { position: sticky; top: 0; z-index: 1 }
  .group { scroll-margin-top: 7rem }
}
"""

_SCRIPT = """
"use strict";
const form = document.querySelector("form");
const fields = form.elements;
const main = document.querySelector("main");
const groups = [...document.querySelectorAll(".group")].map(element => ({
  element,
  prompt: [element.querySelector("h2"), ...element.querySelectorAll(".prompt .text")],
  list: element.querySelector("ol"),
  items: [...element.querySelectorAll(".item")],
  shown: [],
}));
const total = groups.reduce((sum, group) => sum + group.items.length, 0);
const choices = [...form.querySelectorAll("[data-choice]")];
const flags = [...form.querySelectorAll("[data-flag]")];

const holds = (texts, query) => texts.some(one => one.textContent.toLowerCase().includes(query));

function isWanted(data) {
  for (const one of choices) {
    if (one.selectedIndex > 0 && data[one.dataset.choice] !== one.value) return false;
  }
  if (flags.some(one => one.checked && data[one.dataset.flag] === undefined)) return false;
  const least = fields.least.valueAsNumber, most = fields.most.valueAsNumber;
  if (Number.isNaN(least) && Number.isNaN(most)) return true;
  const measure = data[form.dataset.measure];
  if (measure === undefined) return false;
  return !(Number(measure) < least) && !(Number(measure) > most);
}

// Compares by the chosen order; what has no value comes last either way.
function comparison() {
  const byPlace = (a, b) => Number(a.dataset.place) - Number(b.dataset.place);
  if (fields.order.selectedIndex === 0) return byPlace;
  const [key, way] = fields.order.value.split(", ");
  const sign = way === "lowest first" ? 1 : -1;
  return (a, b) => {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (Number(x) - Number(y));
  };
}

function select(group, query, compare) {
  const inPrompt = !query || holds(group.prompt, query);
  for (const one of group.items) {
    const texts = [...one.querySelectorAll(".text")];
    one.hidden = !isWanted(one.dataset) || !(inPrompt || holds(texts, query));
  }
  group.shown = group.items.filter(one => !one.hidden).sort(compare);
  group.list.append(...group.shown);
  group.element.hidden = group.shown.length === 0;
  if (!query) return;
  for (const folded of group.list.querySelectorAll(".item:not([hidden]) details:not([open])")) {
    folded.open = holds([folded.querySelector(".text")], query);
  }
}

// Groups stand in the order of the first item that each of them shows.
function update() {
  const query = fields.search.value.toLowerCase();
  const compare = comparison();
  for (const group of groups) select(group, query, compare);
  const shown = groups.filter(group => group.shown.length > 0);
  if (fields.order.selectedIndex > 0) shown.sort((a, b) => compare(a.shown[0], b.shown[0]));
  main.append(...shown.map(group => group.element));
  const number = shown.reduce((sum, group) => sum + group.shown.length, 0);
  const ofGroups = `${shown.length} of ${groups.length} groups`;
  fields.count.value = `${number} of ${total} ${main.dataset.items}, ${ofGroups}`;
}

// The group that the reader is at: the focused one if it is in sight, else by the position.
function move(by) {
  const shown = [...main.querySelectorAll(".group:not([hidden])")];
  const place = element => element.getBoundingClientRect();
  const inSight = element => place(element).bottom > 0 && place(element).top < innerHeight;
  const focused = shown.indexOf(document.activeElement.closest(".group"));
  let next = focused + by;
  if (focused < 0 || !inSight(shown[focused])) {
    const below = shown.findIndex(element => place(element).top > 0);
    next = below < 0 ? shown.length - 1 : by > 0 ? below : below - 1;
  }
  if (!shown[next]) return;
  shown[next].focus({preventScroll: true});
  shown[next].scrollIntoView();
}

let waiting;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(update, 150);
});
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", event => event.preventDefault());
document.addEventListener("keydown", event => {
  const typing = event.target.closest("input, select") && event.target.type !== "checkbox";
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "j") move(1);
  if (event.key === "k") move(-1);
});
form.hidden = false;
update();
"""
