"""The directory that a person serves: a checkpoint's model with what each mode needs beside it.

model.safetensors ...    weights, configuration, tokenizer, processor as the checkpoint has them
chat_template.jinja      takes enable_thinking, and ends each prompt as training did
generation_config.json   the default mode's sampling settings, which vLLM and transformers read
modes.json               every mode's settings, as fields of a chat completion request
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.config.rollout import ModeConfig


def default_mode(modes: Mapping[str, ModeConfig]) -> str:
    """The mode of a request that names none: one that reasons, if any, with the largest budget."""
    return max(modes, key=lambda name: (modes[name].thinking, modes[name].max_tokens))


def write_serving_directory(
    source: Path, target: Path, chat_template: str, modes: Mapping[str, ModeConfig]
) -> None:
    """Fill `target`, an empty directory, from a checkpoint's Hugging Face model in `source`."""
    for file in source.iterdir():
        if file.is_file():
            # The content alone: a checkpoint's weights may be closed to the user who serves them.
            shutil.copyfile(file, target / file.name)
    # Three places may hold a chat template, and readers differ in which they look at first. With
    # the two others gone, none can serve a template that training did not use.
    (target / "chat_template.json").unlink(missing_ok=True)
    settings = _read_json(target / "tokenizer_config.json")
    if settings.pop("chat_template", None) is not None:
        _write_json(target / "tokenizer_config.json", settings)
    (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    default = default_mode(modes)
    # Of the base model's own settings only its special tokens stay: its temperature or top_k would
    # be applied to every request that names none, which is not how the policy was trained.
    stored = _read_json(target / "generation_config.json")
    tokens = {key: value for key, value in stored.items() if key.endswith("_token_id")}
    sampling = {
        "do_sample": True,
        "temperature": modes[default].temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": modes[default].max_tokens,
    }
    _write_json(target / "generation_config.json", tokens | sampling)
    fields = {name: request_fields(mode) for name, mode in modes.items()}
    _write_json(target / "modes.json", {"default": default, "modes": fields})


def request_fields(mode: ModeConfig) -> dict[str, Any]:
    """How a mode is asked for: fields of an OpenAI chat completion request to vLLM."""
    return {
        "chat_template_kwargs": {"enable_thinking": mode.thinking},
        "temperature": mode.temperature,
        "top_p": 1.0,
        "max_tokens": mode.max_tokens,
    }


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
