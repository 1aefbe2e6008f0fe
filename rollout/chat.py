"""Chat templates per mode: how a prompt is put to the policy, and how its text is taken apart.

A mode that reasons ends its prompt with an open think tag, so the sampled text has only the
closing one; a mode that answers at once ends it with an empty think block.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from rl.config.run import Config
from rl.data.media.families import unsampled_token_ids, vision_family
from rl.data.media.names import shortened
from rl.loop.stages import CLOSE_THINK, OPEN_THINK, Prompt
from rollout.prompts.stream import PromptStream

EMPTY_BLOCK = f"{OPEN_THINK}\n\n{CLOSE_THINK}\n\n"
SHOWN_IDS = 5


class ChatTemplate:
    def __init__(self, path: str) -> None:
        """Load the tokenizer of a model directory; raises ValueError if it has no chat template."""
        self._path = path
        self._model_type: str = _read_json(Path(path) / "config.json").get("model_type", "")
        self._family = vision_family(self._model_type)
        self.shows_media = self._family is not None
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {path} has no chat template; take an instruction-tuned model or "
                "put a chat_template.jinja into its directory"
            )
        # The tokens at which an engine stops: the tokenizer's own and the generation config's. Chat
        # models often end a turn with another token than the tokenizer's end of sequence.
        ends = _read_json(Path(path) / "generation_config.json").get("eos_token_id") or []
        self._end_tokens = {*(ends if isinstance(ends, list) else [ends])}
        self._end_tokens |= {self._tokenizer.eos_token_id} - {None}
        try:
            # Found out by asking: templates spell the switch in many ways, or have none.
            sample = [{"role": "user", "content": "2+2?"}]
            self._has_switch = self._apply(sample, True) != self._apply(sample, False)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {path} cannot be used: {error}") from error
        if not self.token_ids("2+2?"):
            raise ValueError(f"{path} has no usable tokenizer; add its tokenizer.json")

    def prompt_token_ids(self, prompt: Prompt, thinking: bool) -> tuple[int, ...]:
        """Return the prompt's tokens up to where sampling starts; ends as the module says.

        Each medium is one marker of its family. Raises ValueError if the template refuses the
        messages, and for markers that do not match the prompt's media.
        """
        text = self._render(prompt, thinking)
        if self._family is None:
            return self.token_ids(text)
        # Piece by piece, so that no marker's end is tokenised with the text that follows it: the
        # engine looks for the marker's own tokens.
        pieces = re.split(f"({'|'.join(map(re.escape, self._family.markers.values()))})", text)
        # The text comes from data, and one that writes a marker would claim a picture that is not
        # there, or shift all others by one. Splitting at a pattern with one group leaves texts at
        # even and markers at odd positions.
        kind_of = {marker: kind for kind, marker in self._family.markers.items()}
        written = [kind_of[marker] for marker in pieces[1::2]]
        if written != (shown := [medium.kind for medium in prompt.media]):
            raise ValueError(
                f"prompt {prompt.id} as the chat template writes it has markers for {written}, and "
                f"its media are {shown}; its messages need one image or video part for each, and "
                f"no text of theirs may write {' or '.join(kind_of)}"
            )
        if taken := [t for t in self._family.reserved if any(t in text for text in pieces[::2])]:
            raise ValueError(
                f"the text of prompt {prompt.id} must not write {', '.join(taken)}, which "
                f"{self._path} takes for parts of an image; escape or remove it"
            )
        return tuple(chain.from_iterable(map(self.token_ids, pieces)))

    @property
    def unsampled(self) -> tuple[int, ...]:
        """Token ids that no engine may sample: those that stand for media."""
        return unsampled_token_ids(self._model_type, self._tokenizer.get_vocab())

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text alone, without any that a model puts around it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def response_token_ids(self, text: str, is_ended: bool) -> tuple[int, ...]:
        """Return a response's text as tokens, with the end of sequence where it was sampled.

        They may be others than those that were sampled, of the same text.
        """
        return (*self.token_ids(text), *([self._tokenizer.eos_token_id] if is_ended else []))

    def length_above(self, prompt: Prompt, thinking: bool, limit: int) -> int | None:
        """Return the prompt's length in tokens where that is more than `limit`, else None.

        Quick for most prompts: a text has no more tokens than UTF-8 bytes, so one whose bytes
        fit need not be tokenised. Media count as their markers.
        """
        text = self._render(prompt, thinking)
        if not prompt.media and len(text.encode()) <= limit:
            return None
        length = len(self.prompt_token_ids(prompt, thinking))
        return length if length > limit else None

    def text(self, token_ids: Sequence[int]) -> str:
        """Return sampled tokens as text: special tokens kept, a final end-of-sequence dropped."""
        # Kept, because a policy that writes special tokens must be seen to write them: a reward
        # that never sees them cannot punish them.
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

    def _render(self, prompt: Prompt, thinking: bool) -> str:
        if prompt.media and not self.shows_media:
            raise ValueError(
                f"prompt {prompt.id} shows {len(prompt.media)} images or videos, and {self._path} "
                "reads text only; take a vision-language model, or data without media"
            )
        try:
            text = self._apply(prompt.messages, thinking)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the chat template of {self._path} refuses prompt {prompt.id}: {error}"
            ) from error
        # What the template leaves open is closed here, so that the sampled text starts the same
        # way for every model: inside the think block, or after an empty one.
        if thinking:
            if text.endswith(OPEN_THINK):
                return f"{text}\n"
            return text if text.endswith(f"{OPEN_THINK}\n") else f"{text}{OPEN_THINK}\n"
        if text.endswith((OPEN_THINK, f"{OPEN_THINK}\n")):
            return text.removesuffix("\n").removesuffix(OPEN_THINK) + EMPTY_BLOCK
        # A template with the switch knows how its model is told to answer at once, even if that is
        # without any think block.
        return text if self._has_switch or text.endswith(EMPTY_BLOCK) else text + EMPTY_BLOCK

    def _apply(self, messages: Sequence[Any], thinking: bool) -> str:
        family = self._family
        turns = [dict(message) for message in messages]
        if family is not None and not family.chat_takes_parts:
            # One text for each message, and a line for each part of it, as in the published chat of
            # MiniCPM-V.
            for turn in turns:
                if not isinstance(turn["content"], str):
                    turn["content"] = "\n".join(
                        part["text"] if part["type"] == "text" else family.markers[part["type"]]
                        for part in turn["content"]
                    )
        return self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )


def leave_out_oversized(
    config: Config,
    stream: PromptStream,
    chat: ChatTemplate,
    media_tokens: Callable[[Prompt], int],
) -> None:
    """Leave out prompts that leave too little room for their response in the engine.

    Looks at the held-out prompts and at every training prompt (a sample where they are endless),
    each in every mode in which it can be asked. media_tokens: what a prompt's media add to the
    tokens of their markers. Raises ValueError where `data.too_long` refuses them, where none would
    be left, and for a task without end.
    """
    limit = config.rollout.max_model_length

    def candidates() -> Iterator[tuple[Prompt, str | None]]:
        # Held-out prompts are asked in every mode, whatever they are pinned to; training prompts
        # only in the mode they are pinned to.
        yield from ((prompt, None) for prompt in stream.heldout(config.eval.prompts))
        yield from ((prompt, prompt.mode) for prompt in stream.checked())

    prompts = candidates()
    while True:
        too_long: dict[str, dict[str, int]] = defaultdict(dict)
        for prompt, pin in prompts:
            seen = media_tokens(prompt)
            for name in config.modes if pin is None else (pin,):
                mode = config.modes[name]
                length = chat.length_above(prompt, mode.thinking, limit - mode.max_tokens - seen)
                if length is not None:
                    too_long[name][prompt.id] = length + seen
        if not too_long:
            return
        reasons = {
            prompt_id: f"too_long: {length} prompt tokens + modes.{name}.max_tokens "
            f"{config.modes[name].max_tokens} > rollout.max_model_length {limit}"
            for name, lengths in too_long.items()
            for prompt_id, length in lengths.items()
        }
        try:
            if config.data.too_long == "refuse":
                raise ValueError("data.too_long=refuse")
            stream.leave_out(reasons)
        except ValueError as error:
            name, lengths = next(iter(too_long.items()))
            raise ValueError(
                f"{len(lengths)} prompts are too long for mode {name}: up to "
                f"{max(lengths.values())} prompt tokens + modes.{name}.max_tokens "
                f"{config.modes[name].max_tokens} > rollout.max_model_length {limit}; raise the "
                "last, lower the budget, or remove the prompts. The first ids: "
                f"{shortened(', '.join(list(lengths)[:SHOWN_IDS]), 200)} ({error})"
            ) from error
        # Others have taken the places of the held-out prompts that went.
        prompts = ((prompt, None) for prompt in stream.heldout(config.eval.prompts))


def _read_json(file: Path) -> dict[str, Any]:
    """Return a file of a model directory; empty where the directory has none."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
