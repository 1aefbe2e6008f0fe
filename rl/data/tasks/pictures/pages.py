"""Pages of made-up text, whose facts are stated twice: what one place hides, another tells.

A page is a title and paragraphs from a small grammar. Every fact is a field of the sentences'
templates; `paint_page` says where each mention of one stands in the picture, so that it can be
damaged (rl/data/tasks/pictures/reconstruction.py) and still be inferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, model_validator

from rl.config.run import Section
from rl.data.tasks.pictures import words
from rl.data.tasks.pictures.lettering import FAMILIES, font
from rl.data.tasks.pictures.ranges import draw_whole, pick, pick_several, within

INK, PAPER = "#141414", "#fdfdfb"
LETTERS_PER_LINE = 14
"""Fewest font sizes across a page; on a narrower one the longest word has no room."""


class PageSettings(Section):
    width: int = Field(default=448, ge=320, le=1600)
    """Pixels; the height follows from the text."""
    letters: Annotated[tuple[int, int], within(12, 32)] = (15, 18)
    """Size of the font in pixels."""

    @model_validator(mode="after")
    def _words_have_room(self) -> PageSettings:
        if self.width < LETTERS_PER_LINE * self.letters[1]:
            raise ValueError(
                f"letters of {self.letters[1]} pixels need a width of {LETTERS_PER_LINE} times as "
                f"much, {LETTERS_PER_LINE * self.letters[1]}, got width={self.width}; raise it or "
                "lower letters"
            )
        return self


@dataclass(frozen=True)
class Asked:
    """A question about one fact."""

    question: str
    fact: str
    route: str


@dataclass(frozen=True)
class Kind:
    """A kind of page: templates, with alternatives for each sentence."""

    title: str
    paragraphs: tuple[tuple[tuple[str, ...], ...], ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Fragment:
    """Part of a word that is drawn in one go, such as the name in "Velden,"."""

    text: str
    mention: int | None
    """Which mention of a fact it belongs to, counted over the page; None for plain text."""


Word = tuple[Fragment, ...]


@dataclass(frozen=True)
class Page:
    kind: Kind
    facts: Mapping[str, str]
    title: tuple[Word, ...]
    paragraphs: tuple[tuple[Word, ...], ...]
    mentions: tuple[str, ...]
    """The fact of each mention, in reading order."""

    @property
    def text(self) -> str:
        """The page as it is to be transcribed, one line for the title and each paragraph."""
        return "\n".join(map(text_of, (self.title, *self.paragraphs)))

    @property
    def identity(self) -> str:
        """One for every task that shows the page, so that none trains on what another holds out."""
        return f"page {self.text}"

    @property
    def repeated(self) -> tuple[int, ...]:
        """Mentions of facts that are stated elsewhere on the page, too."""
        counts = Counter(self.mentions)
        return tuple(n for n, fact in enumerate(self.mentions) if counts[fact] > 1)


@dataclass(frozen=True)
class Line:
    """One line of a picture; boxes are (left, top, right, bottom) in pixels."""

    text: str
    box: tuple[int, int, int, int]
    mentions: Mapping[int, tuple[int, int, int, int]]
    """Where those stand that are whole on this line."""


def text_of(line: tuple[Word, ...]) -> str:
    return " ".join("".join(fragment.text for fragment in word) for word in line)


def draw_page(rng: np.random.Generator) -> Page:
    facts_of, kind = pick(rng, KINDS)
    facts = facts_of(rng)
    mentions: list[str] = []
    title = _words(kind.title, facts, mentions)
    paragraphs = tuple(
        _words(" ".join(pick(rng, sentence) for sentence in sentences), facts, mentions)
        for sentences in kind.paragraphs
    )
    return Page(kind, facts, title, paragraphs, tuple(mentions))


def _words(template: str, facts: Mapping[str, str], mentions: list[str]) -> tuple[Word, ...]:
    """The words of a filled template; adds the fact of every mention to `mentions`."""
    found: list[list[Fragment]] = [[]]
    for literal, name, _, _ in Formatter().parse(template):
        _extend(found, literal, None)
        if name is not None:
            _extend(found, facts[name], len(mentions))
            mentions.append(name)
    return tuple(tuple(word) for word in found if word)


def _extend(found: list[list[Fragment]], text: str, mention: int | None) -> None:
    """Add text to words, a new one after every space."""
    for place, piece in enumerate(text.split(" ")):
        if place:
            found.append([])
        if piece:
            found[-1].append(Fragment(piece, mention))


def paint_page(
    page: Page, settings: PageSettings, rng: np.random.Generator
) -> tuple[Image.Image, list[Line]]:
    """Return the picture and its lines, the title's first."""
    size, family = draw_whole(rng, settings.letters), pick(rng, FAMILIES)
    # Letters of one width are the widest.
    size -= 2 if family.endswith("Mono") else 0
    margin, room = size * 3 // 2, settings.width - size * 3
    placed: list[tuple[list[Word], bool, int]] = []
    top = margin
    for place, text in enumerate((page.title, *page.paragraphs)):
        is_title = place == 0
        for line in _wrap(text, family, size + 3 * is_title, is_title, room):
            placed.append((line, is_title, top))
            top += round(size * (1.85 if is_title else 1.6))
        top += round(size * 0.6)
    image = Image.new("RGB", (settings.width, top + margin - size // 2), PAPER)
    canvas = ImageDraw.Draw(image)
    lines = [
        _paint_line(canvas, line, font(family, size + 3 * is_title, is_title), (margin, y))
        for line, is_title, y in placed
    ]
    counts = Counter(mention for line in lines for mention in line.mentions)
    broken = {mention for mention, count in counts.items() if count > 1}
    return image, [_without(line, broken) for line in lines]


def _wrap(
    text: tuple[Word, ...], family: str, size: int, is_bold: bool, room: int
) -> Iterator[list[Word]]:
    letters = font(family, size, is_bold)
    line: list[Word] = []
    for word in text:
        if line and letters.getlength(text_of((*line, word))) > room:
            yield line
            line = []
        line.append(word)
    yield line


def _paint_line(
    canvas: ImageDraw.ImageDraw,
    line: list[Word],
    letters: ImageFont.FreeTypeFont,
    corner: tuple[int, int],
) -> Line:
    left, top = corner
    bottom = top + sum(letters.getmetrics())
    x, boxes = left, {}
    for place, word in enumerate(line):
        x += round(letters.getlength(" ")) if place else 0
        for fragment in word:
            canvas.text((x, top), fragment.text, INK, letters)
            begin, x = x, x + round(letters.getlength(fragment.text))
            if fragment.mention is not None:
                begin = boxes[fragment.mention][0] if fragment.mention in boxes else begin
                boxes[fragment.mention] = (begin, top, x, bottom)
    return Line(text_of(tuple(line)), (left, top, x, bottom), boxes)


def _without(line: Line, mentions: Collection[int]) -> Line:
    kept = {mention: box for mention, box in line.mentions.items() if mention not in mentions}
    return replace(line, mentions=kept)


def _date(rng: np.random.Generator) -> str:
    return f"{rng.integers(1, 29)} {pick(rng, words.MONTHS)} {rng.integers(1820, 1996)}"


def _people(rng: np.random.Generator, count: int) -> list[str]:
    """Different people, no two with a name in common."""
    first = pick_several(rng, words.FIRST_NAMES, count)
    last = pick_several(rng, words.LAST_NAMES, count)
    return [f"{one} {other}" for one, other in zip(first, last, strict=True)]


def _building_facts(rng: np.random.Generator) -> dict[str, str]:
    return {
        "building": pick(rng, words.BUILDINGS),
        "town": pick(rng, words.TOWNS),
        "person": _people(rng, 1)[0],
        "date": _date(rng),
        "years": str(rng.integers(2, 10)),
        "cost": str(100 * rng.integers(11, 980)),
        "count": str(rng.integers(12, 96)),
        "fittings": pick(rng, words.FITTINGS),
    }


_BUILDING = Kind(
    "The {building} of {town}",
    (
        (
            (
                "The {building} of {town} was opened on {date}.",
                "On {date} the {building} of {town} opened its doors.",
            ),
            (
                "Its architect was {person}, who had drawn the plans in {years} years.",
                "It was designed by {person}, who needed {years} years for the plans.",
            ),
            (
                "To build it cost {cost} crowns, and it has {count} {fittings}.",
                "It has {count} {fittings}, and to build it cost {cost} crowns.",
            ),
        ),
        (
            (
                "A plaque by the entrance names the architect, {person}, and the day of the "
                "opening, {date}.",
                "The day of the opening, {date}, is carved above the entrance, and so is the name "
                "of the architect, {person}.",
            ),
            (
                "The people of {town} gave the whole sum of {cost} crowns.",
                "All of the {cost} crowns came from the people of {town}.",
            ),
            (
                "After a fire, every one of the {count} {fittings} was made anew.",
                "Every year the {count} {fittings} are cleaned by hand.",
            ),
        ),
    ),
    (
        Asked("Who was the architect of the {building}?", "person", "text"),
        Asked("In which town does the {building} stand?", "town", "text"),
        Asked("On which day was the {building} opened?", "date", "date"),
        Asked("How many crowns did it cost to build the {building}?", "cost", "number"),
        Asked("How many {fittings} does the {building} have?", "count", "number"),
    ),
)


def _voyage_facts(rng: np.random.Generator) -> dict[str, str]:
    port, destination = pick_several(rng, words.TOWNS, 2)
    return {
        "ship": pick(rng, words.SHIPS),
        "port": port,
        "destination": destination,
        "person": _people(rng, 1)[0],
        "date": _date(rng),
        "days": str(rng.integers(5, 90)),
        "count": str(rng.integers(20, 960)),
        "goods": pick(rng, words.GOODS),
    }


_VOYAGE = Kind(
    "A voyage of the {ship}",
    (
        (
            (
                "Under Captain {person} the {ship} left {port} on {date}.",
                "On {date} the {ship} left {port} under Captain {person}.",
            ),
            (
                "She was bound for {destination} and carried {count} barrels of {goods}.",
                "She carried {count} barrels of {goods} and was bound for {destination}.",
            ),
            ("The voyage took {days} days.", "She was at sea for {days} days."),
        ),
        (
            (
                "The harbour book of {port} gives the day of departure as {date}.",
                "In {port} the harbour book names {date} as the day of departure.",
            ),
            (
                "After the {days} days at sea, {person} sold the {count} barrels of {goods} in "
                "{destination}.",
                "In {destination}, after {days} days at sea, {person} sold all of the {count} "
                "barrels of {goods}.",
            ),
        ),
    ),
    (
        Asked("Who was the captain of the {ship}?", "person", "text"),
        Asked("From which port did the {ship} sail?", "port", "text"),
        Asked("To which port was the {ship} bound?", "destination", "text"),
        Asked("On which day did the {ship} leave port?", "date", "date"),
        Asked("How many days was the {ship} at sea?", "days", "number"),
        Asked("How many barrels did the {ship} carry?", "count", "number"),
    ),
)


def _meeting_facts(rng: np.random.Generator) -> dict[str, str]:
    speaker, chair = _people(rng, 2)
    return {
        "club": pick(rng, words.CLUBS),
        "town": pick(rng, words.TOWNS),
        "date": _date(rng),
        "hour": str(rng.integers(3, 10)),
        "room": pick(rng, words.ROOMS),
        "speaker": speaker,
        "chair": chair,
        "topic": pick(rng, words.TOPICS),
        "fee": str(rng.integers(2, 40)),
    }


_MEETING = Kind(
    "{club} of {town}",
    (
        (
            (
                "The {club} of {town} will meet on {date} at {hour} o'clock in the {room}.",
                "On {date}, at {hour} o'clock, the {club} of {town} will meet in the {room}.",
            ),
            (
                "{speaker} will speak about {topic}, and {chair} will take the chair.",
                "{chair} will take the chair, and {speaker} will speak about {topic}.",
            ),
            ("Guests are asked for {fee} crowns.", "Guests pay {fee} crowns at the door."),
        ),
        (
            (
                "Please be in the {room} before {hour} o'clock: the doors close when {speaker} "
                "begins.",
                "The doors of the {room} close at {hour} o'clock, when {speaker} begins.",
            ),
            (
                "Members who bring a guest on {date} write to {chair} and enclose the {fee} "
                "crowns.",
                "To bring a guest on {date}, write to {chair} and enclose the {fee} crowns.",
            ),
            (
                "A small show of books about {topic} will be open all day.",
                "Books about {topic} are on show all day.",
            ),
        ),
    ),
    (
        Asked("Who will speak at the meeting?", "speaker", "text"),
        Asked("Who will take the chair at the meeting?", "chair", "text"),
        Asked("In which room is the meeting?", "room", "text"),
        Asked("On which day is the meeting?", "date", "date"),
        Asked("How many crowns does a guest pay?", "fee", "number"),
    ),
)


def _life_facts(rng: np.random.Generator) -> dict[str, str]:
    person, teacher = _people(rng, 2)
    trade = pick(rng, words.TRADES)
    born, town = pick_several(rng, words.TOWNS, 2)
    return {
        "person": person,
        "teacher": teacher,
        "trade": trade,
        "born": born,
        "town": town,
        "year": str(rng.integers(1790, 1960)),
        "age": str(rng.integers(11, 23)),
        "count": str(rng.integers(24, 480)),
        "works": words.WORKS[trade],
    }


_LIFE = Kind(
    "{person}, {trade}",
    (
        (
            (
                "The {trade} {person} was born in {born} in {year}.",
                "In {year} the {trade} {person} was born in {born}.",
            ),
            (
                "{teacher}, who lived in {town}, took the child on as a pupil at the age of {age}.",
                "At the age of {age} the child became a pupil of {teacher}, who lived in {town}.",
            ),
            ("We know of {count} {works}.", "In all, {count} {works} are known."),
        ),
        (
            (
                "A street in {born} bears the name and the year of birth, {year}.",
                "The year of birth, {year}, stands on a house in {born}.",
            ),
            (
                "All {count} {works} are now in {town}, beside those of {teacher}.",
                "The museum in {town} has all {count} {works}, and those of {teacher} as well.",
            ),
            (
                "The earliest was made at the age of {age}, in the very first month of lessons.",
                "The first month of lessons, at the age of {age}, gave us the earliest of them.",
            ),
        ),
    ),
    (
        Asked("In which town was {person} born?", "born", "text"),
        Asked("Who taught {person}?", "teacher", "text"),
        Asked("In which year was {person} born?", "year", "number"),
        Asked("How many {works} of {person} are known?", "count", "number"),
        Asked("At what age did {person} become a pupil?", "age", "number"),
    ),
)

KINDS: tuple[tuple[Callable[[np.random.Generator], dict[str, str]], Kind], ...] = (
    (_building_facts, _BUILDING),
    (_voyage_facts, _VOYAGE),
    (_meeting_facts, _MEETING),
    (_life_facts, _LIFE),
)
