"""What a preference model sees, and how its scores become a reward part.

The question and the final answer, never the reasoning: the request type has no field for it
(https://arxiv.org/abs/2509.18154, section 2.4.4). Whoever wants to see what comes of the opposite
asks for a type of its own, WholeResponse. Loads without torch and without Ray.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.data.media.names import Medium
from rl.loop.advantages import group_advantages, has_zero_variance
from rl.loop.stages import Prompt, Trajectory


@dataclass(frozen=True)
class PreferenceInput:
    """One question with one final answer.

    Example: PreferenceInput(({"role": "user", "content": "a2b9?"},), "11")
    """

    messages: tuple[Mapping[str, Any], ...]
    """The question as chat messages."""
    answer: str
    """Without white space around it; never empty."""
    media: tuple[Medium, ...] = ()


class WholeResponse(PreferenceInput):
    """One question with all of a response, where reward.preference.reads=response asks for it.

    `answer` then holds the reasoning, too, with its tags: what the paper warns of.
    """


class PreferenceModel(Protocol):
    """Says how much it likes each answer; only differences between answers mean something."""

    async def score(self, inputs: Sequence[PreferenceInput]) -> tuple[float | None, ...]:
        """One score per input, in order; None for an input longer than the model can read.

        Equal inputs of a call get equal scores. Raises RuntimeError if the model is gone for good,
        and ValueError for a question that it cannot read, such as one with an image where it reads
        text only, or whose image is gone.
        """
        ...


def preference_input(
    prompt: Prompt, trajectory: Trajectory, tags: ThinkTags = THINK_TAGS
) -> PreferenceInput | None:
    """Return what a preference model may see of a trajectory, or None if it has no answer."""
    answer = final_answer(trajectory.answer, trajectory.finish_reason, tags)
    return PreferenceInput(prompt.messages, answer, prompt.media) if answer else None


def whole_response(
    prompt: Prompt, trajectory: Trajectory, tags: ThinkTags = THINK_TAGS
) -> WholeResponse | None:
    """Return all that a trajectory says, or None if it has no answer.

    So the same trajectories are scored as by their answers, and what differs is what is read.
    """
    if final_answer(trajectory.answer, trajectory.finish_reason, tags) is None:
        return None
    # The prompt of a mode that reasons ends with the opening tag, so the sampled text has none.
    opening = "" if trajectory.reasoning is None else f"{tags.open}\n"
    return WholeResponse(prompt.messages, opening + trajectory.text.strip(), prompt.media)


def final_answer(
    answer: str | None, finish_reason: str | None, tags: ThinkTags = THINK_TAGS
) -> str | None:
    """Return what a response says at its end, without white space around it.

    answer: what stands after its reasoning. It says nothing where the reasoning never ended, where
    the token budget cut it off, and where the answer is empty. Reasoning that leaks into the answer
    is left out of it.
    """
    if answer is None or finish_reason != "stop":
        return None
    return answer.rpartition(tags.close)[2].partition(tags.open)[0].strip() or None


def group_preferences(raw: Sequence[float | None]) -> list[float]:
    """Return the raw scores of a group as z-scores (https://arxiv.org/abs/2509.18154, eq. 1).

    Mean and sample deviation are those of the answers that have a score; without a spread all
    are 0. A trajectory without a score gets the lowest z of its group, and never more than 0, so
    that not answering cannot be the better choice.

    Example: group_preferences([3.0, 1.0, None]) is [0.7071, -0.7071, -0.7071], rounded
    """
    # All alike, or fewer than two scores: nothing is preferred, and a tiny spread must not be blown
    # up.
    if has_zero_variance(raw):
        return [0.0] * len(raw)
    z = group_advantages(raw, normalize_by_std=True)
    # Not 0, which is the mean of the group: a policy could then win by answering nothing whenever
    # it expects a bad answer.
    lowest = min(score for score in z if score is not None)
    return [lowest if score is None else score for score in z]


def without_markers(answer: str, markers: Iterable[str]) -> str:
    """Return the answer with a space inside each marker, so that it is read as plain text.

    markers: the special tokens of a model's tokenizer. An answer could write them to end its own
    turn and speak for the user or for the judge.

    Example: without_markers("7<eos>", ["<eos>"]) == "7< eos>"
    """
    for marker in markers:
        answer = answer.replace(marker, f"{marker[:1]} {marker[1:]}")
    return answer
