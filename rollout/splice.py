"""Puts a reference answer in a sampled answer's place, at an exact token boundary.

Context and reference are tokenised apart and joined as tokens, so where one ends and the other
begins is known and not guessed. Sampled tokens are kept as they are as far as they reach, so the
context is in the engine's prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from rl.loop.stages import Prompt, ReferenceRequest, RolloutGroup
from rollout.chat import ChatTemplate


class Splice:
    def __init__(self, chat: ChatTemplate, max_length: int) -> None:
        """max_length: tokens of context and reference that an engine takes."""
        self._chat = chat
        self._max_length = max_length

    def after_reasoning(
        self, group: RolloutGroup, place: int, kept_text: str, reference: str
    ) -> ReferenceRequest | None:
        """The reference after the start `kept_text` of trajectory `place`; None if too long."""
        request = group.request
        response = group.trajectories[place].response_token_ids.tolist()
        text, moved = _move_space(kept_text)
        kept = self._tokens_within(response, text)
        rest = text.removeprefix(self._chat.raw_text(response[:kept]))
        context = (*request.prompt_token_ids, *response[:kept], *self._chat.token_ids(rest))
        return self._request(
            f"reference/{request.group_id}/{place}",
            request.prompt,
            context,
            moved + reference,
            request.temperature,
            group.engine,
        )

    def without_reasoning(
        self, prompt: Prompt, reference: str, temperature: float
    ) -> ReferenceRequest | None:
        """The reference right after the prompt, its think block empty; None if too long."""
        context = self._chat.prompt_token_ids(prompt, thinking=False)
        request_id = f"baseline/{prompt.id}"
        return self._request(request_id, prompt, context, reference, temperature, None)

    def _request(
        self,
        request_id: str,
        prompt: Prompt,
        context: tuple[int, ...],
        reference: str,
        temperature: float,
        engine: int | None,
    ) -> ReferenceRequest | None:
        tokens = self._chat.token_ids(reference)
        # A greedy engine reports log-probabilities at temperature 1.
        temperature = temperature or 1.0
        if not tokens or len(context) + len(tokens) > self._max_length:
            return None
        return ReferenceRequest(request_id, prompt, context, tokens, temperature, engine)

    def _tokens_within(self, response: Sequence[int], text: str) -> int:
        """How many sampled tokens, from the first, spell a start of `text`."""
        # Counted from the end: the halves that are decoded add up to one whole.
        num_left_out = len(self._chat.raw_text(response)) - len(text)
        low, high = 0, len(response)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._chat.raw_text(response[middle:])) >= num_left_out:
                low = middle
            else:
                high = middle - 1
        # A token that ends inside a character spells a replacement character until the next one.
        while not text.startswith(self._chat.raw_text(response[:low])):
            low -= 1
        return low


def _move_space(text: str) -> tuple[str, str]:
    """Take one closing space off the text: tokenizers write it with the word that follows."""
    return (text[:-1], " ") if text.endswith(" ") else (text, "")
