"""A rendered page of made-up text: transcribe it, or answer a question about one of its facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from rl.data.tasks.pictures.drawing import NOT_EMPTY, VisualExample, pick
from rl.data.tasks.pictures.pages import Page, PageSettings, draw_page, paint_page, text_of

Question = Literal["page", "title", "paragraph", "fact"]
ORDINALS = ("first", "second")


class DocumentsSettings(PageSettings):
    questions: Annotated[tuple[Question, ...], NOT_EMPTY] = ("page", "title", "paragraph", "fact")
    """Transcribe the page, its title or a paragraph; or answer about a fact."""


@dataclass(frozen=True)
class DocumentsScene:
    page: Page
    question: str
    answer: str
    task: str

    @property
    def identity(self) -> str:
        return self.page.identity


def draw(settings: DocumentsSettings, rng: np.random.Generator) -> DocumentsScene:
    # The page comes first: its draws must be those of every task that shows pages, or one task
    # would hold out what another trains on.
    page = draw_page(rng)
    return DocumentsScene(page, *_ask(pick(rng, settings.questions), page, rng))


def _ask(kind: str, page: Page, rng: np.random.Generator) -> tuple[str, str, str]:
    """Question, answer and route."""
    # A fact is asked for in words of its own, so that finding its sentence takes reading.
    if kind == "fact":
        question, fact, route = pick(rng, page.kind["questions"])
        return question.format(**page.facts), page.facts[fact], route
    if kind == "page":
        whole = "Transcribe the whole page, with its title. Answer with the text alone."
        return whole, page.text, "transcription"
    if kind == "title":
        title = "Transcribe the title of the page. Answer with the text alone."
        return title, text_of(page.title), "transcription"
    index = int(rng.integers(len(page.paragraphs)))
    paragraph = (
        f"Transcribe the {ORDINALS[index]} paragraph below the title. Answer with the text alone."
    )
    return paragraph, text_of(page.paragraphs[index]), "transcription"


def paint(
    scene: DocumentsScene, settings: DocumentsSettings, rng: np.random.Generator
) -> VisualExample:
    # Where the mentions stand matters to damaged pages only.
    image, _ = paint_page(scene.page, settings, rng)
    return VisualExample((image,), scene.question, scene.answer, scene.task)
