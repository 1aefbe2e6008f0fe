"""A reward model with a classification head, in Ray actors that batch what arrives together.

While a forward runs, in a thread, requests gather, and the next forwards take them together. The
model is loaded on first use, so also after a restart (rewards/preference/actors.py).
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from rewards.preference.preference import PreferenceInput
from rewards.preference.template import AnswerTemplate

BATCH_TOKENS = 16_384
"""Most tokens of one forward, padding included."""


class RewardModel:
    """A sequence-classification model with one output, as transformers saves it."""

    def __init__(self, path: Path, dtype: str, device: str) -> None:
        """Raises ValueError for a directory without a usable model. device: as torch names it."""
        self.template = check_reward_model(path)
        disable_progress_bar()
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=dtype,
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
                f"the reward model {path} lacks weights, such as {missing[0]}; take one that was "
                "saved with its classification head"
            )
        self._model = model.eval().to(device)
        config, tokenizer = self._model.config.get_text_config(), self.template.tokenizer
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        if config.pad_token_id is None:
            raise ValueError(
                f"the reward model {path} names no padding token, so it cannot score batches; set "
                "pad_token in its tokenizer_config.json"
            )
        self._pad_token_id: int = config.pad_token_id
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        self._longest = min(positions, tokenizer.model_max_length)

    def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]:
        """One score per input; None where the text is longer than the model's positions.

        Such a text is not cut to fit: a model must not judge an answer, or a question, of which it
        sees a part.
        """
        return self.score_texts([self.template.rendered(shown) for shown in inputs])

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """One score per rendered text. Equal texts are computed once; lengths share a forward."""
        ids = {text: self.template.token_ids(text) for text in dict.fromkeys(texts)}
        fitting = {text: tokens for text, tokens in ids.items() if len(tokens) <= self._longest}
        scores: dict[str, float] = {}
        for batch in _batches(fitting, BATCH_TOKENS):
            rows = [torch.tensor(ids[text], device=self._model.device) for text in batch]
            # Padding stands right, where neither positions nor causal attention feel it.
            tokens = pad_sequence(
                rows, batch_first=True, padding_value=self._pad_token_id
            )  # [B, T]
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)  # [B, T]
            with torch.inference_mode():
                logits = self._model(input_ids=tokens, attention_mask=mask).logits  # [B, 1]
            scores |= zip(batch, logits[:, 0].float().tolist(), strict=True)
        return [scores.get(text) for text in texts]


def check_reward_model(path: Path) -> AnswerTemplate:
    """Read all of a reward model but its weights; raises ValueError for a directory without one."""
    template = AnswerTemplate(path)
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
    return template


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
        torch.set_num_threads(threads)
        self._arguments = (path, dtype, device)
        self._model: RewardModel | None = None
        self._loading = asyncio.Lock()
        self._waiting: list[tuple[list[str], asyncio.Future[list[float | None]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Raises ValueError for a model that cannot be used."""
        await self._loaded()

    async def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]:
        model = await self._loaded()
        texts = [model.template.rendered(shown) for shown in inputs]
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
                self._model = await asyncio.to_thread(RewardModel, *self._arguments)
            return self._model

    async def _score_waiting(self, model: RewardModel) -> None:
        while self._waiting:
            # All that arrived during the last forward, in one go: a batch costs little more than
            # one text.
            taken, self._waiting = self._waiting, []
            texts = [text for own, _ in taken for text in own]
            try:
                scores = iter(await asyncio.to_thread(model.score_texts, texts))
            except Exception as error:
                # Each asker raises it; this task has nobody to raise it to.
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for own, answer in taken:
                own_scores = list(islice(scores, len(own)))
                if not answer.done():
                    answer.set_result(own_scores)
