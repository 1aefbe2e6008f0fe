"""Pages and reports as Jinja templates; each stands beside the module that fills it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

# Control characters but tab and newline, which HTML alters or cannot hold, become their pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def templates(directory: Path) -> jinja2.Environment:
    """Return the environment of the templates in a directory.

    What a template for HTML is given is escaped. The filter `table` writes a Markdown table.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(directory),
        # Not for Markdown: it would show "&lt;" wherever a code block or a name has "<".
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        # A misspelt name fails the tests, where Jinja's default would write nothing.
        undefined=jinja2.StrictUndefined,
        finalize=_encodable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["table"] = markdown_table
    return environment


def markdown_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return a Markdown table, whatever its values hold."""
    lines = [header, ["---"] * len(header), *rows]
    # A line break or a bar would end the cell.
    flat = ([" ".join(str(value).split()).replace("|", "\\|") for value in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in flat)


def _encodable(value: Any) -> Any:
    """Return a text that a template is given as UTF-8 and HTML can hold it."""
    # What a macro has made is markup already, and its texts have been here before.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return value.encode("utf-8", "replace").decode("utf-8").translate(_PICTURES)
