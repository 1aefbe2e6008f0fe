"""The character-level tokenizer of the built-in tiny policies, with its chat template."""

import string
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rl.loop.stages import CLOSE_THINK, OPEN_THINK

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
USER, ASSISTANT = "<user>", "<asst>"
CHARACTERS = "\n" + "".join(sorted(c for c in string.printable if c.isprintable()))

# A system message is accepted and left out: the policy has never seen one.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<user>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<asst>\\n' + message['content'] + '<eos>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<asst>\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '\\n</think>\\n\\n' }}"
    "{%- endif -%}"
    "{%- endif -%}"
)


BLANK_LINE = "\n\n"


def make_tokenizer(
    max_length: int,
    media_tokens: Sequence[str] = (),
    chat_template: str = CHAT_TEMPLATE,
    has_blank_line: bool = False,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per printable ASCII character, newline and marker.

    The think tags are ordinary added tokens, as in Qwen3, so decoding always keeps them.
    media_tokens: special tokens of a policy that sees. has_blank_line: whether two newlines are one
    token, as in Qwen3's vocabulary, which is what a policy chooses by that answers at once.
    """
    # The order decides the token ids, and so the weights of every model that is made.
    markers = [PAD, EOS, UNKNOWN, USER, ASSISTANT, OPEN_THINK, CLOSE_THINK]
    words = [*markers, *CHARACTERS, *media_tokens, *([BLANK_LINE] if has_blank_line else [])]
    vocabulary = {token: place for place, token in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # Each character is a word of its own, so no digit ever hides inside a longer token.
    words_of_text = r"\n\n|[\s\S]" if has_blank_line else r"[\s\S]"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(words_of_text), "isolated")
    core.decoder = decoders.Fuse()
    special = [*markers[:5], *media_tokens]
    core.add_special_tokens([AddedToken(marker, special=True) for marker in special])
    core.add_tokens([AddedToken(marker, normalized=False) for marker in (OPEN_THINK, CLOSE_THINK)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        # Answers are sampled after the last token of a prompt, which then ends every row.
        padding_side="left",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def token_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the configuration of a model says of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
