"""How a preference model reads a question and an answer: its tokenizer and chat template.

Loads transformers, which takes seconds, so a run without a preference model does not import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError
from transformers import AutoTokenizer

from rewards.preference.preference import PreferenceInput, without_markers

SAMPLE = PreferenceInput(({"role": "user", "content": "What is 2+2?"},), "It is 4.")


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
        added = self.tokenizer.added_tokens_decoder.values()
        special = dict.fromkeys(token.content for token in added if token.special)
        # There is no room for a space inside a single character.
        self._markers = [marker for marker in special if len(marker) > 1]
        text = self.rendered(SAMPLE)
        for part in (SAMPLE.messages[0]["content"], SAMPLE.answer):
            if part not in text:
                raise ValueError(
                    f"the chat template of {path} leaves {part!r} out of a conversation that holds "
                    "it; take a model whose template renders questions and answers"
                )

    def messages(self, shown: PreferenceInput) -> Sequence[Mapping[str, Any]]:
        """The chat messages of a question with its answer."""
        return [*shown.messages, {"role": "assistant", "content": shown.answer}]

    def rendered(self, shown: PreferenceInput) -> str:
        """The exact text the model reads; raises ValueError for a question it cannot read."""
        contents = [message["content"] for message in shown.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        if shown.media or any(part.get("type") != "text" for part in parts):
            raise ValueError(
                "the preference model reads text only, got a question with images or videos; leave "
                "reward.preference out for such data"
            )
        shown = replace(shown, answer=without_markers(shown.answer, self._markers))
        messages = [dict(message) for message in self.messages(shown)]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **self.options)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the preference model's chat template refuses the messages: {error}"
            ) from error

    def token_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a rendered text, without any that a tokenizer puts around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
