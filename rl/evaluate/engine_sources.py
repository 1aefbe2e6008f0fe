"""Checkpoints and models, asked in the engines of the run whose settings they are asked under.

All input is checked before anything heavy runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rl.assembly import RunInputs, gather_inputs, open_engines, resolve_reference
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.families import vision_family
from rl.evaluate.sources import Note, Reference, Session, Source, prompts_of
from rl.run.checkpoints import MANIFEST, Checkpoint

SHOWN_TOKENS = 3


def checkpoint_source(
    config: Config, split: str, checkpoint: Checkpoint, note: Note, reference: str | None = None
) -> Source:
    """A run's checkpoint.

    reference: directory or name of the model that a best-of compares it with.
    """
    # An evaluation measures accuracy; the preference model would take a GPU and change no figure.
    inputs = gather_inputs(config.without_preference())
    model, scores = checkpoint.path / "model", reference is not None
    # The manifest holds the digest of every file, so it tells these weights from all others.
    manifest = (checkpoint.path / MANIFEST).read_text(encoding="utf-8")
    return Source(
        name=checkpoint.path.name,
        path=str(checkpoint.path),
        policy={"kind": "checkpoint", "step": checkpoint.step, "weights": stamp(manifest)},
        prompts=prompts_of(inputs.stream, split, config.eval.prompts),
        open=lambda: _engines(inputs, model, note, scores, checkpoint.progress.get("scorer")),
        reference=_reference(inputs, model, reference, note) if reference else None,
    )


def model_source(
    config: Config, split: str, model: str, note: Note, reference: str | None = None
) -> Source:
    """A model directory, such as rl.export writes, or a model's name.

    reference: as for a checkpoint.
    """
    _refuse_no_model("model", model)
    policy = config.policy.model_copy(update={"model": model})
    inputs = gather_inputs(config.model_copy(update={"policy": policy}).without_preference())
    return Source(
        name=f"model_{Path(model).resolve().name}",
        path=model,
        policy={"kind": "model", "step": None, "weights": stamp_of_model(inputs.model)},
        prompts=prompts_of(inputs.stream, split, config.eval.prompts),
        open=lambda: _engines(inputs, inputs.model, note, reference is not None),
        reference=_reference(inputs, inputs.model, reference, note) if reference else None,
    )


def _refuse_no_model(key: str, model: str) -> None:
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ValueError(
            f"{key}={model} has no config.json; name a directory that rl.export wrote, a "
            "checkpoint's model/, or any other Hugging Face model directory"
        )


def _reference(inputs: RunInputs, policy: Path, model: str, note: Note) -> Reference:
    """Raises ValueError for a model that cannot score the responses of the one in `policy`."""
    _refuse_no_model("reference", model)
    try:
        directory = resolve_reference(inputs.config, model)
        _refuse_other_family(policy, directory)
        _refuse_other_tokens(policy, directory)
    except ValueError as error:
        raise ValueError(f"reference={model} cannot be compared with: {error}") from error
    return Reference(
        name=Path(model).resolve().name,
        path=model,
        weights=stamp_of_model(directory),
        open=lambda: _engines(inputs, directory, note, scores_responses=True),
    )


def _refuse_other_family(policy: Path, reference: Path) -> None:
    """Raise ValueError if the two models are not shown images in the same way."""
    types = [
        json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
        for directory in (policy, reference)
    ]
    if vision_family(types[0]) != vision_family(types[1]):
        raise ValueError(
            f"it is of type {types[1]}, which is not shown images as the policy's {types[0]} is; "
            "name a model of the same family"
        )


def _refuse_other_tokens(policy: Path, reference: Path) -> None:
    """Raise ValueError if not every token id means the same to both models.

    The reference scores the policy's own token ids: decoding them and encoding them again may give
    other ones, whose log-probability is not that of the response.
    """
    vocabularies = [
        AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        ).get_vocab()
        for directory in (policy, reference)
    ]
    if differing := sorted(set(vocabularies[0].items()) ^ set(vocabularies[1].items())):
        tokens = list(dict.fromkeys(token for token, _ in differing))
        raise ValueError(
            f"its tokenizer has other tokens than the policy's, {len(tokens)} in all, such as "
            f"{', '.join(map(repr, tokens[:SHOWN_TOKENS]))}; name a model of the same tokenizer, "
            "such as the one that training started from"
        )


@asynccontextmanager
async def _engines(
    inputs: RunInputs,
    model: Path,
    note: Note,
    scores_responses: bool,
    scorer_state: Mapping[str, Any] | None = None,
) -> AsyncIterator[Session]:
    """The run's own engines and reward service, with these weights."""
    async with open_engines(
        inputs, note, model, scorer_state, scores_responses=scores_responses
    ) as services:
        responses = services.engine if scores_responses else None
        yield Session(inputs.encode, services.engine, services.scorer, responses)
