"""Whose answers an evaluation asks for, and with which prompts; nothing heavy runs yet.

engine_sources.py has checkpoints and models, which are asked in engines of our own, and
endpoint_source.py has servers. Both load torch; this file does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl.evaluate.evaluation import Encode, Sampler
from rl.loop.interfaces import ReferenceScorer, Scorer
from rl.loop.stages import Prompt

if TYPE_CHECKING:
    from rollout.prompts.stream import PromptStream

Note = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """The running parts of a policy, or of a reference."""

    encode: Encode
    sampler: Sampler
    scorer: Scorer
    responses: ReferenceScorer | None = None
    """Says how probable responses are; None where nothing asked for that."""


@dataclass(frozen=True)
class Reference:
    """The model that a best-of compares the policy with, asked in the policy's own tokens."""

    name: str
    path: str
    weights: str
    """What tells it from any other."""
    open: Callable[[], AbstractAsyncContextManager[Session]]


@dataclass(frozen=True)
class Source:
    """A policy with the prompts for it: all of it checked, and nothing heavy running yet."""

    name: str
    """What its evaluations are called."""
    path: str
    """Directory, or URL."""
    policy: Mapping[str, Any]
    """What tells it from any other."""
    prompts: Sequence[Prompt]
    open: Callable[[], AbstractAsyncContextManager[Session]]
    reference: Reference | None = None
    """None where no best-of is asked for."""


def prompts_of(stream: PromptStream, split: str, count: int) -> list[Prompt]:
    """The first `count` prompts of a split, or all where there are fewer.

    Of the training prompts, those that training asks first, each once.
    """
    if split == "heldout":
        return stream.heldout(count)
    # A small data set comes round again within a few steps; a prompt that comes twice says that all
    # have been seen.
    asked: dict[str, Prompt] = {}
    for step in itertools.count():
        for prompt in stream.prompts(step):
            if len(asked) == count or prompt.id in asked:
                return list(asked.values())
            asked[prompt.id] = prompt
    raise AssertionError("steps do not end")
