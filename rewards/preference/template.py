"""How a preference model reads a question and an answer: its tokenizer and chat template.

Loads transformers, which takes seconds, so a run without a preference model does not import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jinja2 import TemplateError
from transformers import AutoTokenizer

from rewards.preference.preference import PreferenceInput, without_markers
from rl.data.media.families import vision_family
from rl.data.media.names import Medium
from rl.run.files import read_json

SAMPLE = PreferenceInput(({"role": "user", "content": "What is 2+2?"},), "It is 4.")


class Reading(NamedTuple):
    """What a model reads of a question and an answer."""

    text: str
    """With a marker of the model's family in the place of each medium."""
    media: tuple[Medium, ...] = ()


class AnswerTemplate:
    """Writes the text that a reward model reads: the conversation with the answer at its end."""

    options: ClassVar[Mapping[str, Any]] = {"add_generation_prompt": False}
    """What the chat template is given beside the messages."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a directory without a usable tokenizer and chat template."""
        if not (path / "config.json").is_file():
            raise ValueError(
                f"the preference model must be a Hugging Face model directory, got {path} without "
                "a config.json; name the directory that holds config.json and the weights"
            )
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the preference model {path} has no usable tokenizer: {error}"
            ) from error
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of the preference model {path} has no chat template; put a "
                "chat_template.jinja into its directory"
            )
        self._family = vision_family(read_json(path / "config.json").get("model_type", ""))
        self.shows_media = self._family is not None
        added = self.tokenizer.added_tokens_decoder.values()
        special = dict.fromkeys(token.content for token in added if token.special)
        # There is no room for a space inside a single character.
        self._markers = [marker for marker in special if len(marker) > 1]
        text = self.rendered(SAMPLE).text
        for part in (SAMPLE.messages[0]["content"], SAMPLE.answer):
            if part not in text:
                raise ValueError(
                    f"the chat template of {path} leaves {part!r} out of a conversation that holds "
                    "it; take a model whose template renders questions and answers"
                )

    def messages(self, shown: PreferenceInput) -> Sequence[Mapping[str, Any]]:
        """The chat messages of a question with its answer."""
        return [*shown.messages, {"role": "assistant", "content": shown.answer}]

    def rendered(self, shown: PreferenceInput) -> Reading:
        """What the model reads, exactly; raises ValueError for a question it cannot read."""
        family = self._family
        contents = [message["content"] for message in shown.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        if family is None and (shown.media or any(part.get("type") != "text" for part in parts)):
            raise ValueError(
                "the preference model reads text only, got a question with images or videos; name "
                "one that sees them as reward.preference.model, or set reward.preference=null"
            )
        shown = replace(shown, answer=without_markers(shown.answer, self._markers))
        messages = [dict(message) for message in self.messages(shown)]
        if family is not None:
            # A text that writes a marker would claim a picture that is not there.
            taken = (*family.markers.values(), *family.reserved)
            for message in messages:
                message["content"] = _plain(message["content"], taken)
            messages = family.messages(messages)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self.options)
            return Reading(text, shown.media)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the preference model's chat template refuses the messages: {error}"
            ) from error

    def pieces(self, text: str) -> list[str]:
        """A rendered text cut at its markers, which stand at the odd places."""
        return [text] if self._family is None else self._family.pieces(text)

    def token_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a rendered text, without any that a tokenizer puts around it."""
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        pieces = (self.tokenizer(piece, **options)["input_ids"] for piece in self.pieces(text))
        return tuple(chain.from_iterable(pieces))


def _plain(content: Any, markers: Sequence[str]) -> Any:
    """The content of a message, whose texts write none of these."""
    if isinstance(content, str):
        return without_markers(content, markers)
    return [
        part | {"text": without_markers(part["text"], markers)} if part["type"] == "text" else part
        for part in content
    ]
