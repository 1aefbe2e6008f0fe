"""Model directories with the published figures of real models and no weights, for memory."""

import json
from pathlib import Path
from typing import Any

from tests.bpe_policy import make_tokenizer

QWEN3: dict[str, dict[str, Any]] = {
    "0.6B": {"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16}
    | {"intermediate_size": 3072, "tie_word_embeddings": True},
    "1.7B": {"num_hidden_layers": 28, "hidden_size": 2048, "num_attention_heads": 16}
    | {"intermediate_size": 6144, "tie_word_embeddings": True},
    "4B": {"num_hidden_layers": 36, "hidden_size": 2560, "num_attention_heads": 32}
    | {"intermediate_size": 9728, "tie_word_embeddings": True},
    "8B": {"num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32}
    | {"intermediate_size": 12288, "tie_word_embeddings": False},
    "32B": {"num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 64}
    | {"intermediate_size": 25600, "tie_word_embeddings": False},
}
COMMON = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000,
    "torch_dtype": "bfloat16",
}


def write_qwen3(directory: Path, name: str) -> Path:
    """Configuration and tokenizer of a Qwen3; the tokenizer is small, which memory does not see."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (directory / "config.json").write_text(json.dumps(COMMON | QWEN3[name] | ends))
    tokenizer.save_pretrained(directory)
    return directory
