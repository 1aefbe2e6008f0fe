"""What every visual task renders."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class VisualExample:
    """Example: VisualExample((picture,), "What is the sum of the digits?", "12", "number")"""

    images: tuple[Image.Image, ...]
    """RGB, in the order in which the question speaks of them."""
    question: str
    answer: str
    task: str
    """The accuracy route that compares an answer with `answer`."""
