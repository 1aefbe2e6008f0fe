"""A reward model with a classification head, in Ray actors that batch what arrives together.

One that sees is shown the question's media as a learner shows them to a policy of its family.
While a forward runs, in a thread, requests gather, and the next forwards take them together. The
model is loaded on first use, so also after a restart (rewards/preference/actors.py).
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from rewards.preference.preference import PreferenceInput
from rewards.preference.template import AnswerTemplate, Reading
from rl.data.media.names import Medium
from rl.loop.batching import reference_sample
from rl.loop.interfaces import VisualInputs
from rl.loop.stages import Prompt, ReferenceRequest

BATCH_TOKENS = 16_384
"""Most tokens of one forward, those of media and padding included."""

OpenInputs = Callable[[Path], VisualInputs | None]
"""Opens the layout of media for the model of a directory; None for a model that reads text only."""


class RewardModel:
    """A sequence-classification model with one output, as transformers saves it."""

    def __init__(
        self, path: Path, dtype: str, device: str, open_inputs: OpenInputs = lambda path: None
    ) -> None:
        """Raises ValueError for a directory without a usable model. device: as torch names it."""
        self.template = check_reward_model(path)
        # First: who lays media out also teaches transformers the classifiers that see.
        self._inputs = open_inputs(path)
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
        """One score per input; None where what is read is longer than the model's positions.

        It is not cut to fit: a model must not judge an answer, or a question, of which it sees a
        part.
        """
        return self.score_readings([self.template.rendered(shown) for shown in inputs])

    def score_readings(self, readings: Sequence[Reading]) -> list[float | None]:
        """One score per reading. Equal ones are computed once; those of like length share a
        forward. Raises MediaError for a medium that cannot be read."""
        ids = self._token_ids(readings)
        fitting = {one: tokens for one, tokens in ids.items() if len(tokens) <= self._longest}
        scores: dict[Reading, float] = {}
        for batch in _batches(fitting, BATCH_TOKENS):
            rows = [torch.tensor(ids[reading]) for reading in batch]
            # Padding stands right, where neither positions nor causal attention feel it.
            tokens = pad_sequence(
                rows, batch_first=True, padding_value=self._pad_token_id
            )  # [B, T]
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)  # [B, T]
            shown = self._shown([(reading.media, ids[reading]) for reading in batch], tokens)
            device = self._model.device
            with torch.inference_mode():
                logits = self._model(
                    input_ids=tokens.to(device), attention_mask=mask.to(device), **shown
                ).logits  # [B, 1]
            scores |= zip(batch, logits[:, 0].float().tolist(), strict=True)
        return [scores.get(reading) for reading in readings]

    def _token_ids(self, readings: Sequence[Reading]) -> dict[Reading, tuple[int, ...]]:
        """The tokens of each reading, with all visual tokens of its media."""
        template, inputs = self.template, self._inputs
        ids: dict[Reading, tuple[int, ...]] = {}
        expanded: dict[Reading, tuple[int, ...]] = {}
        for reading in dict.fromkeys(readings):
            *pieces, rest = template.pieces(reading.text)
            # All answers to a question share what stands up to its last medium, so that the media
            # are looked at once.
            shared = Reading("".join(pieces), reading.media)
            if shared not in expanded:
                tokens = template.token_ids(shared.text)
                expanded[shared] = inputs.expanded(tokens, shared.media) if inputs else tokens
            ids[reading] = (*expanded[shared], *template.token_ids(rest))
        return ids

    def _shown(
        self, rows: Sequence[tuple[tuple[Medium, ...], tuple[int, ...]]], tokens: Tensor
    ) -> dict[str, Any]:
        """What the model takes beside the tokens [B, T] of rows, each with its media."""
        if self._inputs is None:
            return {}
        samples = []
        for media, ids in rows:
            # As samples of a learner, which media are laid out for.
            prompt = Prompt("preference", messages=(), reference="", media=media)
            request = ReferenceRequest(prompt.id, prompt, (), (), temperature=1.0)
            samples.append(reference_sample(request, ids))
        visual = self._inputs(samples, tokens)
        return visual.arguments(self._model.device, self._model.dtype) if visual else {}


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


def _batches(ids: Mapping[Reading, Sequence[int]], budget: int) -> Iterator[list[Reading]]:
    """Split readings, longest first, so that no padded batch of several exceeds `budget` tokens."""
    # Those of like length share a forward, so that little of it is padding.
    ordered = sorted(ids, key=lambda reading: len(ids[reading]), reverse=True)
    while ordered:
        fit = max(1, budget // len(ids[ordered[0]]))
        yield ordered[:fit]
        ordered = ordered[fit:]


class RewardModelActor:
    """RewardModel behind coroutines; gathers what arrives while a forward runs."""

    def __init__(
        self, path: Path, dtype: str, device: str, open_inputs: OpenInputs, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._arguments = (path, dtype, device, open_inputs)
        self._model: RewardModel | None = None
        self._loading = asyncio.Lock()
        self._waiting: list[tuple[list[Reading], asyncio.Future[list[float | None]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Raises ValueError for a model that cannot be used."""
        await self._loaded()

    async def score(self, inputs: Sequence[PreferenceInput]) -> list[float | None]:
        model = await self._loaded()
        readings = [model.template.rendered(shown) for shown in inputs]
        answer: asyncio.Future[list[float | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((readings, answer))
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
            # one answer.
            taken, self._waiting = self._waiting, []
            readings = [reading for own, _ in taken for reading in own]
            try:
                scores = iter(await asyncio.to_thread(model.score_readings, readings))
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
