"""Chat messages, and a hash that tells questions apart in every process alike."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any


def conversation(question: str, system_prompt: str | None) -> tuple[Mapping[str, Any], ...]:
    """Return the chat messages of a question given as text."""
    asked = {"role": "user", "content": question}
    return (asked,) if system_prompt is None else (system_message(system_prompt), asked)


def system_message(text: str) -> Mapping[str, Any]:
    return {"role": "system", "content": text}


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process, unlike Python's own hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
