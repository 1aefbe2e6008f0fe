"""Preference pairs as token ids: checked, kept in a file, ordered, collated."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars

from rl.config.run import Config
from rl.data.fingerprint import digest
from rl.data.media.names import Medium, from_json, to_json
from rl.loop.batching import reference_sample
from rl.loop.interfaces import VisualArguments, VisualInputs
from rl.loop.stages import Prompt, ReferenceRequest

# Pairs that an error names; the others are counted.
MAX_NAMED = 5
# Key of a batch's media. No model takes an argument of this name, so none gets it by accident.
MEDIA = "media"
# Last file of a Trainer's checkpoint: one without it was being written when its process ended.
COMPLETE = "complete"


@dataclass(frozen=True)
class DpoPair:
    """Two responses to one prompt, as they were sampled: no text is tokenised again."""

    id: str
    prompt_token_ids: tuple[int, ...]
    """With one marker for each medium, as in rl.loop.stages.RolloutRequest."""
    media: tuple[Medium, ...]
    chosen_token_ids: tuple[int, ...]
    rejected_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class BatchMedia:
    """Media of a batch's rows.

    In a wrapper because accelerate moves everything in a batch that has a `to`, and moving these
    takes the model's type too.
    """

    visual: VisualArguments | None


def refuse_bad_pairs(pairs: Sequence[DpoPair], max_length: int) -> None:
    """Raise ValueError naming pairs that cannot be trained on.

    max_length: tokens of prompt and response; media are counted once they are read (PairCollator).
    """
    faults = []
    for pair in pairs:
        chosen, rejected = pair.chosen_token_ids, pair.rejected_token_ids
        length = len(pair.prompt_token_ids) + max(len(chosen), len(rejected))
        faulty = {
            # Nothing is there that the first token of a response could be predicted from.
            "its prompt is empty": not pair.prompt_token_ids,
            "its chosen response is empty": not chosen,
            "its rejected response is empty": not rejected,
            # Their margin is zero whatever the policy learns: the pair would dilute the batch.
            "its responses are the same": chosen == rejected,
            f"{length} tokens, of at most {max_length}": length > max_length,
        }
        faults += [f"{pair.id} ({why})" for why, is_so in faulty.items() if is_so][:1]
    if faults:
        more = f" and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise ValueError(
            f"{len(faults)} of {len(pairs)} preference pairs cannot be trained on: "
            f"{'; '.join(faults[:MAX_NAMED])}{more}; leave them out, or raise "
            "rollout.max_model_length for those that are too long"
        )


def reference_batch_size(num_pairs: int, config: Config) -> int:
    """Pairs that a rank forwards at once in the pass over the reference.

    Raises ValueError if ZeRO-3 cannot go from that pass to the training.
    """
    policy, at_once = config.policy, config.align.dpo.micro_batch_pairs
    if policy.effective_zero_stage < 3:
        return at_once
    # DeepSpeed records the order of a model's modules in its first forward, by their numbers, and
    # closes the record at the start of the second. TRL makes an engine for the reference and then
    # one for the training, which numbers the modules anew while the hooks of the first stay. If the
    # first has made a single forward, its record is still open: the training's first forward looks
    # the new numbers up in it and fails with "pop from an empty deque". So every rank makes two.
    at_once = min(at_once, (num_pairs - 1) // policy.ranks)
    if at_once == 0:
        raise ValueError(
            f"ZeRO-3 needs more preference pairs than ranks, because each rank must forward twice "
            f"before it trains, and got {num_pairs} pairs for policy.ranks={policy.ranks}; sample "
            "more prompts, or lower policy.ranks or policy.zero_stage"
        )
    return at_once


def keep_pairs(pairs: Sequence[DpoPair], directory: Path) -> Path:
    """Write the pairs as a data set of `directory`, unless they are there; return where it is.

    TRL keeps the reference log-probabilities beside the data set. Raises ValueError if the
    directory holds others.
    """
    # The columns that TRL's trainer works on, and what media stand in the prompt.
    rows = [
        {
            "id": pair.id,
            "prompt_ids": list(pair.prompt_token_ids),
            "chosen_ids": list(pair.chosen_token_ids),
            "rejected_ids": list(pair.rejected_token_ids),
            "media_json": to_json(pair.media),
        }
        for pair in pairs
    ]
    # Named by its content, so that checkpoints of other pairs can never be resumed with these.
    target = directory / ("pairs-" + digest("\n".join(map(repr, rows))))
    if others := [path.name for path in directory.glob("pairs-*") if path != target]:
        raise ValueError(
            f"{directory} was begun with other pairs ({others[0]}, now {target.name}); remove it "
            "to train on these from the start"
        )
    if not target.exists():
        # Renamed when it is whole: a kill must not leave a part of it under its name.
        aside = directory / f".{target.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        disable_progress_bars()
        Dataset.from_list(rows).save_to_disk(aside)
        aside.rename(target)
    return target


def training_order(num_pairs: int, count: int, seed: int) -> list[int]:
    """The pairs of `count` places of training: all in a random order, then all in another one.

    A longer training begins like a shorter one.
    """
    num_rounds = -(-count // num_pairs)
    # A generator for each round, because its order must not depend on how many rounds there are.
    rounds = [np.random.default_rng([seed, r]).permutation(num_pairs) for r in range(num_rounds)]
    return np.concatenate(rounds)[:count].tolist()


class PairCollator:
    """Rows of `keep_pairs` -> a batch of TRL's trainer: chosen rows, then rejected ones."""

    def __init__(self, pad_token_id: int, inputs: VisualInputs | None, max_length: int) -> None:
        # TRL takes seconds to load, and the driver, which checks pairs, needs nothing of it.
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        self._pad = DataCollatorForPreference(pad_token_id=pad_token_id)
        self._inputs = inputs
        self._max_length = max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | BatchMedia]:
        """[2P, T] token ids, attention mask and completion mask of P pairs, and their media.

        Raises ValueError, naming the pair, if it is too long with every token of its media.
        """
        shown = [from_json(row["media_json"]) for row in rows]
        if self._inputs is None:
            if hidden := [row["id"] for row, media in zip(rows, shown, strict=True) if media]:
                raise ValueError(f"pair {hidden[0]} shows media to a policy of text alone")
            return self._pad([dict(row) for row in rows])
        expanded = []
        for row, media in zip(rows, shown, strict=True):
            prompt = list(self._inputs.expanded(row["prompt_ids"], media))
            length = len(prompt) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            if length > self._max_length:
                raise ValueError(
                    f"preference pair {row['id']} has {length} tokens with those of its media, of "
                    f"at most {self._max_length}; leave it out or raise rollout.max_model_length"
                )
            expanded.append({**row, "prompt_ids": prompt})
        batch = self._pad(expanded)
        samples = []
        # In the order of the batch's rows: all that are chosen, then all that are rejected.
        for column in ("chosen_ids", "rejected_ids"):
            for row, media in zip(expanded, shown, strict=True):
                prompt, context = Prompt(row["id"], (), "", media=media), tuple(row["prompt_ids"])
                name, response = f"{row['id']}/{column}", tuple(row[column])
                request = ReferenceRequest(name, prompt, context, response, temperature=1.0)
                samples.append(reference_sample(request, context))
        batch[MEDIA] = BatchMedia(self._inputs(samples, batch["input_ids"]))
        return batch
