"""Reference answers as users have them in their tables, and as text, which is what prompts
carry."""

import json
from typing import Any

ANY_OF = "any_of"


def reference_text(value: Any) -> str:
    """Return a reference answer as text.

    Text, numbers and truth values are themselves; a list holds accepted answers, any one of which
    is right. Raises ValueError for anything else, such as a struct.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        texts = [reference_text(one) for one in value if not isinstance(one, list | tuple)]
        if len(texts) == len(value) > 0:
            return texts[0] if len(texts) == 1 else json.dumps({ANY_OF: texts}, ensure_ascii=False)
    raise ValueError(
        f"a reference must be text, a number or a list of accepted answers, got "
        f"{str(value)[:80]!r}; "
        "name the column, or the field of the struct, that holds the answer"
    )


def accepted_answers(reference: str) -> list[str]:
    """Return the accepted answers of a reference that `reference_text` made; itself, if it is
    one."""
    if not reference.startswith('{"any_of":'):
        return [reference]
    return json.loads(reference)[ANY_OF]
