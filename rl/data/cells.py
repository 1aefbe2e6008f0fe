"""What the cells of a table hold, whoever wrote it: plain values, messages, media.

A cell is read as it is meant, or refused with a ValueError; nothing passes as the text of a Python
value.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from math import isnan
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlparse
from urllib.request import url2pathname

import numpy as np

from rl.data.media.names import MediaError, MediumKind

# Values.


def plain(value: Any, feature: Any) -> Any:
    """Return a cell in the types of JSON: NaN is None, a class its name, a day without a time.

    feature: what the `datasets` library noted of the column, such as the names of its classes; None
    or anything else where it noted nothing.
    """
    noted = feature if isinstance(feature, dict) else {}
    match value:
        case int() if noted.get("_type") == "ClassLabel":
            # -1 stands for a row without a label.
            value = noted["names"][value] if value >= 0 else None
        case str() if noted.get("_type") == "Json":
            value = plain(json.loads(value), None)
        case float() if noted.get("dtype") in ("float16", "float32"):
            # As it was written: 0.1 of 32 bits is 0.10000000149011612 among those of 64.
            value = None if isnan(value) else float(str(np.dtype(noted["dtype"]).type(value)))
        case float():
            value = None if isnan(value) else value
        case str() if not value.isascii():
            # JSON can write half of a character, where it was cut, which no tokenizer reads.
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case datetime(hour=0, minute=0, second=0, microsecond=0):
            # Where pandas has read dates, it has made times at midnight of them.
            value = str(value.date())
        case list():
            value = [plain(element, noted.get("feature")) for element in value]
        case dict():
            value = {key: plain(element, noted.get(key)) for key, element in value.items()}
        case None | str() | int() | bytes():
            pass
        case _:
            # Dates, times and decimals say themselves in the usual way.
            value = str(value)
    return value


def field_of(value: Any, path: Sequence[str]) -> Any:
    """Return what lies at `path` within structs, None if nothing does.

    Of a list of structs it is the list of their fields, as far as they have any. A struct may be
    written as JSON.
    """
    for depth, name in enumerate(path):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        if isinstance(value, list):
            fields = [field_of(element, path[depth:]) for element in value]
            return [field for field in fields if field is not None] or None
        value = value.get(name) if isinstance(value, dict) else None
    return value


# Messages.

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "prompter": "user",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    **{role: role for role in ("system", "user", "assistant", "tool", "developer", "function")},
}
"""What data sets call the speakers -> what chat templates call them."""


def messages_in(cell: Any) -> list[dict[str, Any]] | None:
    """Return the chat messages of a cell, with role and content; None if it holds none.

    They are a list of messages, or JSON text of one, with role and content or with from and value.
    Raises ValueError for an unknown speaker and for a message without a content.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            return None
    if not isinstance(cell, list) or not cell:
        return None
    messages = []
    for stored in cell:
        given = stored if isinstance(stored, dict) else {}
        # Arrow gives every dict of a column all keys of any, with null where one had none.
        if given.get("role") is not None and "content" in given:
            message = given
        elif given.get("from") is not None and "value" in given:
            message = {"role": given["from"], "content": given["value"]}
        else:
            # A list of something else, such as accepted answers or paths.
            return None
        role = _ROLES.get(str(message["role"]).lower())
        if role is None:
            raise ValueError(
                f"with a message of {str(message['role'])[:40]!r}, who is none of "
                f"{', '.join(_ROLES)}"
            )
        # Templates would write None, and the policy would learn to answer that.
        if message["content"] is None:
            raise ValueError("with a message without a content; fill or remove them")
        if not isinstance(message["content"], str | list):
            raise ValueError(
                "with a message whose content is neither a text nor a list of parts, got "
                f"{message['content']!r:.60}"
            )
        messages.append({**message, "role": role})
    return messages


# Media.

SETTINGS = {
    "image": {"min_pixels", "max_pixels", "resized_height", "resized_width"},
    "video": {"fps", "nframes", "max_frames", "max_pixels", "video_start", "video_end"},
}
"""Numbers beside a medium that change what is shown of it, in the names of qwen-vl-utils."""
_CONTENTS = "bytes path image video image_url video_url url source data base64 file frames".split()
"""Under one of these keys stands the medium itself; the first that is not empty counts."""
_IGNORED = {"type", "text", "detail", "media_type", "mime_type", "format", "width", "height", "id"}
_PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm"}
_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_BASE64_STARTS = tuple("iVBORw0KGgo /9j/ R0lGOD UklGR Qk SUkq TU0A AAAA GkXf UDY UDU".split())
"""How the formats of pictures and videos begin in base64."""
_BASE64_LENGTH = 64


@dataclass(frozen=True)
class Content:
    """A medium as a cell holds it."""

    source: str | bytes | tuple[Any, ...]
    """A path or an address, the bytes themselves, or the frames of a video as paths or bytes."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """What SETTINGS names."""


def media_in(cell: Any, kind: MediumKind) -> list[Content | None]:
    """Return the media of a cell in order; None for an element of a list with nothing in it.

    A cell holds a path, an address, base64, bytes, a dict with one of them, a list of these, or
    nothing. A list of pictures in a column of videos is one video. Messages hold the media of their
    content parts, whatever `kind` says. Raises ValueError for anything else.
    """
    if (messages := messages_in(cell)) is not None:
        parts = [part for message in messages for part in parts_of(message["content"])]
        return [part["content"] for part in parts if part.get("content") is not None]
    if isinstance(cell, str) and cell.startswith("["):
        # A table of text alone, such as CSV, writes a list of paths as JSON.
        with suppress(json.JSONDecodeError):
            cell = json.loads(cell)
    if isinstance(cell, list):
        contents = [_content(element, kind) for element in cell]
        # By what they are, because a list of films looks the same: a picture alone is no video.
        pictures = [content.source for content in contents if content and _is_picture(content)]
        if kind == "video" and pictures and len(pictures) == len(contents):
            return [Content(tuple(pictures))]
        return contents
    alone = _content(cell, kind)
    return [] if alone is None else [alone]


def parts_of(content: Any) -> list[dict[str, Any]]:
    """Return a message's content as parts of type text, image or video.

    A medium that a part brings itself is its `content`, a `Content`; a part without it is the place
    of a medium of another column. Raises MediaError for a part of another type.

    Example: parts_of([{"type": "image_url", "image_url": {"url": "a.png"}}]) ==
    [{"type": "image", "content": Content("a.png")}]
    """
    if not isinstance(content, list):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            continue
        if not isinstance(part, dict):
            raise MediaError(f"unknown_part: a content part is no text and no dict: {part!r:.100}")
        # Some data sets tell the type by the key alone.
        kind = part.get("type") or next((key for key in part if part[key] is not None), "")
        kind = str(kind).removeprefix("input_").removesuffix("_url")
        if kind == "text":
            parts.append({"type": "text", "text": part.get("text") or ""})
        elif kind in ("image", "video"):
            try:
                brought = _content({key: part[key] for key in part if key != "type"}, kind)
            except ValueError as error:
                raise MediaError(f"unknown_part: a part of type {kind} {error}") from error
            parts.append({"type": kind} | ({} if brought is None else {"content": brought}))
        else:
            raise MediaError(
                f"unknown_part: a content part {part!r:.100} is neither text nor a medium; write "
                "{'type': 'image', 'image': PATH}, or {'type': 'image'} and name its column in "
                "data.columns.images"
            )
    return parts


def _content(element: Any, kind: str) -> Content | None:
    """Return what one element of a cell holds, None for nothing; raises ValueError."""
    if isinstance(element, dict):
        return _content_of_dict(element, kind)
    if kind == "video" and isinstance(element, list) and element:
        frames = [_content(frame, "image") for frame in element]
        return Content(tuple(b"" if frame is None else frame.source for frame in frames))
    read = _read_text(element) if isinstance(element, str) else element
    if read is None or isinstance(read, str | bytes):
        return Content(read) if read else None
    raise ValueError(
        f"must hold paths, bytes or {{bytes, path}}, or lists of them, got {element!r:.120}"
    )


def _content_of_dict(element: Mapping[str, Any], kind: str) -> Content | None:
    # Arrow gives every dict of a column all keys of any, with null where one had none.
    given = {key: value for key, value in element.items() if value is not None}
    settings = {key: given[key] for key in given.keys() & SETTINGS[kind]}
    # A setting that is passed over would show the policy something else than the row means.
    unknown = given.keys() - set(_CONTENTS) - _IGNORED - settings.keys()
    if unknown or not all(isinstance(value, int | float) for value in settings.values()):
        raise ValueError(
            f"must hold {kind}s with a path or bytes, and beside them only the numbers "
            f"{', '.join(sorted(SETTINGS[kind]))}, got {', '.join(sorted(unknown)) or settings}"
        )
    key = next((key for key in _CONTENTS if given.get(key)), None)
    inner = None if key is None else given[key]
    if key in ("data", "base64") and isinstance(inner, str) and "." not in inner:
        inner = _decoded(inner)
    content = _content(inner, kind)
    return content and Content(content.source, {**content.settings, **settings})


def _read_text(text: str) -> str | bytes:
    """Return a path or an address as it is, and the bytes that a text holds itself."""
    scheme = text[:5].lower()
    if scheme == "data:":
        header, _, body = text.partition(",")
        is_base64 = header.lower().endswith(";base64")
        return _decoded(body) if is_base64 else unquote_to_bytes(body)
    if scheme == "file:":
        return url2pathname(unquote(urlparse(text).path))
    # A path to a file of media has an ending, and base64 has no dot.
    is_long = len(text) >= _BASE64_LENGTH
    if is_long and text.startswith(_BASE64_STARTS) and "." not in text:
        return _decoded(text)
    return text


def _decoded(text: str) -> bytes:
    """The bytes of base64; what cannot be decoded stays text, which no format begins like."""
    body = "".join(text.rpartition(",")[2].split()).rstrip("=")
    # Web addresses have an alphabet of their own, and many writers leave the padding out.
    alphabet = b"-_" if "-" in body or "_" in body else b"+/"
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), alphabet, validate=True)
    except binascii.Error:
        return text[:_BASE64_LENGTH].encode()


def _is_picture(content: Content) -> bool:
    source = content.source
    if isinstance(source, bytes):
        return source.startswith(_PICTURE_STARTS) and source[8:12] != b"AVI "
    return isinstance(source, str) and PurePath(source.lower()).suffix in _PICTURE_ENDINGS
