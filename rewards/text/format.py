"""Format: does a response keep exactly what its mode's template promises?

A reasoning mode's prompt ends with an open think tag, so the sampled text has exactly one closing
tag, reasoning before it and an answer after it; a mode without reasoning has no think tag at all
(rollout/chat.py). In both the text ends by itself and holds no special token and no look-alike of
a think tag, which a reader would take for one. Where the policy chooses, a response is held to the
form of the kind that it chose, and one that strays from what stands in that kind's prompt to both.
"""

import re

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import Thinking
from rl.loop.stages import Trajectory, reasons

# Bounded gaps keep the search linear in the text.
_TAG = r"[<\[]\s{0,4}/?\s{0,4}think(?:ing)?(?:\s[^<>\[\]]{0,40})?\s{0,4}/?\s{0,4}[>\]]"
# <|im_end|> and its kin, also with the wide bars of some tokenizers.
_SPECIAL_TOKEN = re.compile(r"<[|｜][A-Za-z0-9_▁-]{3,40}[|｜]>")
_ENTITY = re.compile(r"&(?:(lt|#0{0,8}60|#x0{0,8}3c)|gt|#0{0,8}62|#x0{0,8}3e);?", re.IGNORECASE)
_SEEN_AS = str.maketrans(
    {chr(wide): chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
    | dict.fromkeys("‹〈⟨《【", "<")
    | dict.fromkeys("›〉⟩》】", ">")
    # Soft hyphens, zero-width spaces and joiners, marks of direction.
    | {chr(hidden): "" for hidden in [0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F)]}
    | {"\u2060": "", "\ufeff": ""}
)


def format_reward(
    trajectory: Trajectory, thinking: Thinking, tags: ThinkTags = THINK_TAGS
) -> float:
    """1.0 if nothing of the mode's form is violated, else 0.0."""
    return float(not violations(trajectory, thinking, tags))


def violations(
    trajectory: Trajectory, thinking: Thinking, tags: ThinkTags = THINK_TAGS
) -> tuple[str, ...]:
    """Return the names of what is broken, in this order; empty for a response in good form.

    `truncated` did not end by itself; `no_answer`; `special_token` inside the text; `spelled_tag`
    looks like a think tag and is none; `strayed` began a kind and did not go on as its prompt does.
    In a reasoning mode also `empty_reasoning`, `opening_tag` and `several_closings`; in one without
    reasoning `leak`, a think tag.
    """
    text = trajectory.text
    openings, closings = text.count(tags.open), text.count(tags.close)
    broken = {
        "truncated": trajectory.finish_reason != "stop",
        "no_answer": not (trajectory.answer or "").strip(),
        # The tags of some models are written as special tokens are.
        "special_token": bool({*_SPECIAL_TOKEN.findall(text)} - {tags.open, tags.close}),
        # A look-alike would let a response reason in the short mode without any tag that is
        # counted.
        "spelled_tag": _num_tags(text, tags) > openings + closings,
        "strayed": _has_strayed(trajectory),
    }
    if reasons(thinking, trajectory):
        broken |= {
            "empty_reasoning": not (trajectory.reasoning or "").strip(),
            "opening_tag": openings > 0,
            "several_closings": closings > 1,
        }
    else:
        broken["leak"] = openings + closings > 0
    return tuple(name for name, is_broken in broken.items() if is_broken)


def mode_leak(trajectory: Trajectory, thinking: Thinking, tags: ThinkTags = THINK_TAGS) -> bool:
    """Whether a response does what the other mode does, or never comes to an answer.

    In a mode without reasoning: any think tag, however spelled. In one with it: reasoning that is
    empty, or that was closed without an answer after it. A response cut off while reasoning is no
    leak. Of a mode that chooses also what strays from the kind that it began.
    """
    if _has_strayed(trajectory):
        return True
    if not reasons(thinking, trajectory):
        return _num_tags(trajectory.text, tags) > 0
    # Reasoning that never closed is a leak only if the response ended so by itself.
    if trajectory.answer is None:
        return trajectory.finish_reason == "stop"
    return not (trajectory.reasoning or "").strip() or not trajectory.answer.strip()


def _has_strayed(trajectory: Trajectory) -> bool:
    return trajectory.choice is not None and not trajectory.choice.is_kept


def _num_tags(text: str, tags: ThinkTags) -> int:
    """Count think tags as a reader sees them: entities, wide forms and hidden characters undone."""
    # The model's own tags first, since a spelling of the usual ones may be a part of them.
    own = [re.escape(tag.translate(_SEEN_AS)) for tag in (tags.open, tags.close)]
    pattern = "|".join([*own, _TAG])
    seen = _ENTITY.sub(lambda entity: "<" if entity[1] else ">", text).translate(_SEEN_AS)
    return len(re.findall(pattern, seen, re.IGNORECASE))
