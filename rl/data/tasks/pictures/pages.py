"""Pages of made-up text: transcribe one, or answer a question about one of its facts.

A page is a title and two paragraphs. Its kinds, with their sentences and facts, are in texts.yaml;
every fact is a field of the sentences' templates, and stated twice: what one place hides, another
tells. `paint_page` says where each mention stands in the picture, so that it can be damaged
(reconstruction.py) and still be inferred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple, get_args

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, model_validator

from rl.config.section import Section
from rl.data.tasks.pictures.drawing import (
    FONT_FAMILIES,
    NOT_EMPTY,
    TEXTS,
    WORDS,
    Draws,
    Scene,
    VisualExample,
    font,
    within,
)

Question = Literal["page", "title", "paragraph", "fact"]
ORDINALS = ("first", "second")
TRANSCRIBE = "Transcribe the {}. Answer with the text alone."
INK, PAPER = "#141414", "#fdfdfb"
LETTERS_PER_LINE = 14
"""Fewest font sizes across a page; on a narrower one the longest word has no room."""


class PageSettings(Section):
    width: int = Field(default=448, ge=320, le=1600)
    """Pixels; the height follows from the text."""
    letters: Annotated[tuple[int, int], within(12, 32)] = (15, 18)
    """Size of the font in pixels."""

    @model_validator(mode="after")
    def _require_room_for_words(self) -> PageSettings:
        if self.width < LETTERS_PER_LINE * self.letters[1]:
            raise ValueError(
                f"letters of {self.letters[1]} pixels need a width of {LETTERS_PER_LINE} times as "
                f"much, {LETTERS_PER_LINE * self.letters[1]}, got width={self.width}; raise it or "
                "lower letters"
            )
        return self


class Fragment(NamedTuple):
    """Part of a word that is drawn in one go, such as the name in "Velden,"."""

    text: str
    mention: int | None
    """Which mention of a fact it belongs to, counted over the page; None for plain text."""


Word = tuple[Fragment, ...]


@dataclass(frozen=True)
class Page:
    kind: Mapping[str, Any]
    """As texts.yaml explains it."""
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
        """The same for every task that shows the page: none trains on what another holds out."""
        return f"page {self.text}"


class Line(NamedTuple):
    """One line of a picture; boxes are (left, top, right, bottom) in pixels."""

    text: str
    box: tuple[int, int, int, int]
    mentions: Mapping[int, tuple[int, int, int, int]]
    """The boxes of the mentions that are whole on this line."""


def text_of(words: tuple[Word, ...]) -> str:
    return " ".join("".join(fragment.text for fragment in word) for word in words)


def draw_page(rng: Draws) -> Page:
    kind = rng.pick(TEXTS["kinds"])
    facts = draw_facts(kind["facts"], rng)
    mentions: list[str] = []
    # Facts before wordings: all that a page states is known before a sentence is chosen.
    title = _words(kind["title"], facts, mentions)
    paragraphs = []
    for sentences in kind["paragraphs"]:
        wordings = [rng.pick(sentence.splitlines()) for sentence in sentences]
        paragraphs.append(_words(" ".join(wordings), facts, mentions))
    return Page(kind, facts, title, tuple(paragraphs), tuple(mentions))


def draw_facts(draws: Mapping[str, str], rng: Draws) -> dict[str, str]:
    """Return the facts of a page by name; draws: as texts.yaml explains them."""
    facts: dict[str, str] = {}
    for names, draw in draws.items():
        several = names.split(", ")
        match draw.split():
            case ["pick", words] if len(several) == 1:
                values = [rng.pick(WORDS[words])]
            case ["pick", words]:
                values = rng.several(WORDS[words], len(several))
            case ["people"]:
                # No two of them have a name in common, so that each name tells who is meant.
                first = rng.several(WORDS["first_names"], len(several))
                last = rng.several(WORDS["last_names"], len(several))
                values = [" ".join(pair) for pair in zip(first, last, strict=True)]
            case ["date"]:
                day, month = rng.integers(1, 29), rng.pick(WORDS["months"])
                values = [f"{day} {month} {rng.integers(1820, 1996)}"]
            case ["whole", low, high]:
                values = [str(rng.whole((int(low), int(high))))]
            case ["hundreds", low, high]:
                values = [str(100 * rng.whole((int(low), int(high))))]
            case ["works", "of", fact]:
                values = [WORDS["works"][facts[fact]]]
            case _:
                raise ValueError(f"texts.yaml has no draw {draw!r}; its comment lists them")
        facts |= zip(several, values, strict=True)
    return facts


def _words(template: str, facts: Mapping[str, str], mentions: list[str]) -> tuple[Word, ...]:
    """Return the words of a filled template; adds the fact of every mention to `mentions`."""
    words: list[list[Fragment]] = [[]]
    for literal, name, _, _ in Formatter().parse(template):
        texts: list[tuple[str, int | None]] = [(literal, None)]
        if name is not None:
            texts.append((facts[name], len(mentions)))
            mentions.append(name)
        for text, mention in texts:
            # A word begins after each space, so "{town}," is one word of two fragments.
            for index, piece in enumerate(text.split(" ")):
                if index:
                    words.append([])
                if piece:
                    words[-1].append(Fragment(piece, mention))
    return tuple(tuple(word) for word in words if word)


def paint_page(page: Page, settings: PageSettings, rng: Draws) -> tuple[Image.Image, list[Line]]:
    """Return the picture and its lines, the title's first."""
    size, family = rng.whole(settings.letters), rng.pick(FONT_FAMILIES)
    # Letters of one width are the widest.
    size -= 2 if family.endswith("Mono") else 0
    margin = top = size * 3 // 2
    placed: list[tuple[list[Word], ImageFont.FreeTypeFont, int]] = []
    for text in (page.title, *page.paragraphs):
        is_title = text is page.title
        letters = font(family, size + 3 * is_title, is_title)
        for line in _wrap(text, letters, settings.width - size * 3):
            placed.append((line, letters, top))
            top += round(size * (1.85 if is_title else 1.6))
        top += round(size * 0.6)
    # The height follows from the text, so all is measured before anything is drawn.
    image = Image.new("RGB", (settings.width, top + margin - size // 2), PAPER)
    canvas, lines = ImageDraw.Draw(image), []
    for line, letters, top in placed:
        x, bottom, boxes = margin, top + sum(letters.getmetrics()), {}
        # Fragment by fragment, since only then the box of a mention within a word is known.
        for index, word in enumerate(line):
            x += round(letters.getlength(" ")) if index else 0
            for fragment in word:
                canvas.text((x, top), fragment.text, INK, letters)
                begin, x = x, x + round(letters.getlength(fragment.text))
                if fragment.mention is not None:
                    # A fact of several words, such as a name, has one box around all of them.
                    begin = boxes[fragment.mention][0] if fragment.mention in boxes else begin
                    boxes[fragment.mention] = (begin, top, x, bottom)
        lines.append((text_of(tuple(line)), (margin, top, x, bottom), boxes))
    # A mention that is wrapped has a box on two lines; to damage one of them would hide half of it.
    counts = Counter(mention for _, _, boxes in lines for mention in boxes)
    return image, [
        Line(text, box, {mention: b for mention, b in boxes.items() if counts[mention] == 1})
        for text, box, boxes in lines
    ]


def _wrap(
    text: tuple[Word, ...], letters: ImageFont.FreeTypeFont, room: int
) -> Iterator[list[Word]]:
    """Yield lines of at most `room` pixels, as long as no single word is wider."""
    line: list[Word] = []
    for word in text:
        if line and letters.getlength(text_of((*line, word))) > room:
            yield line
            line = []
        line.append(word)
    yield line


class DocumentsSettings(PageSettings):
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = get_args(Question)
    """Transcribe the page, its title or a paragraph; or answer about a fact."""


@dataclass(frozen=True)
class DocumentsScene(Scene):
    page: Page


def draw(settings: DocumentsSettings, rng: Draws) -> DocumentsScene:
    # The page comes first: its draws must be those of every task that shows pages, or one task
    # would hold out what another trains on.
    page = draw_page(rng)
    asked, route = rng.pick(settings.questions), "transcription"
    if asked == "fact":
        # In words of its own, so that finding the fact's sentence takes reading.
        question, fact, route = rng.pick(page.kind["questions"])
        question, answer = question.format(**page.facts), page.facts[fact]
    elif asked == "paragraph":
        index = int(rng.integers(len(page.paragraphs)))
        question = TRANSCRIBE.format(f"{ORDINALS[index]} paragraph below the title")
        answer = text_of(page.paragraphs[index])
    elif asked == "title":
        question, answer = TRANSCRIBE.format("title of the page"), text_of(page.title)
    else:
        question, answer = TRANSCRIBE.format("whole page, with its title"), page.text
    return DocumentsScene(page.identity, question, answer, route, page)


def paint(scene: DocumentsScene, settings: DocumentsSettings, rng: Draws) -> VisualExample:
    # Where the mentions stand matters to damaged pages only.
    image, _ = paint_page(scene.page, settings, rng)
    return VisualExample((image,), scene.question, scene.answer, scene.task)
