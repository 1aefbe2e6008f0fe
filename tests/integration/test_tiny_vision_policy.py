from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from policy.builtin.sight import describing_task
from policy.builtin.sight.picture_task import (
    TASK,
    TASK_NAME,
    PictureTask,
    all_ways,
    worked_example,
)
from policy.builtin.sight.resampled import ensure_resampled_policy
from policy.builtin.sight.seeing import CaptionTask, SeeingRecipe
from policy.builtin.sight.vision_policy import (
    KINDS,
    TinyVisionName,
    VisionWarmupRecipe,
    ensure_tiny_vision_policy,
)
from policy.builtin.sight.visual_task import VisualTask
from policy.builtin.tokenizer import EOS, make_tokenizer
from policy.builtin.warmup import imitation_loss, laid_out
from policy.models.checks import read_config, refuse_unusable_weights
from rl.config.data import SourceConfig
from rl.config.recipe import load
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import read_settings
from rl.data.tasks.pictures.descriptions import Shape
from rollout.chat import ChatTemplate
from rollout.prompts.procedural import VisualSource

NAMES: tuple[TinyVisionName, ...] = (
    "tiny_qwen_vl",
    "tiny_minicpmv",
    "tiny_reconstructor",
    "tiny_describer",
)
DIGITS = (3, 7, 2)
BRIEF_IMITATION = VisionWarmupRecipe(
    min_steps=2,
    max_steps=2,
    examples_per_step=5,
    heldout_questions=2,
    enough_short=0.0,
    enough_long=0.0,
)
BRIEF_STAGES = tuple(
    replace(stage, min_steps=2, max_steps=2, examples_per_step=5, heldout_questions=2, enough={})
    for stage in SeeingRecipe().stages
)
BRIEF = {
    "tiny_qwen_vl": BRIEF_IMITATION,
    "tiny_minicpmv": SeeingRecipe(stages=BRIEF_STAGES),
    "tiny_reconstructor": BRIEF_IMITATION,
    "tiny_describer": BRIEF_IMITATION,
}
RECIPE = "config=hybrid_50_50_vision.yaml"


@pytest.fixture(scope="module", params=NAMES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_tiny_vision_policy(
        request.param, tmp_path_factory.mktemp("cache"), 0, BRIEF[request.param]
    )


def _name(policy: Path) -> TinyVisionName:
    return next(name for name in NAMES if policy.name.startswith(name))


def _opened(policy: Path) -> tuple[Any, VisualTask]:
    model = AutoModelForImageTextToText.from_pretrained(policy, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
    return model, KINDS[_name(policy)].task.open(policy, tokenizer, _data(policy))


def _data(policy: Path) -> SourceConfig:
    return KINDS[_name(policy)].shown()


def test_a_long_example_reads_then_adds_digit_by_digit() -> None:
    expected = "372\n7+03=10\n2+10=12\n</think>\n\n12"
    assert worked_example(DIGITS, thinking=True) == expected
    assert worked_example(DIGITS, thinking=False) == "12"
    assert worked_example((0, 1, 2), thinking=True).endswith("\n2+01=03\n</think>\n\n03")


def test_a_misread_example_reasons_on_from_what_it_read() -> None:
    slips = Slips(np.random.default_rng(0), reasoning=1.0, answer=1.0)
    texts = [worked_example(DIGITS, True, slips) for _ in range(200)]
    assert sum(text.startswith("372") for text in texts) < 5
    for text in texts:
        assert sum(map(int, text[:3])) == int(text[-2:])
    answers = {int(worked_example(DIGITS, False, slips)) for _ in range(200)}
    assert answers == {10, 11, 13, 14}


def test_the_directory_is_one_that_learner_and_engines_load(policy: Path) -> None:
    refuse_unusable_weights(policy, read_config(policy))
    model, _ = _opened(policy)
    assert 500_000 < model.num_parameters() < 1_000_000
    assert model.dtype == torch.float32
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() != embedding.weight.data_ptr()
    eos = AutoTokenizer.from_pretrained(policy).eos_token_id
    assert GenerationConfig.from_pretrained(policy).eos_token_id == eos
    report = json.loads((policy / "warmup.json").read_text())
    assert report["is_ready"]
    # One of a policy that learns in stages tells of each.
    stages = report.get("stages", {"all": report})
    assert all((stage["steps"], stage["is_ready"]) == (2, True) for stage in stages.values())


def test_the_warm_up_asks_as_a_run_does(policy: Path) -> None:
    """The same tokens as the chat template, the data source and the engine's expansion give."""
    chat = ChatTemplate(str(policy))
    assert chat.switch == "enable_thinking"
    _, task = _opened(policy)
    for way, source in _data(policy).sources.items():
        prompt = VisualSource(source, 0, way).train(0)
        (first,) = replace(task, ways=(way,)).questions(0, 1, heldout=False)
        assert prompt.media == first.media
        for thinking in (False, True):
            asked = chat.prompt_token_ids(prompt, thinking)
            (meant,) = task.prompts([first], thinking)
            assert list(task.inputs.expanded(asked, prompt.media)) == meant


def test_a_picture_is_seen_whole_in_as_many_tokens_as_meant(policy: Path) -> None:
    _, task = _opened(policy)
    name, vocabulary = _name(policy), task.tokenizer.get_vocab()
    # One of each digit, of each cell of a form, or of each part of a description.
    count = {"tiny_reconstructor": 9, "tiny_describer": 4}.get(name, 3)
    for way in task.ways:
        kind = "video" if way == "video" else "image"
        marker = "<unk>" if name == "tiny_minicpmv" else f"<|{kind}_pad|>"
        views = 3 if way == "pictures" else 1
        assert task.prompt_ids[way, True].count(vocabulary[marker]) == count * views


@pytest.mark.parametrize("policy", ["tiny_minicpmv"], indirect=True)
def test_a_caption_stands_in_the_pictures_place(policy: Path) -> None:
    _, shown = _opened(policy)
    captions = replace(CaptionTask.open(policy, shown.tokenizer, all_ways()), inputs=None)
    for question in captions.questions(0, 5, heldout=False):
        (seen,), (read,) = shown.prompts([question], False), captions.prompts([question], False)
        places = [place for place, token in enumerate(seen) if token != read[place]]
        written = shown.tokenizer.decode([read[place] for place in places])
        assert len(read) == len(seen)
        each = 3 if len(question.media) > 1 else 1
        assert written == "".join(each * str(digit) for digit in question.addends)


def test_the_right_response_is_learned_from_the_picture(policy: Path) -> None:
    """Loss and gradient reach the tower, and another picture gives another loss."""
    model, task = _opened(policy)
    questions = task.questions(0, 4, heldout=False)
    loss = imitation_loss(model, task, questions, short_share=0.5)
    loss.backward()
    tower = [p.grad for n, p in model.named_parameters() if "visual." in n or "vpm." in n]
    assert all(grad is not None for grad in tower)
    assert sum(grad.abs().sum() for grad in tower if grad is not None) > 0
    with torch.no_grad():
        seen = []
        for shown in (questions, task.questions(4, 4, heldout=False)):
            token_ids, visual = laid_out(task, shown, task.prompts(shown, thinking=False))
            seen.append(model(input_ids=token_ids, use_cache=False, **visual).logits)
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_warm_up_depends_on_the_seed_alone(policy: Path, tmp_path: Path) -> None:
    name = _name(policy)
    torch.manual_seed(17)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = ensure_tiny_vision_policy(name, tmp_path, 0, BRIEF[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert again.name == policy.name
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (policy / weights).read_bytes()
    other = ensure_tiny_vision_policy(name, tmp_path, 1, BRIEF[name])
    assert (other / weights).read_bytes() != (policy / weights).read_bytes()


@pytest.mark.parametrize("policy", ["tiny_minicpmv"], indirect=True)
def test_a_resampler_of_its_own_packs_what_it_is_asked_to(policy: Path, tmp_path: Path) -> None:
    """One that learns alone, so that tower and language model show where they come from."""
    alone = SeeingRecipe(stages=BRIEF_STAGES[2:3])
    packed = ensure_resampled_policy(2, 2, tmp_path, 0, alone, policy)
    usual, model = (AutoModelForImageTextToText.from_pretrained(p) for p in (policy, packed))
    assert (model.config.query_num, len(model.resampler.query)) == (2, 2)
    for part in ("vpm", "llm"):
        theirs = getattr(usual, part).state_dict()
        assert all(w.equal(theirs[name]) for name, w in getattr(model, part).state_dict().items())
    task = PictureTask.open(packed, AutoTokenizer.from_pretrained(packed), all_ways(frames=2))
    placeholder = task.tokenizer.get_vocab()["<unk>"]
    num_seen = {way: task.prompt_ids[way, False].count(placeholder) for way in task.ways}
    # Two tokens each: one picture, three pictures, and three packages of two frames.
    assert num_seen == {"picture": 2, "pictures": 6, "video": 6}


def test_the_recipe_trains_on_what_the_policy_was_warmed_up_for() -> None:
    config = load([RECIPE]).config
    assert (config.data.kind, config.data.path) == ("visual", TASK_NAME)
    assert read_settings(TASK_NAME, config.data.settings) == read_settings(TASK_NAME, TASK)
    assert config.policy.model == "builtin:tiny_qwen_vl"
    mixed = load(["config=hybrid_50_50_minicpm_v.yaml"]).config.data
    assert (mixed.mix, mixed.video) == (all_ways().mix, all_ways().video)
    assert config.resources.gpus == 0
    shares = {name: (mode.share, mode.thinking) for name, mode in config.modes.items()}
    assert shares == {"short": (0.5, False), "long": (0.5, True)}
    for name, thinking, length in (("short", False, 3), ("long", True, 26)):
        text = worked_example(DIGITS, thinking) + EOS
        assert len(make_tokenizer(64)(text)["input_ids"]) == length
        assert length < config.modes[name].max_tokens


def test_the_recipe_takes_a_scale_with_gpus_and_a_published_model() -> None:
    own = ["policy.model=openbmb/MiniCPM-V-4_5", "reward.preference=null"]
    config = load([RECIPE, "scale=node_8gpu", *own]).config
    assert (config.data.kind, config.data.path) == ("visual", "charts")
    assert config.resources.gpus == 8
    assert config.modes["long"].max_tokens >= 1024


def test_the_recipe_of_descriptions_asks_for_what_the_describer_was_warmed_up_for() -> None:
    config = load(["config=rlaif_v_describe.yaml", "scale=cpu_tiny"]).config
    meant = describing_task.all_ways()
    assert (config.data.mix, config.data.video) == (meant.mix, meant.video)
    assert config.policy.model == "builtin:tiny_describer"
    tokenizer = make_tokenizer(64)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in describing_task.WORDS])
    parts = (Shape("purple", "triangle"),) * 4
    for name, thinking, length in (("short", False, 21), ("long", True, 47)):
        text = describing_task.worked_example(parts, thinking) + EOS
        assert len(tokenizer(text)["input_ids"]) == length
        most = describing_task.DescribingTask.max_response_tokens[thinking]
        assert length < most == config.modes[name].max_tokens
