"""The chat template that a server applies alone, with what training put behind it written in.

rollout/chat.py ends every prompt as its mode needs, whatever the model's own template does: Qwen3's
leaves the think tag to the model, a distilled reasoning model's always opens it. A server knows
the template only, so an exported one has to end its prompts in the same tokens by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rl.loop.stages import CLOSE_THINK, OPEN_THINK, Prompt
from rollout.chat import EMPTY_BLOCK, ChatTemplate

# All that rollout/chat.py can put behind a template's own generation prompt.
_ENDINGS = (
    "",
    "\n",
    f"{OPEN_THINK}\n",
    EMPTY_BLOCK,
    f"\n{CLOSE_THINK}\n\n",
    f"\n\n{CLOSE_THINK}\n\n",
)
_PROBE = Prompt("probe", ({"role": "user", "content": "2+2?"},), "4")


def serving_template(directory: Path, thinks_by_default: bool) -> str:
    """Return a chat template that renders, in both modes, the prompts the policy was trained on.

    It takes `enable_thinking`; a request that leaves it out gets `thinks_by_default`. A template
    that does all this already comes back as it is. Raises ValueError if there is none, or if no
    addition makes it render those prompts.
    """
    chat = ChatTemplate(str(directory))
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    thinking, direct = (_missing_ending(chat, tokenizer, switch) for switch in (True, False))
    # Without the keyword, the template must behave as with the default's value.
    is_default = _rendered(tokenizer) == _rendered(tokenizer, enable_thinking=thinks_by_default)
    template = str(tokenizer.get_chat_template())
    if thinking == direct == "" and is_default:
        return template
    default = "true" if thinks_by_default else "false"
    # Jinja leaves out one newline at the end of a template, and the one after a block.
    return (
        "{% set enable_thinking = enable_thinking if enable_thinking is defined "
        f"and enable_thinking is not none else {default} %}}\n"
        + template.removesuffix("\n")
        # Python quotes these texts as Jinja does.
        + f"{{{{ ({thinking!r} if enable_thinking else {direct!r}) "
        "if add_generation_prompt else '' }}"
    )


def _missing_ending(chat: ChatTemplate, tokenizer: Any, thinking: bool) -> str:
    """What the template alone leaves out at the end of a prompt in this mode."""
    rendered = _rendered(tokenizer, enable_thinking=thinking)
    trained = chat.prompt_token_ids(_PROBE, thinking)
    for ending in _ENDINGS:
        if chat.token_ids(rendered + ending) == trained:
            return ending
    raise ValueError(
        f"the chat template cannot be completed for serving: with enable_thinking={thinking} it "
        f"renders {rendered!r}, and training asked {chat.raw_text(trained)!r}; put a "
        "chat_template.jinja that renders the latter into the model's directory"
    )


def _rendered(tokenizer: Any, **switch: bool) -> str:
    return tokenizer.apply_chat_template(
        [dict(message) for message in _PROBE.messages],
        tokenize=False,
        add_generation_prompt=True,
        **switch,
    )
