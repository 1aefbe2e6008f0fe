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

MODES = "modes.json"


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
    _replace_chat_template(target, chat_template)
    default = default_mode(modes)
    _write_generation_config(target / "generation_config.json", modes[default])
    settings = {name: request_fields(mode) for name, mode in modes.items()}
    _write_json(target / MODES, {"default": default, "modes": settings})


def request_fields(mode: ModeConfig) -> dict[str, Any]:
    """How a mode is asked for: fields of an OpenAI chat completion request to vLLM."""
    return {
        "chat_template_kwargs": {"enable_thinking": mode.thinking},
        "temperature": mode.temperature,
        "top_p": 1.0,
        "max_tokens": mode.max_tokens,
    }


def _replace_chat_template(target: Path, chat_template: str) -> None:
    """Leave one chat template, in the file that comes first for transformers and vLLM."""
    # Three places may hold one, and readers differ in which they look at first. With the two others
    # gone, none can serve a template that training did not use.
    (target / "chat_template.json").unlink(missing_ok=True)
    tokenizer_config = target / "tokenizer_config.json"
    if tokenizer_config.is_file():
        settings = json.loads(tokenizer_config.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            _write_json(tokenizer_config, settings)
    (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _write_generation_config(path: Path, mode: ModeConfig) -> None:
    """Sample as training did; of the base model's own settings only its special tokens stay."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # Its temperature or top_k would be applied to every request that names none, which is not how
    # the policy was trained.
    tokens = {key: value for key, value in stored.items() if key.endswith("_token_id")}
    sampling = {
        "do_sample": True,
        "temperature": mode.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": mode.max_tokens,
    }
    _write_json(path, tokens | sampling)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
