"""A random policy over a byte-level BPE: text of any script, and tokens that reach over words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CORPUS = [
    r"so the answer is \boxed{42} and \boxed{44}. Answer: 42",
    "the answer is Paris, not London; <answer>Paris</answer>",
    "答案是四十二。\n\n",
    "🙂🙃 emoji take several tokens",
] * 20
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    # No split at words: tokens may reach over any boundary.
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_start|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_policy(directory: Path, max_length: int, **settings: Any) -> Path:
    """Save a random two-layer Qwen3 with that tokenizer; returns its directory.

    settings: of Qwen3Config, in place of those here.
    """
    # Imported on use: tests of the tokenizer alone need no torch.
    from tests.qwen3_tiny import tiny_qwen3

    tokenizer = make_tokenizer()
    sizes = {
        # vLLM on CPU takes no heads as small as those of the other tests.
        "hidden_size": 128,
        "intermediate_size": 128,
        "initializer_range": 0.02,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    model = tiny_qwen3(
        len(tokenizer),
        max_position_embeddings=max_length,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **sizes | settings,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
