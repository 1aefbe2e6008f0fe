"""Chat messages of a question given as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def conversation(question: str, system_prompt: str | None) -> tuple[Mapping[str, Any], ...]:
    """Return the chat messages of a question given as text."""
    asked = {"role": "user", "content": question}
    return (asked,) if system_prompt is None else (system_message(system_prompt), asked)


def system_message(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}
