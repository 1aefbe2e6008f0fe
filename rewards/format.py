"""Format: does a response keep exactly what its mode's template promises?

A reasoning mode's prompt ends with an open think tag, so the sampled text closes it once and
answers; a mode without reasoning has no think tag at all (rollout/chat.py).
"""

from __future__ import annotations

import re

from rl.stages import Trajectory

_TAG = re.compile(r"<\s*/?\s*think(?:ing)?\s*>", re.IGNORECASE)
CLOSE = "</think>"


def format_reward(trajectory: Trajectory, thinking: bool) -> float:
    """1.0 if the response ends by itself in its mode's form, else 0.0."""
    if trajectory.finish_reason != "stop" or not (trajectory.answer or "").strip():
        return 0.0
    tags = _TAG.findall(trajectory.text)
    if not thinking:
        return float(not tags)
    return float(tags == [CLOSE] and bool((trajectory.reasoning or "").strip()))


def mode_leak(trajectory: Trajectory, thinking: bool) -> bool:
    """Whether a response does what the other mode does, or never comes to an answer.

    In a mode without reasoning: any think tag. In one with it: reasoning that is empty, or that
    was closed without an answer after it. A response cut off while reasoning is no leak.
    """
    if not thinking:
        return bool(_TAG.search(trajectory.text))
    if trajectory.answer is None:
        return trajectory.finish_reason == "stop"
    return not (trajectory.reasoning or "").strip() or not trajectory.answer.strip()
