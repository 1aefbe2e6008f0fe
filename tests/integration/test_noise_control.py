"""What a vision policy answers comes from the picture: with noise in its place, it is chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from policy.builtin.picture_task import TASK, PictureTask
from policy.builtin.seeing import EYES, LANGUAGE, RESAMPLER, TOWER, SeeingRecipe
from policy.builtin.vision_policy import (
    TinyVisionName,
    VisionWarmupRecipe,
    ensure_tiny_vision_policy,
)
from policy.builtin.warmup import heldout_accuracy
from policy.models.minicpmv import MiniCPMVInputs
from policy.models.qwen_vl import QwenVLInputs
from rl.data.media.names import RenderedImage, StillImage
from rl.loop.interfaces import VisualInputs

# The likeliest of the sums of three digits, 13 or 14, is right in 75 of 1,000 pictures.
CHANCE = 0.075
PICTURES = 256
# Three standard deviations of chance over that many pictures.
SLACK = 3 * (CHANCE * (1 - CHANCE) / PICTURES) ** 0.5


class Noise:
    """A store that shows every picture as noise of its own."""

    def read(self, medium: RenderedImage) -> StillImage:
        rng = np.random.default_rng(medium.index)
        shades = rng.integers(0, 256, (TASK["height"], TASK["width"], 3), dtype=np.uint8)
        return StillImage(Image.fromarray(shades), "noise")


# Warm-ups on clean pictures, which such a policy then reads well enough to show it.
IMITATION = VisionWarmupRecipe(min_steps=450, max_steps=450, misread=0.0, answer_slips=0.0)
STAGES = SeeingRecipe(stages=(LANGUAGE, TOWER, RESAMPLER, EYES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "open_inputs"),
    [("tiny_qwen_vl", IMITATION, QwenVLInputs), ("tiny_minicpmv", STAGES, MiniCPMVInputs)],
)
def test_noise_in_a_pictures_place_brings_accuracy_to_chance(
    tmp_path: Path,
    name: TinyVisionName,
    recipe: VisionWarmupRecipe | SeeingRecipe,
    open_inputs: Callable[[Path, Any], VisualInputs],
):
    policy = ensure_tiny_vision_policy(name, tmp_path, recipe=recipe)
    model = AutoModelForImageTextToText.from_pretrained(policy, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
    clean = TASK | {"jitter": recipe.clean_jitter, "noise": recipe.clean_noise}
    task = PictureTask.open(policy, tokenizer, clean)
    torch.manual_seed(0)
    seen = heldout_accuracy(model, task, PICTURES)
    blind = heldout_accuracy(model, replace(task, inputs=open_inputs(policy, Noise())), PICTURES)
    assert min(seen.values()) > 3 * CHANCE
    assert max(blind.values()) < CHANCE + SLACK
