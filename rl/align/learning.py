"""DPO on preference pairs: the learning stage of a pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from policy.dpo import DpoPair, train_dpo
from rl.align.claims.types import PreferencePair
from rl.config.run import Config
from rl.evaluate.evaluation import Encode
from rl.system.cluster import Cluster


async def learn(
    config: Config,
    policy: Path,
    pairs: Sequence[PreferencePair],
    encode: Encode,
    directory: Path,
    cluster: Cluster,
    on_step: Callable[[int, Mapping[str, float]], None],
) -> Path:
    """Return the directory of the policy that has learned from the pairs.

    policy: the directory of the one before, which is the reference too. directory: where the
    training keeps what it resumes from. on_step: told of every step and its metrics, also of those
    that an earlier, killed process made.
    """
    # The tokens that were sampled, and no text tokenised anew: another spelling of the same text in
    # tokens is another response to the policy.
    examples = [
        DpoPair(
            id=pair.id,
            prompt_token_ids=encode(pair.prompt, pair.mode),
            media=pair.prompt.media,
            chosen_token_ids=pair.chosen.response.token_ids,
            rejected_token_ids=pair.rejected.response.token_ids,
        )
        for pair in pairs
    ]
    return await train_dpo(config, policy, examples, directory, cluster, on_step)
