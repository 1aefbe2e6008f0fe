from pathlib import Path

import pytest

from rl.config.keys import RecipeError
from rl.config.recipe import load
from rl.sweep.arms import load_sweep
from rollout.prompts.stream import PromptStream

CPU = ["config=sweep_ratio.yaml", "scale=cpu_tiny"]
# Where the number of arms does not matter: each is a recipe to be read and checked.
TWO_ARMS = [*CPU, "long_share=[0,1]", "seeds=[0]"]


@pytest.fixture(scope="module")
def shipped():
    return load_sweep(CPU)


def test_the_shipped_sweep_has_the_six_ratios_twice(shipped):
    sweep = shipped
    assert [arm.point.long_share for arm in sweep.arms[::2]] == [0, 0.25, 0.33, 0.5, 0.75, 1]
    assert [arm.seed for arm in sweep.arms] == [0, 1] * 6
    assert sweep.root == Path("runs/sweep_ratio").absolute()


# On CPU the test above has loaded it.
@pytest.mark.parametrize("scale", ["one_gpu", "node_8gpu", "cluster"])
def test_the_shipped_sweep_loads_at_every_scale(scale):
    sweep = load_sweep(["config=sweep_ratio.yaml", f"scale={scale}", "arms_at_once=null"])
    assert len(sweep.arms) == 12
    assert sweep.config.arms_at_once is None


def test_an_arm_gives_the_thinking_mode_its_share_and_the_other_the_rest(shipped):
    for arm in shipped.arms:
        shares = {name: mode.share for name, mode in arm.config.modes.items()}
        assert shares["long"] == arm.point.long_share
        assert shares["short"] == pytest.approx(1 - arm.point.long_share)


def test_all_arms_ask_the_same_prompts_in_the_same_order_but_draw_modes_by_their_seed():
    arms = load_sweep([*CPU, "long_share=[0,0.5,1]", "seeds=[3,4]"]).arms
    asked = {arm.name: PromptStream.open(arm.config).prompts(1) for arm in arms}
    first = [(p.messages, p.reference, p.task) for p in asked[arms[0].name]]
    assert len(first) == 96
    for prompts in asked.values():
        assert [(p.messages, p.reference, p.task) for p in prompts] == first
    assert {arm.config.seed for arm in arms} == {3, 4}


def test_a_run_of_its_own_seed_asks_other_prompts():
    streams = [
        PromptStream.open(load(["config=hybrid_50_50.yaml", "scale=cpu_tiny", f"seed={s}"]).config)
        for s in (3, 4)
    ]
    first, second = ([p.messages for p in stream.prompts(0)] for stream in streams)
    assert first != second


def test_every_arm_has_a_run_directory_of_its_own():
    sweep = load_sweep([*CPU, "run=somewhere", "long_share=[0.5]", "seeds=[0,1]"])
    directories = [arm.config.run for arm in sweep.arms]
    root = Path("somewhere").absolute()
    assert directories == [str(root / "arms" / f"long_50_seed_{seed}") for seed in (0, 1)]


def test_other_keys_vary_with_the_share_and_by_themselves():
    varied = "arms.rollout.group_size=[4,8]"
    sweep = load_sweep([*CPU, "long_share=[0,1]", "seeds=[0]", varied])
    found = [(a.point.long_share, a.config.rollout.group_size) for a in sweep.arms]
    assert found == [(0, 4), (0, 8), (1, 4), (1, 8)]
    alone = load_sweep([*CPU, "long_share=[]", "seeds=[0]", varied])
    assert [arm.name for arm in alone.arms] == ["group_size_4_seed_0", "group_size_8_seed_0"]
    assert alone.arms[0].config.modes["long"].share == 0.5


def test_variants_set_several_keys_each_and_combine_with_all_that_varies():
    variants = "variants={plain: {}, wide: {rollout: {group_size: 16}, steps: 40}}"
    sweep = load_sweep([*CPU, "long_share=[0,1]", "seeds=[0]", variants])
    assert [arm.name for arm in sweep.arms] == [
        *("long_0_plain_seed_0", "long_100_plain_seed_0"),
        *("long_0_wide_seed_0", "long_100_wide_seed_0"),
    ]
    found = [(a.config.steps, a.config.rollout.group_size) for a in sweep.arms]
    assert found == [(80, 8), (80, 8), (40, 16), (40, 16)]
    assert sweep.arms[2].point.labels == ["0 % long", "wide"]


def test_the_shipped_study_of_rewards_adds_one_reward_at_a_time():
    arms = load_sweep(["config=sweep_rewards.yaml", "scale=cpu_tiny", "seeds=[0]"]).arms
    rewards = [arm.config.reward for arm in arms]
    assert [reward.probability is not None for reward in rewards] == [False, True, True, True]
    reads = [reward.preference and reward.preference.reads for reward in rewards]
    assert reads == [None, None, "answer", "response"]


def test_the_shipped_study_of_transfer_trains_all_parts_or_some():
    arms = load_sweep(["config=sweep_transfer.yaml", "scale=cpu_tiny", "seeds=[0]"]).arms
    found = [(arm.point.long_share, set(arm.config.policy.train)) for arm in arms]
    parts = [{"vision", "resampler", "llm"}, {"vision", "resampler"}, {"llm"}]
    assert found == [(share, part) for part in parts for share in (0, 0.5, 1)]


def test_other_keys_of_the_command_line_are_settings_of_every_arm():
    sweep = load_sweep([*TWO_ARMS, "steps=7", "eval.every=2"])
    assert {(arm.config.steps, arm.config.eval.every) for arm in sweep.arms} == {(7, 2)}
    # What the sweep sets beside them stays.
    assert {arm.config.eval.prompts for arm in sweep.arms} == {384}
    assert {arm.config.reward.preference for arm in sweep.arms} == {None}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("long_share=[0,1.5]", "long_share.1: must be less than or equal to 1, got 1.5"),
        ("long_share=[-0.1]", "long_share.0: must be greater than or equal to 0, got -0.1"),
        ("arms.rollout.grup_size=[4]", "did you mean rollout.group_size"),
        ("arms.rollout.group_size=4", "arms.rollout.group_size"),
        ("arms.rollout.group_size=[]", "arms.rollout.group_size"),
        ("long_share=[0.5,0.5]", "long_50_seed_0: more than one arm"),
        ("seeds=[1,1]", "more than one arm of this name"),
        ("seeds=[]", "seeds"),
        ("seedz=[1]", "seedz: no such key"),
        ("recipe=nope.yaml", "nope.yaml: no such file"),
        ("rollout.group_size=1", "rollout.group_size: must be greater than 1"),
        ("seed=5", "seed: the sweep sets it in every arm; give seeds"),
        ("arms.data.seed=[1,2]", "data.seed: the sweep sets it in every arm"),
        ("modes.long.share=0.9", "the sweep sets it from long_share"),
        ("variants.a.data.seed=1", "data.seed: the sweep sets it in every arm"),
        ("variants.a.rollout.grup_size=4", "arm long_0_a: rollout.grup_size: no such key"),
        ("variants.a=5", "variants.a: "),
        ("arms=5", "arms: must be keys with lists of values, got 5"),
        ("arms_at_once=0", "arms_at_once: must be greater than 0"),
    ],
)
def test_bad_input_names_the_key_and_what_it_got(argument, said):
    with pytest.raises(RecipeError, match=said.replace("[", r"\[")):
        load_sweep([*TWO_ARMS, argument])


def test_shares_need_one_mode_that_thinks(tmp_path):
    recipe = tmp_path / "three.yaml"
    recipe.write_text(
        "extends: hybrid_50_50.yaml\n"
        "modes: {medium: {share: 0.0, thinking: true, max_tokens: 16}}\n"
    )
    with pytest.raises(RecipeError, match="one mode that thinks"):
        load_sweep([*CPU, f"recipe={recipe}"])


def test_the_launcher_says_that_a_sweep_is_none_of_its_recipes():
    with pytest.raises(RecipeError, match=r"is a sweep.*rl\.sweep config=sweep_ratio\.yaml"):
        load(["config=sweep_ratio.yaml"])
    with pytest.raises(RecipeError, match="is no sweep"):
        load_sweep(["config=hybrid_50_50.yaml"])


def test_a_sweep_file_takes_lists_and_kinds_of_data_in_any_order(tmp_path):
    sweep = tmp_path / "mine.yaml"
    sweep.write_text(
        "recipe: hybrid_50_50.yaml\n"
        "arms: {policy.optimizer.betas: [[0.9, 0.99], [0.9, 0.95]]}\n"
        "settings:\n  data: {path: leg_counting, kind: reasoning_gym}\n"
    )
    loaded = load_sweep([f"config={sweep}", "scale=cpu_tiny"])
    assert [arm.config.policy.optimizer.betas for arm in loaded.arms] == [(0.9, 0.99), (0.9, 0.95)]
    assert loaded.arms[0].config.data.path == "leg_counting"
