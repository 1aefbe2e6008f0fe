"""A row's question and answer as chat messages: what is asked, and what the answer is held against.

Messages as data sets store them go in, messages as chat templates take them come out. Their media
stay in the parts of the content (rl.data.cells.parts_of) until row_media.py places them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from rl.data.cells import messages_in, parts_of

Message = Mapping[str, Any]
Messages = tuple[Message, ...]


def conversation(question: str, system_prompt: str | None) -> Messages:
    """Return the chat messages of a question given as text."""
    asked = {"role": "user", "content": question}
    return (asked,) if system_prompt is None else (system_message(system_prompt), asked)


def system_message(text: str) -> Message:
    return {"role": "system", "content": text}


@dataclass(frozen=True)
class Question:
    """What a cell asks."""

    messages: Messages
    """Up to the user's last turn; none where the cell is empty."""
    answer: str | None
    """The assistant's last turn, where the cell has one."""


def read_question(cell: Any, must_be_messages: bool) -> Question:
    """Return what a cell asks: a text, or messages without the answer that they end with.

    Raises ValueError, which says what rows with such a cell have.
    """
    messages = messages_in(cell)
    if messages is None:
        if must_be_messages and cell not in (None, "", [], {}):
            raise ValueError(
                "without a list of messages with role and content, or from and value, got "
                f"{cell!r:.120}"
            )
        if isinstance(cell, list | dict | bytes) and cell:
            raise ValueError(
                f"that hold neither text nor messages, got {cell!r:.120}; name a column of text, "
                "or the field of a struct, as in prompt.text"
            )
        text = "" if cell in (None, [], {}) else str(cell)
        return Question(conversation(text, None) if text.strip() else (), None)
    answer = None
    # Rows for fine-tuning end with the answer, which must not stand in the prompt.
    while messages and messages[-1]["role"] == "assistant":
        last = messages.pop()
        answer = text_of(last) if answer is None else answer
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(
            "whose messages do not end with the user, or with the user and the assistant's answer; "
            "cut them after the question"
        )
    is_empty = not any(part.get("text") != "" for part in parts_of(messages[-1]["content"]))
    return Question(() if is_empty else tuple(messages), answer)


def without_answer(cell: Any) -> Any:
    """A cell as it is, or its messages up to the question where an answer stands behind it."""
    messages = messages_in(cell)
    if not messages or messages[-1]["role"] != "assistant":
        return cell
    last = max((n for n, m in enumerate(messages) if m["role"] != "assistant"), default=-1)
    return messages[: last + 1]


def brings_parts(cell: Any) -> bool:
    """Whether a cell holds messages with content parts, which may bring media."""
    is_text = isinstance(cell, str) and not cell.lstrip().startswith("[")
    messages = None if is_text else messages_in(cell)
    return any(isinstance(message["content"], list) for message in messages or ())


def text_of(message: Message) -> str:
    """A message's text, with <image> or <video> where it shows one."""
    parts = parts_of(message["content"])
    return "".join(part.get("text", f"<{part['type']}>") for part in parts)


class Template:
    """Puts a recipe's words around a question: `data.template`."""

    def __init__(self, source: str, columns: Iterable[str], reference: str | None) -> None:
        """columns: of the data set. Raises ValueError for a template that cannot be filled."""
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        try:
            names = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"data.template is no Jinja template: {error}") from error
        columns = list(columns)
        unknown = sorted(names - {"question", *columns})
        if unknown or not names:
            raise ValueError(
                f"data.template must write {{{{question}}}} or {{{{COLUMN}}}}, got "
                f"{', '.join(unknown) or 'neither'}; the columns are {', '.join(columns)}"
            )
        # Of a struct only the name of the whole is among the names.
        is_field = reference is not None and "." in reference and reference in source
        if reference in names - {"question"} or is_field:
            raise ValueError(
                f"data.template would show {{{{{reference}}}}}, the reference answer; leave it out"
            )
        self.columns = sorted(names & set(columns))
        """Whose cells it writes."""

    def fill(self, messages: Messages, cells: Mapping[str, Any]) -> Messages:
        """Return the messages with the last one's text filled in; raises ValueError.

        cells: of the columns that it writes.
        """
        *before, last = messages
        shown = {name: "" if cell is None else cell for name, cell in cells.items()}
        content = last["content"]
        # Parts keep their places: the words around them go in front and behind.
        question = content if isinstance(content, str) else _MARK
        try:
            text = self._template.render({**shown, "question": question})
        # What an expression in it raises for a cell that it is not made for.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(f"data.template cannot be filled: {error}") from error
        if question is _MARK:
            pieces = text.split(_MARK)
            parts = list(content)
            text = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
            for piece in pieces[1:]:
                text += parts
                text += [{"type": "text", "text": piece}] if piece else []
        return (*before, {**last, "content": text})


# No data set writes it: a code point that Unicode keeps free for such uses.
_MARK = "\ufdd0"
