"""The directory that a person serves: a checkpoint's model with what each mode needs beside it.

model.safetensors ...    weights, configuration, tokenizer, processor as the checkpoint has them
chat_template.jinja      takes enable_thinking (also "auto", where the policy may choose), and ends
                         each prompt as training did
generation_config.json   the default mode's sampling settings, which vLLM and transformers read
modes.json               every mode's settings, as fields of a chat completion request

rollout/chat.py ends every prompt as its mode needs, whatever the model's own template does: Qwen3's
leaves the think tag to the model, a distilled reasoning model's always opens it. A server knows
the template only, so an exported one has to end its prompts in the same tokens by itself.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import ModeConfig, Thinking
from rl.loop.stages import Prompt
from rl.run.files import read_json
from rollout.chat import ChatTemplate, stored_end_tokens

_PROBE = Prompt("probe", ({"role": "user", "content": "2+2?"},), "4")


def default_mode(modes: Mapping[str, ModeConfig]) -> str:
    """The mode of a request that names none: one that chooses, if any, else one that reasons; of
    these the one with the largest budget."""

    def rank(name: str) -> tuple[bool, bool, int]:
        mode = modes[name]
        return mode.thinking == "auto", bool(mode.thinking), mode.max_tokens

    return max(modes, key=rank)


def serving_template(
    directory: Path, modes: Mapping[str, ModeConfig], tags: ThinkTags = THINK_TAGS
) -> str:
    """Return a chat template that renders, in every mode, the prompts the policy was trained on.

    It takes `enable_thinking`, and a request that leaves it out gets that of the default mode; the
    template's other variables are those of the mode that is the default among its kind. A template
    that does all this already comes back as it is. Raises ValueError if there is none, or if no
    addition makes it render those prompts.
    """
    chat = ChatTemplate(str(directory), tags)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    variables: dict[Thinking, Mapping[str, Any]] = {True: {}, False: {}}
    endings: dict[Thinking, str] = {True: "", False: ""}
    if any(mode.thinking == "auto" for mode in modes.values()):
        variables["auto"], endings["auto"] = {}, ""
    for on in endings:
        of_kind = {name: mode for name, mode in modes.items() if mode.thinking == on}
        if of_kind:
            variables[on] = of_kind[default_mode(of_kind)].chat_template_kwargs
        # What no mode was trained for is served as far as the template allows.
        with nullcontext() if of_kind else suppress(ValueError):
            endings[on] = _missing_ending(chat, tokenizer, tags, bool(on), variables[on])
    default = modes[default_mode(modes)].thinking
    # Without the keyword, the template must behave as with the default's value.
    is_default = _rendered(tokenizer) == _rendered(tokenizer, enable_thinking=default)
    template = str(tokenizer.get_chat_template())
    # Servers and their reasoning parsers know the switch by one name.
    is_renamed = chat.switch not in (None, "enable_thinking")
    # No template of a model is known to leave a choice.
    is_complete = not any((*endings.values(), *variables.values(), "auto" in endings))
    if is_complete and is_default and not is_renamed:
        return template
    # As Jinja writes them: true and false in small letters.
    default = repr(default) if default == "auto" else str(default).lower()
    lines = [
        "{% set enable_thinking = enable_thinking if enable_thinking is defined "
        f"and enable_thinking is not none else {default} %}}"
    ]
    conditions: dict[Thinking, str] = {True: "enable_thinking", False: "not enable_thinking"}
    if "auto" in endings:
        # To the model's own template it is the prompt of a mode that reasons, of which the end is
        # cut off again.
        lines += [
            "{% set chooses = enable_thinking == 'auto' %}",
            "{% set enable_thinking = true if chooses else enable_thinking %}",
        ]
        conditions |= {"auto": "chooses", True: "enable_thinking and not chooses"}
    if is_renamed:
        lines.append(f"{{% set {chat.switch} = enable_thinking %}}")
    for on, condition in conditions.items():
        # Python writes these values, and the texts below, as Jinja reads them.
        lines += [
            f"{{% if {condition} and {name} is not defined %}}"
            f"{{% set {name} = {value!r} %}}{{% endif %}}"
            for name, value in variables[on].items()
        ]
    # Jinja leaves out one newline at the end of a template, and the one after a block.
    begun, template = "".join(f"{line}\n" for line in lines), template.removesuffix("\n")
    ending = f"{endings[True]!r} if enable_thinking else {endings[False]!r}"
    if "auto" not in endings:
        return f"{begun}{template}{{{{ ({ending}) if add_generation_prompt else '' }}}}"
    ending = f"({endings['auto']!r} if chooses else {ending}) if add_generation_prompt else ''"
    asked = f"{begun}{{% set asked %}}\n{template}{{{{ {ending} }}}}{{% endset %}}"
    return _cut_for_choice(chat, tokenizer, asked, variables["auto"])


def _cut_for_choice(
    chat: ChatTemplate, tokenizer: Any, asked: str, variables: Mapping[str, Any]
) -> str:
    """Complete a template that sets `asked` to the prompt of a mode that reasons: where the policy
    chooses, it then ends where the prompts of the two kinds part."""
    length = len(chat.raw_text(chat.choice_tokens(variables).long))
    completed = (
        f"{asked}{{{{ asked[:-{length}] if chooses and add_generation_prompt else asked }}}}"
    )
    rendered = _rendered(tokenizer, chat_template=completed, enable_thinking="auto")
    trained = chat.prompt_token_ids(_PROBE, "auto", variables)
    if chat.token_ids(rendered) != trained:
        raise ValueError(
            f"the chat template cannot be completed for serving: where the policy chooses it "
            f"renders {rendered!r}, whose tokens are not those of {chat.raw_text(trained)!r}, as "
            "training asked; export a run without that mode"
        )
    return completed


def _missing_ending(
    chat: ChatTemplate,
    tokenizer: Any,
    tags: ThinkTags,
    thinking: bool,
    variables: Mapping[str, Any],
) -> str:
    """What the template alone leaves out at the end of a prompt in this mode."""
    switches = {"enable_thinking": thinking, chat.switch or "enable_thinking": thinking}
    rendered = _rendered(tokenizer, **{**switches, **variables})
    trained = chat.prompt_token_ids(_PROBE, thinking, variables)
    # All that rollout/chat.py can put behind a template's own generation prompt. A template that
    # always opens the tag may have put none, one or two line ends behind it.
    closings = [f"{line_ends}{tags.close}\n\n" for line_ends in ("", "\n", "\n\n")]
    for ending in ("", f"{tags.open}\n", tags.empty_block, *closings):
        if chat.token_ids(rendered + ending) == trained:
            return ending
    raise ValueError(
        f"the chat template cannot be completed for serving: with enable_thinking={thinking} it "
        f"renders {rendered!r}, and training asked {chat.raw_text(trained)!r}; put a "
        "chat_template.jinja that renders the latter into the model's directory"
    )


def _rendered(tokenizer: Any, **variables: Any) -> str:
    return tokenizer.apply_chat_template(
        [dict(message) for message in _PROBE.messages],
        tokenize=False,
        add_generation_prompt=True,
        **variables,
    )


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
    settings = read_json(target / "tokenizer_config.json")
    if settings.pop("chat_template", None) is not None:
        _write_json(target / "tokenizer_config.json", settings)
    (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    default = default_mode(modes)
    # Of the base model's own settings only its special tokens stay: its temperature or top_k would
    # be applied to every request that names none, which is not how the policy was trained.
    stored = read_json(target / "generation_config.json")
    tokens = {key: value for key, value in stored.items() if key.endswith("_token_id")}
    # vLLM reads the ends of config.json only where there is no such file.
    known = tokens.get("eos_token_id")
    if (ends := stored_end_tokens(source)) - {*(known if isinstance(known, list) else [known])}:
        tokens["eos_token_id"] = sorted(ends)
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
        "chat_template_kwargs": {"enable_thinking": mode.thinking, **mode.chat_template_kwargs},
        "temperature": mode.temperature,
        "top_p": 1.0,
        "max_tokens": mode.max_tokens,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
