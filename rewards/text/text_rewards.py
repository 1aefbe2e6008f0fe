"""The parts of a reward that text decides: accuracy by rules, format, repetition, length, plug-ins.

What may hang or crash runs in killable workers (rewards/text/workers.py), the rest in place.
"""

import asyncio
from collections.abc import Mapping

from rewards.composition import Accuracy, TextParts
from rewards.rules.verifier import UNVERIFIABLE, NotScorable, verify_quickly
from rewards.text.format import format_reward, mode_leak
from rewards.text.plugins import call_plugin
from rewards.text.repetition import repetition_penalty
from rewards.text.verification import verify_slowly
from rewards.text.workers import SampleFailed, WorkerPool
from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.reward import RewardConfig
from rl.config.rollout import ModeConfig
from rl.loop.stages import Claimed, Prompt, RolloutGroup, Trajectory, not_scorable


class TextRewards:
    def __init__(
        self,
        config: RewardConfig,
        modes: Mapping[str, ModeConfig],
        tags: ThinkTags = THINK_TAGS,
    ) -> None:
        """tags: around the policy's reasoning."""
        self._config = config
        self._tags = tags
        self._modes = dict(modes)
        self._workers = WorkerPool(config.workers, config.timeout_s, config.memory_mib)

    async def parts(self, group: RolloutGroup, by_rules: bool) -> list[TextParts]:
        """One per trajectory, in order; by_rules: whether rules decide the accuracy."""
        return await asyncio.gather(*(self._parts(group, t, by_rules) for t in group.trajectories))

    async def _accuracy(self, prompt: Prompt, trajectory: Trajectory) -> Accuracy:
        is_finished = trajectory.finish_reason == "stop"
        # A response that was cut off has no final answer, though half of one may look right.
        answer = (trajectory.answer or "") if is_finished else ""
        # Rules read an answer from behind reasoning that leaked into it, by the usual tag.
        answer = answer.replace(self._tags.close, THINK_TAGS.close)
        asked = (prompt.reference, answer, prompt.task, question_text(prompt))
        route, workers = None, self._workers
        try:
            verdict = verify_quickly(*asked)
            route = verdict.route
            if verdict.accuracy is None:
                verdict = await workers.beside(verify_slowly, workers, verdict, *asked)
            # A count beside the parts, without a weight: such a response is wrong, not unscored.
            made_of = {"unverifiable": 1.0} if verdict.why.startswith(UNVERIFIABLE) else {}
            claimed = Claimed(verdict.claimed, verdict.how, verdict.why)
            return Accuracy(verdict.accuracy, route, made_of=made_of, claimed=claimed)
        except NotScorable as error:
            return Accuracy(None, route, not_scorable(error))
        except SampleFailed as failed:
            return Accuracy(None, route, failed.failure)

    async def _parts(
        self, group: RolloutGroup, trajectory: Trajectory, by_rules: bool
    ) -> TextParts:
        prompt, mode = group.request.prompt, group.request.mode
        accuracy = await self._accuracy(prompt, trajectory) if by_rules else None
        parts = self._form(trajectory, mode)
        failure = None
        try:
            parts |= await self._plugins(prompt, mode, trajectory)
        except NotScorable as error:
            failure = not_scorable(error)
        except SampleFailed as failed:
            failure = failed.failure
        return TextParts(parts, accuracy, failure)

    def _form(self, trajectory: Trajectory, mode: str) -> dict[str, float]:
        settings, repetition = self._modes[mode], self._config.repetition
        parts = {
            "format": format_reward(trajectory, settings.thinking, self._tags),
            "repetition": repetition_penalty(
                trajectory.text, repetition.form, repetition.words, repetition.times
            ),
            # Not part of the reward: the format reward already punishes it.
            "leak": float(mode_leak(trajectory, settings.thinking, self._tags)),
        }
        if window := self._config.overlong_window.get(mode):
            length = trajectory.num_response_tokens
            parts["overlong"] = overlong_penalty(length, settings.max_tokens, window)
        return parts

    async def _plugins(self, prompt: Prompt, mode: str, trajectory: Trajectory) -> dict[str, float]:
        """The user's own parts, by name."""
        asked = {
            "id": prompt.id,
            "messages": [dict(message) for message in prompt.messages],
            "reference": prompt.reference,
            "task": prompt.task,
        }
        said = (asked, mode, trajectory.answer, trajectory.reasoning)
        return {
            name: await self._workers.run(call_plugin, plugin.file, plugin.function, *said)
            for name, plugin in self._config.plugins.items()
        }

    def close(self) -> None:
        self._workers.close()


def question_text(prompt: Prompt) -> str:
    """The text of what the user asked last; choices and units are stated there."""
    asked = [message for message in prompt.messages if message["role"] == "user"]
    content = asked[-1]["content"] if asked else ""
    if isinstance(content, str):
        return content
    return "\n".join(piece["text"] for piece in content if piece.get("type") == "text")


def overlong_penalty(num_tokens: int, max_tokens: int, window: int) -> float:
    """Return DAPO's length penalty (https://arxiv.org/abs/2503.14476, eq. 13), lengths in tokens.

    0 up to max_tokens - window, from there down a line to -1 at max_tokens, and -1 above. Raises
    ValueError for a window that is not between 1 and max_tokens.

    Example: overlong_penalty(90, max_tokens=100, window=20) == -0.5
    """
    if not 0 < window <= max_tokens:
        raise ValueError(
            f"the overlong window must be between 1 and max_tokens {max_tokens}, got {window}"
        )
    return min(0.0, max(-1.0, (max_tokens - window - num_tokens) / window))
