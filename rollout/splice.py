"""Puts a reference answer in place of a sampled answer, at an exact token boundary.

Context and reference are tokenised apart and joined as token ids. Joined as text, the last token of
one could merge with the first of the other, and which log-probabilities belong to the reference
would be a guess. Sampled tokens are kept as they were sampled as far as possible: tokenising their
text again may give others, and the engine's prefix cache then has nothing of the context.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rl.loop.stages import Prompt, ReferenceRequest, RolloutGroup
from rollout.chat import NO_VARIABLES, ChatTemplate


class Splice:
    def __init__(
        self, chat: ChatTemplate, max_length: int, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> None:
        """max_length: tokens of context and reference that an engine takes. variables: of the chat
        template, where there is no reasoning."""
        self._chat = chat
        self._max_length = max_length
        self._variables = variables

    def after_reasoning(
        self, group: RolloutGroup, index: int, kept_text: str, reference: str
    ) -> ReferenceRequest | None:
        """The reference after `kept_text`, with which trajectory `index` of the group begins.

        None if context and reference are too long for the engine.
        """
        request, trajectory = group.request, group.trajectories[index]
        response = trajectory.response_token_ids.tolist()
        # The text begins behind the choice, where there was one.
        num_chosen = trajectory.choice.num_tokens if trajectory.choice else 0
        asked, response = (*request.prompt_token_ids, *response[:num_chosen]), response[num_chosen:]
        # Tokenizers write a space with the word that follows it, so one closing space goes over to
        # the reference: a token of its own there is something no policy samples.
        moved = " " if kept_text.endswith(" ") else ""
        text = kept_text.removesuffix(" ")
        kept = self._tokens_within(response, text)
        # What is left of the text after the last whole token has to be tokenised after all.
        rest = text.removeprefix(self._chat.raw_text(response[:kept]))
        context = (*asked, *response[:kept], *self._chat.token_ids(rest))
        name, reference = f"reference/{request.group_id}/{index}", moved + reference
        spliced = self._request(name, request.prompt, context, reference, request.temperature)
        version = trajectory.versions[0]
        return spliced and dataclasses.replace(spliced, engine=group.engine, version=version)

    def without_reasoning(
        self, prompt: Prompt, reference: str, temperature: float
    ) -> ReferenceRequest | None:
        """The reference right after the prompt, with an empty think block; None if too long."""
        context = self._chat.prompt_token_ids(prompt, False, self._variables)
        request_id = f"baseline/{prompt.id}"
        return self._request(request_id, prompt, context, reference, temperature)

    def _request(
        self,
        request_id: str,
        prompt: Prompt,
        context: tuple[int, ...],
        reference: str,
        temperature: float,
    ) -> ReferenceRequest | None:
        # None and not a cut reference: a start of it would be another answer, and likelier.
        tokens = self._chat.token_ids(reference)
        # A greedy engine reports log-probabilities at temperature 1.
        temperature = temperature or 1.0
        if not tokens or len(context) + len(tokens) > self._max_length:
            return None
        return ReferenceRequest(request_id, prompt, context, tokens, temperature)

    def _tokens_within(self, response: Sequence[int], text: str) -> int:
        """How many sampled tokens, from the first, spell a start of `text`."""
        # Halved, because decoding each start of a long response takes time that grows with its
        # square. Counted from the end, so that what is decoded adds up to the response once.
        num_left_out = len(self._chat.raw_text(response)) - len(text)
        low, high = 0, len(response)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._chat.raw_text(response[middle:])) >= num_left_out:
                low = middle
            else:
                high = middle - 1
        # A token that ends inside a character decodes to a replacement character until the token
        # with the rest of it follows.
        while not text.startswith(self._chat.raw_text(response[:low])):
            low -= 1
        return low
