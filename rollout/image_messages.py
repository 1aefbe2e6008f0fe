"""Messages with their images inside, as a chat server takes them."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from rl.data.media.names import StillImage
from rl.data.media.store import MediaStore
from rl.loop.stages import Prompt


def messages_with_images(prompt: Prompt, store: MediaStore) -> list[dict[str, Any]]:
    """The prompt's messages, each image part with the very pixels that training shows.

    Raises MediaError, and ValueError for a video, of which a server would choose the frames.
    """
    media = iter(prompt.media)
    messages = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                part if part["type"] == "text" else _image_part(store.read(next(media)))
                for part in content
            ]
        messages.append({**message, "content": content})
    return messages


def _image_part(medium: Any) -> dict[str, Any]:
    if not isinstance(medium, StillImage):
        raise ValueError("a video cannot be sent to a server; ask about images")
    written = BytesIO()
    medium.pixels.save(written, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}
