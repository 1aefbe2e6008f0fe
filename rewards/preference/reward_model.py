"""A reward model with a classification head, in Ray actors that batch what arrives together.

While a forward runs, in a thread, requests gather, and the next forwards take them together. The
model is loaded on first use, so also after a restart (rewards/preference/actors.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rewards.preference.preference import PreferenceInput, without_markers

SAMPLE = PreferenceInput(({"role": "user", "content": "What is 2+2?"},), "It is 4.")


class RewardModel:
    """A sequence-classification model with one output, as transformers saves it."""

    def __init__(self, path: Path, dtype: str, device: str, batch_tokens: int = 16_384) -> None:
        """Load the model; raises ValueError for a directory that holds no usable reward model.

        dtype: `float32` or `bfloat16`; device: as torch names it; batch_tokens: most tokens of
        one forward, padding included.
        """
        self._tokenizer = load_tokenizer(path)
        self._markers = special_markers(self._tokenizer)
        refuse_unfit_template(path, self.rendered(SAMPLE))
        self._model = _load_classifier(path, dtype).to(device)
        config = self._model.config.get_text_config()
        if config.pad_token_id is None:
            if self._tokenizer.pad_token_id is None:
                raise ValueError(
                    f"the reward model {path} names no padding token, so it cannot score batches; "
                    "set pad_token in its tokenizer_config.json"
                )
            config.pad_token_id = self._tokenizer.pad_token_id
        self._pad_token_id: int = config.pad_token_id
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        self._longest = min(positions, self._tokenizer.model_max_length)
        self._batch_tokens = batch_tokens

    def rendered(self, asked: PreferenceInput) -> str:
        """The exact text the model reads; raises ValueError for a question it cannot read."""
        refuse_media(asked)
        answer = without_markers(asked.answer, self._markers)
        turn = {"role": "assistant", "content": answer}
        return render(self._tokenizer, [*asked.messages, turn], add_generation_prompt=False)

    def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]:
        """One score per input; None where the text is longer than the model's positions.

        Such a text is not cut to fit: a model must not judge an answer, or a question, of which it
        sees a part.
        """
        return self.score_texts([self.rendered(one) for one in inputs])

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """One score per rendered text. Equal texts are computed once; lengths share a forward."""
        ids = {text: self._encode(text) for text in dict.fromkeys(texts)}
        fitting = {text: tokens for text, tokens in ids.items() if len(tokens) <= self._longest}
        scores: dict[str, float] = {}
        for batch in _batches(fitting, self._batch_tokens):
            scores |= zip(batch, self._forward([ids[text] for text in batch]), strict=True)
        return [scores.get(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _forward(self, rows: list[list[int]]) -> list[float]:
        """Padding stands right, where neither positions nor causal attention feel it."""
        import torch

        width = max(len(row) for row in rows)
        tokens = torch.full((len(rows), width), self._pad_token_id)  # [B, T]
        mask = torch.zeros((len(rows), width), dtype=torch.long)  # [B, T]
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(input_ids=tokens.to(device), attention_mask=mask.to(device)).logits
        return logits[:, 0].float().tolist()  # logits [B, 1]


def load_tokenizer(path: Path) -> Any:
    """Return a directory's tokenizer; raises ValueError if it has none, or no chat template."""
    if not (path / "config.json").is_file():
        raise ValueError(
            f"the preference model must be a Hugging Face model directory, got {path} without a "
            "config.json; name the directory that holds config.json and the weights"
        )
    # Imported here, because transformers takes seconds and a run without a preference model needs
    # none of it.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the preference model {path} has no usable tokenizer: {error}") from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of the preference model {path} has no chat template; put a "
            "chat_template.jinja into its directory"
        )
    return tokenizer


def special_markers(tokenizer: Any) -> list[str]:
    """The special tokens as text."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [marker for marker in dict.fromkeys(added) if len(marker) > 1]


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **how: Any) -> str:
    """Apply the chat template; raises ValueError if it refuses the messages."""
    # Imported here like transformers, which brings it.
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, **how
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(
            f"the preference model's chat template refuses the messages: {error}"
        ) from error


def refuse_unfit_template(path: Path, rendered: str) -> None:
    """Raise ValueError if the template dropped the question or the answer of SAMPLE."""
    for part in (SAMPLE.messages[0]["content"], SAMPLE.answer):
        if part not in rendered:
            raise ValueError(
                f"the chat template of {path} leaves {part!r} out of a conversation that holds it; "
                "take a model whose template renders questions and answers"
            )


def refuse_media(asked: PreferenceInput) -> None:
    parts = [
        part for m in asked.messages if isinstance(m["content"], list) for part in m["content"]
    ]
    if asked.media or any(part.get("type") != "text" for part in parts):
        raise ValueError(
            "the preference model reads text only, got a question with images or videos; leave "
            "reward.preference out for such data"
        )


def _load_classifier(path: Path, dtype: str) -> Any:
    """Return the model in evaluation mode, with every weight from the directory."""
    # Imported here: the rewards load without torch, and only the model's own process needs it.
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise ValueError(f"the reward model's dtype must be one of {sorted(dtypes)}, got {dtype!r}")
    _refuse_other_heads(path)
    disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtypes[dtype],
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"the reward model {path} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        # transformers has drawn these at random.
        raise ValueError(
            f"the reward model {path} lacks weights, such as {missing[0]}; take one that was saved "
            "with its classification head"
        )
    return model.eval()


def check_reward_model(path: Path) -> None:
    """Raise ValueError for what a directory shows to be no reward model, its weights unread."""
    load_tokenizer(path)
    _refuse_other_heads(path)


def _refuse_other_heads(path: Path) -> None:
    # Imported here for the same reason as in `load_tokenizer`.
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}/config.json cannot be used: {error}") from error
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(
            f"the reward model {path} is a {architectures or config.model_type}, without a "
            "classification head; name a ...ForSequenceClassification model, or use a judge"
        )
    if config.num_labels != 1:
        raise ValueError(
            f"the reward model {path} has {config.num_labels} outputs, a reward model has 1"
        )


def _batches(ids: Mapping[str, Sequence[int]], budget: int) -> Iterator[list[str]]:
    """Split texts, longest first, so that no padded batch of several exceeds `budget` tokens."""
    # Texts of like length share a forward, so that little of it is padding.
    ordered = sorted(ids, key=lambda text: len(ids[text]), reverse=True)
    while ordered:
        fit = max(1, budget // len(ids[ordered[0]]))
        yield ordered[:fit]
        ordered = ordered[fit:]


class RewardModelActor:
    """RewardModel behind coroutines; gathers what arrives while a forward runs."""

    def __init__(self, path: Path, dtype: str, device: str, threads: int) -> None:
        self._arguments = (path, dtype, device)
        self._threads = threads
        self._model: RewardModel | None = None
        self._loading = asyncio.Lock()
        self._waiting: list[tuple[list[str], asyncio.Future[list[float | None]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Raises ValueError for a model that cannot be used."""
        await self._loaded()

    async def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]:
        model = await self._loaded()
        texts = [model.rendered(one) for one in inputs]
        answer: asyncio.Future[list[float | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._score_waiting(model))
        return await answer

    async def close(self) -> None:
        """Nothing outlives the process."""

    async def _loaded(self) -> RewardModel:
        async with self._loading:
            if self._model is None:
                self._model = await asyncio.to_thread(self._load)
            return self._model

    def _load(self) -> RewardModel:
        import torch

        torch.set_num_threads(self._threads)
        return RewardModel(*self._arguments)

    async def _score_waiting(self, model: RewardModel) -> None:
        while self._waiting:
            # All that arrived during the last forward, in one go: a batch costs little more than
            # one text.
            taken, self._waiting = self._waiting, []
            texts = [text for asked, _ in taken for text in asked]
            try:
                scores = iter(await asyncio.to_thread(model.score_texts, texts))
            except Exception as error:
                # Each asker raises it; this task has nobody to raise it to.
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for asked, answer in taken:
                part = list(islice(scores, len(asked)))
                if not answer.done():
                    answer.set_result(part)
