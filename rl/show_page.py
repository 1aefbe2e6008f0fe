"""The page of rl/show.py: HTML with its style, its script and its images inside.

What the ledger holds is text and never becomes markup: `tag` escapes every string that `tag` did
not make itself. Behind that stands a content security policy under which the browser runs this
module's script, known by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

from rl.ledger import LedgerRow


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
    """One group: the trajectories of one prompt in one mode."""

    rows: tuple[LedgerRow, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Page:
    name: str
    """The run's."""
    steps: tuple[int, ...]
    cards: tuple[Card, ...]
    """The groups that are shown."""
    rows: tuple[LedgerRow, ...]
    """Every trajectory of the steps, for counts and means; their texts may be left out."""


class Html(str):
    """Markup."""


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
    title = f"{page.name}, step {as_ranges(page.steps)}"
    policy = (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    modes = sorted({row.mode for row in page.rows})
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
        tag("p", _extent(page)),
        _means(page.rows, modes),
        _form(page),
        tag("main", *(_card(card, modes.index(card.rows[0].mode)) for card in page.cards)),
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


def _extent(page: Page) -> str:
    groups, trajectories = _num_groups(page.rows), len(page.rows)
    all_of_it = f"Groups: {groups:,}. Trajectories: {trajectories:,}."
    shown = sum(len(card.rows) for card in page.cards)
    if shown == trajectories:
        return all_of_it
    return (
        f"{all_of_it} The table counts all of them; under it are the first {len(page.cards):,} "
        f"groups with {shown:,} trajectories. With limit={trajectories} all are shown."
    )


def _num_groups(rows: Iterable[LedgerRow]) -> int:
    return len({(row.step, row.group_id) for row in rows})


def _means(rows: Sequence[LedgerRow], modes: Sequence[str]) -> Html:
    """Counts and means per mode, over the trajectories that have the figure."""
    parts = sorted({part for row in rows for part in row.parts})
    names = ["mode", "groups", "trajectories", "failed", "truncated", "tokens", "reward"]
    header = tag("tr", *(tag("th", name) for name in [*names, *parts, "mismatch"]))
    lines = [header]
    for mode in modes:
        of_mode = [row for row in rows if row.mode == mode]
        cells = [
            mode,
            f"{_num_groups(of_mode):,}",
            f"{len(of_mode):,}",
            f"{sum(row.failure is not None for row in of_mode):,}",
            f"{fmean(row.finish_reason == 'length' for row in of_mode):.1%}",
            f"{fmean(row.num_tokens for row in of_mode):,.1f}",
            _mean(row.reward for row in of_mode),
            *(_mean(row.parts.get(part) for row in of_mode) for part in parts),
            _mean((row.mismatch for row in of_mode), _small),
        ]
        lines.append(tag("tr", *(tag("td", cell) for cell in cells)))
    return tag("div", tag("table", *lines), class_="wide")


def _number(value: float, sign: str = "") -> str:
    """Four digits without the rounding errors of a mean; the 0 that is added turns -0 into 0."""
    return format(round(value, 6) + 0.0, f"{sign}.4g")


def _small(value: float) -> str:
    return f"{value:.2g}"


def _mean(values: Iterable[float | None], shown: Callable[[float], str] = _number) -> str:
    known = [value for value in values if value is not None]
    return shown(fmean(known)) if known else "–"


def _form(page: Page) -> Html:
    """The filters; hidden until the script, which they need, has started."""
    rows = [row for card in page.cards for row in card.rows]
    orders = ["ledger"]
    orders += [f"{key}, {way}" for key in _SORT_KEYS for way in ("highest first", "lowest first")]
    search = tag("input", name="search", type="search")
    failed = tag("input", name="failed", type="checkbox")
    return tag(
        "form",
        _choice("mode", (row.mode for row in rows)),
        _choice("task", (row.task for row in rows)),
        _choice("route", (row.route for row in rows)),
        _choice("finish", (row.finish_reason for row in rows)),
        tag("label", "reward from ", tag("input", name="least", type="number", step="any")),
        tag("label", "to ", tag("input", name="most", type="number", step="any")),
        tag("label", "text ", search),
        tag("label", failed, " only failures"),
        tag("label", "order ", tag("select", *_options(orders), name="order")),
        tag("button", "reset", type="reset"),
        tag("output", name="count"),
        tag("span", tag("kbd", "j"), " next group, ", tag("kbd", "k"), " previous"),
        autocomplete="off",
        hidden="",
    )


_SORT_KEYS = ("reward", "advantage", "tokens")


def _choice(name: str, values: Iterable[str]) -> Html:
    known = sorted(set(values))
    options = [tag("option", "any"), *_options(known)]
    return tag("label", f"{name} ", tag("select", *options, name=name))


def _options(values: Iterable[str]) -> Iterator[Html]:
    return (tag("option", value or "(none)", value=value) for value in values)


def _card(card: Card, place_of_mode: int) -> Html:
    first = card.rows[0]
    rewards = [row.reward for row in card.rows]
    facts = [
        f"group {first.group_id}",
        f"step {first.step}",
        f"task {first.task}",
        _versions(card.rows),
        f"{len(card.rows)} trajectories",
        f"mean reward {_mean(rewards)}",
    ]
    mode = tag("span", first.mode, class_=f"mode mode-{place_of_mode % 5}")
    prompt = tag("div", *_messages(first.messages), _block("reference", first.reference))
    return tag(
        "section",
        tag("h2", mode, " ", first.prompt_id),
        tag("p", " · ".join(facts), class_="facts"),
        tag("div", prompt, *_pictures(card.pictures), class_="prompt"),
        tag("ol", *(_trajectory(row, place) for place, row in enumerate(card.rows))),
        class_="group",
        tabindex="-1",
    )


def _versions(rows: Iterable[LedgerRow]) -> str:
    versions = {version for row in rows for version in (row.first_version, row.last_version)}
    first, last = min(versions), max(versions)
    return f"version {first}" if first == last else f"versions {first} to {last}"


def _messages(stored: str) -> Iterator[Html]:
    """One block a message of the chat; media are named, what else is no text is shown as JSON."""
    for message in json.loads(stored):
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        text = _content(message.get("content")) + (f"\n{_json(rest)}" if rest else "")
        yield _block(str(message.get("role")), text)


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


def _block(name: str, text: str) -> Html:
    return tag("div", tag("h3", name), _text(text), class_="block")


def _text(text: str) -> Html:
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


def _trajectory(row: LedgerRow, place: int) -> Html:
    return tag(
        "li",
        tag("p", tag("span", f"#{place + 1}"), " ", *_spaced(_facts(row)), class_="facts"),
        tag("p", *_spaced(_parts(row)), class_="facts"),
        *([] if row.reasoning is None else [_folded("reasoning", row.reasoning)]),
        _answer(row),
        *([] if row.preference_answer is None else [_preference(row.preference_answer)]),
        class_="trajectory",
        data_place=str(place),
        data_mode=row.mode,
        data_task=row.task,
        data_route=row.route,
        data_finish=row.finish_reason,
        data_failed=None if row.failure is None else "",
        data_reward=_sortable(row.reward),
        data_advantage=_sortable(row.advantage),
        data_tokens=str(row.num_tokens),
    )


def _sortable(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else repr(value)


def _facts(row: LedgerRow) -> Iterator[Html]:
    reward = "no reward" if row.reward is None else f"reward {_number(row.reward)}"
    yield tag("strong", reward)
    if row.advantage is None:
        yield tag("span", "no advantage: left out of the update")
    else:
        sign = "plus" if row.advantage > 0 else "minus" if row.advantage < 0 else None
        yield tag("strong", f"advantage {_number(row.advantage, '+')}", class_=sign)
    yield tag("span", f"{row.num_tokens:,} tokens")
    yield tag("span", row.finish_reason, class_=None if row.finish_reason == "stop" else "problem")
    if row.first_version != row.last_version:
        yield tag("span", _versions([row]))
    if row.mismatch is not None:
        yield tag("span", f"mismatch {_small(row.mismatch)}")
    if row.failure is not None:
        yield tag("strong", f"failure: {row.failure}", class_="problem")


def _parts(row: LedgerRow) -> Iterator[Html]:
    if row.route:
        yield tag("span", f"route {row.route}", class_="part")
    for name, value in sorted(row.parts.items()):
        yield tag("span", f"{name} {_number(value)}", class_="part")


def _spaced(elements: Iterable[Html]) -> Iterator[str]:
    """With a space between them, for those who copy the line or hear it read."""
    for element in elements:
        yield element
        yield " "


def _answer(row: LedgerRow) -> Html:
    if row.answer is None:
        return tag("p", "no answer: the reasoning never ended", class_="problem")
    # The newlines after the closing tag of the reasoning belong to the chat template.
    return _block("answer", row.answer.strip("\n"))


def _preference(answer: str) -> Html:
    return _folded("what the preference model saw, beside the messages", answer)


def _folded(name: str, text: str) -> Html:
    summary = tag("summary", f"{name} ({len(text):,} characters)")
    return tag("details", summary, _text(text))


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
.trajectory { border-top: 1px solid var(--line); padding: .6rem 0 }
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
  trajectories: [...element.querySelectorAll(".trajectory")],
  shown: [],
}));
const total = groups.reduce((sum, group) => sum + group.trajectories.length, 0);

const holds = (texts, query) => texts.some(one => one.textContent.toLowerCase().includes(query));

function isWanted(data) {
  for (const name of ["mode", "task", "route", "finish"]) {
    if (fields[name].selectedIndex > 0 && data[name] !== fields[name].value) return false;
  }
  if (fields.failed.checked && data.failed === undefined) return false;
  const least = fields.least.valueAsNumber, most = fields.most.valueAsNumber;
  if (Number.isNaN(least) && Number.isNaN(most)) return true;
  if (data.reward === undefined) return false;
  return !(Number(data.reward) < least) && !(Number(data.reward) > most);
}

// Compares by the chosen order; what has no value comes last either way.
function comparison() {
  const [key, way] = fields.order.value.split(", ");
  if (key === "ledger") return (a, b) => Number(a.dataset.place) - Number(b.dataset.place);
  const sign = way === "lowest first" ? 1 : -1;
  return (a, b) => {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (Number(x) - Number(y));
  };
}

function select(group, query, compare) {
  const inPrompt = !query || holds(group.prompt, query);
  for (const one of group.trajectories) {
    const texts = [...one.querySelectorAll(".text")];
    one.hidden = !isWanted(one.dataset) || !(inPrompt || holds(texts, query));
  }
  group.shown = group.trajectories.filter(one => !one.hidden).sort(compare);
  group.list.append(...group.shown);
  group.element.hidden = group.shown.length === 0;
  if (!query) return;
  for (const folded of group.list.querySelectorAll("li:not([hidden]) details:not([open])")) {
    folded.open = holds([folded.querySelector(".text")], query);
  }
}

// Groups stand in the order of the first trajectory that each of them shows.
function update() {
  const query = fields.search.value.toLowerCase();
  const compare = comparison();
  for (const group of groups) select(group, query, compare);
  const shown = groups.filter(group => group.shown.length > 0);
  if (fields.order.selectedIndex > 0) shown.sort((a, b) => compare(a.shown[0], b.shown[0]));
  main.append(...shown.map(group => group.element));
  const number = shown.reduce((sum, group) => sum + group.shown.length, 0);
  const ofGroups = `${shown.length} of ${groups.length} groups`;
  fields.count.value = `${number} of ${total} trajectories, ${ofGroups}`;
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
