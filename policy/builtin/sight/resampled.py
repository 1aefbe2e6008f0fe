"""Tiny MiniCPM-Vs that pack what they see more or less tightly, for a study of their resampler.

They differ in the visual tokens of a package and in the frames of a video that one package holds.
Each starts from the usual policy. A new resampler first learns alone between its tower and its
language model, then all parts learn: the same number of steps for every one of them, and not until
they are good enough, so that what they reach can be compared.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from policy.builtin.sight.picture_task import all_ways
from policy.builtin.sight.seeing import FRAMES, POLICY, RESAMPLER, SeeingRecipe, learn_to_see
from policy.builtin.sight.vision_policy import (
    DEFAULT_SEED,
    ensure_tiny_vision_policy,
    write_preprocessor,
)
from policy.builtin.warmup import reproducible, save_warmed
from policy.models.cache import default_cache_dir, digest, made_once
from policy.models.minicpmv import MiniCPMV, MiniCPMVConfig

RECIPE = SeeingRecipe(
    stages=(
        replace(RESAMPLER, min_steps=250, max_steps=250, enough={}),
        replace(FRAMES, min_steps=300, max_steps=300, enough={}),
        replace(POLICY, min_steps=300, max_steps=300, enough={}, learning_rate=2e-3),
    )
)


def ensure_resampled_policy(
    tokens: int,
    frames: int,
    cache_dir: Path | None = None,
    seed: int | None = None,
    recipe: SeeingRecipe = RECIPE,
    policy: Path | None = None,
) -> Path:
    """Return the directory of a policy that packs up to `frames` frames, or a picture, into
    `tokens` visual tokens, making it on first use.

    policy: the one it starts from; made if not given. The first use takes about four minutes on one
    core, and seven more for the policy. `warmup.json` in it says how it ended.
    """
    cache_dir, seed = cache_dir or default_cache_dir(), DEFAULT_SEED if seed is None else seed
    policy = policy or ensure_tiny_vision_policy("tiny_minicpmv", cache_dir, seed)

    def write(directory: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
        disable_progress_bar()
        with reproducible(seed):
            usual = MiniCPMV.from_pretrained(policy, dtype=torch.float32, local_files_only=True)
            config = MiniCPMVConfig.from_pretrained(policy, local_files_only=True)
            config.query_num = tokens
            model = MiniCPMV(config)
            model.llm.load_state_dict(usual.llm.state_dict())
            model.vpm.load_state_dict(usual.vpm.state_dict())
            # The warm-up shows pictures as the learner does, whose inputs read these files.
            config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            write_preprocessor(directory, "tiny_minicpmv", {"image_feature_size": tokens})
            shown = partial(all_ways, frames=frames)
            report = learn_to_see(model.train(), directory, tokenizer, seed, recipe, shown)
        save_warmed(directory, model, tokenizer, report)

    decides = [asdict(recipe), tokens, frames, seed, policy.name]
    name = f"tiny_minicpmv_{tokens}_tokens_{frames}_frames-{digest(decides)}"
    return made_once(cache_dir / name, write)
