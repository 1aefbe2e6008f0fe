"""Chat templates per mode: how a prompt is put to the policy, and how its text is taken apart.

A mode that reasons ends its prompt with an open think tag, so the sampled text has only the
closing one; a mode that answers at once ends it with an empty think block.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rl.config import Config
from rl.stages import Prompt
from rollout.prompts import PromptStream

OPEN, CLOSE = "<think>", "</think>"
EMPTY_BLOCK = f"{OPEN}\n\n{CLOSE}\n\n"
SHOWN_IDS = 5


def split_response(text: str, thinking: bool) -> tuple[str | None, str | None]:
    """Return (reasoning, answer) of a sampled text, with their white space.

    Without thinking all of it is the answer. With it, what stands before the first closing tag is
    the reasoning; a text that never closes it has no answer.
    """
    if not thinking:
        return None, text
    reasoning, closed, answer = text.partition(CLOSE)
    return reasoning, answer if closed else None


class ChatTemplate:
    def __init__(self, path: str) -> None:
        """Load the tokenizer of a model directory; raises ValueError if it has no chat template."""
        from transformers import AutoTokenizer

        self._path = path
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {path} has no chat template; take an instruction-tuned model or "
                "put a chat_template.jinja into its directory"
            )
        self._end_tokens = _end_tokens(Path(path), self._tokenizer)
        try:
            self._has_switch = self._detect_switch()
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {path} cannot be used: {error}") from error
        if not self.token_ids("2+2?"):
            raise ValueError(f"{path} has no usable tokenizer; add its tokenizer.json")

    def prompt_token_ids(self, prompt: Prompt, thinking: bool) -> tuple[int, ...]:
        """Return the prompt's tokens up to where sampling starts; ends as the module says.

        Raises ValueError if the template refuses the messages.
        """
        return self.token_ids(self._render(prompt, thinking))

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone, without any that a model puts around it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def length_above(self, prompt: Prompt, thinking: bool, limit: int) -> int | None:
        """Return the prompt's length in tokens where that is more than `limit`, else None.

        Quick for most prompts: a text has no more tokens than UTF-8 bytes, so one whose bytes
        fit need not be tokenised.
        """
        text = self._render(prompt, thinking)
        if len(text.encode()) <= limit:
            return None
        length = len(self.token_ids(text))
        return length if length > limit else None

    def text(self, token_ids: Sequence[int]) -> str:
        """Return sampled tokens as text: special tokens kept, a final end-of-sequence dropped."""
        ids = [int(token) for token in token_ids]
        if ids and ids[-1] in self._end_tokens:
            ids.pop()
        return self.raw_text(ids)

    def raw_text(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, every one of them kept."""
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def require_switch(self, thinking: Iterable[bool]) -> None:
        """Raise ValueError if modes differ in thinking but the template cannot tell them apart."""
        if len(set(thinking)) == 2 and not self._has_switch:
            raise ValueError(
                f"the chat template of {self._path} answers the same with enable_thinking true and "
                "false, so it cannot ask for both kinds of modes; take a model whose template has "
                "that switch (Qwen3, MiniCPM), or add it to its chat_template.jinja"
            )

    def _detect_switch(self) -> bool:
        sample = [{"role": "user", "content": "2+2?"}]
        asked = [self._apply(sample, thinking) for thinking in (True, False)]
        return asked[0] != asked[1]

    def _render(self, prompt: Prompt, thinking: bool) -> str:
        try:
            text = self._apply(prompt.messages, thinking)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the chat template of {self._path} refuses prompt {prompt.id}: {error}"
            ) from error
        if thinking:
            if text.endswith(OPEN):
                return f"{text}\n"
            return text if text.endswith(f"{OPEN}\n") else f"{text}{OPEN}\n"
        if text.endswith((OPEN, f"{OPEN}\n")):
            return text.removesuffix("\n").removesuffix(OPEN) + EMPTY_BLOCK
        # A template with the switch knows how its model is told to answer at once.
        return text if self._has_switch or text.endswith(EMPTY_BLOCK) else text + EMPTY_BLOCK

    def _apply(self, messages: Sequence[Any], thinking: bool) -> str:
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )


def refuse_oversized(config: Config, stream: PromptStream, chat: ChatTemplate) -> None:
    """Raise ValueError if a prompt leaves too little room for its response in the engine.

    Looks at the held-out prompts and at every training prompt (a sample where they are endless),
    each in every mode in which it can be asked.
    """
    limit = config.rollout.max_model_length
    too_long: dict[str, dict[str, int]] = defaultdict(dict)
    # Held-out prompts are asked in every mode, training prompts only in the one they are pinned to.
    asked = [(prompt, None) for prompt in stream.heldout(config.eval.prompts)]
    for prompt, pin in chain(asked, ((prompt, prompt.mode) for prompt in stream.checked())):
        for name in config.modes if pin is None else (pin,):
            mode = config.modes[name]
            length = chat.length_above(prompt, mode.thinking, limit - mode.max_tokens)
            if length is not None:
                too_long[name][prompt.id] = length
    for name, lengths in too_long.items():
        raise ValueError(
            f"{len(lengths)} prompts are too long for mode {name}: up to "
            f"{max(lengths.values())} prompt tokens + modes.{name}.max_tokens "
            f"{config.modes[name].max_tokens} > rollout.max_model_length {limit}; raise the last, "
            "lower the budget, or remove the prompts. The first ids: "
            f"{', '.join(list(lengths)[:SHOWN_IDS])}"
        )


def _end_tokens(path: Path, tokenizer: Any) -> set[int]:
    """The tokens at which an engine stops: the tokenizer's own and the generation config's."""
    ends = {tokenizer.eos_token_id} - {None}
    generation_config = path / "generation_config.json"
    if generation_config.is_file():
        try:
            listed = json.loads(generation_config.read_text()).get("eos_token_id") or []
        except json.JSONDecodeError as error:
            raise ValueError(f"{generation_config} is not JSON: {error}") from error
        ends |= set(listed if isinstance(listed, list) else [listed])
    return ends
