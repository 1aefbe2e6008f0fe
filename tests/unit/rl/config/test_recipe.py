import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.recipe import (
    CONFIGS,
    SCALES,
    RecipeError,
    count_visible_gpus,
    dump,
    find_scale,
    load,
    visible_gpu_bytes,
)

HYBRID = "config=hybrid_50_50.yaml"
SWEEPS = sorted(path.name for path in CONFIGS.glob("sweep_*.yaml"))
RECIPES = sorted({path.name for path in CONFIGS.glob("*.yaml")} - set(SWEEPS))
SCALE_NAMES = sorted(path.stem for path in SCALES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def refused(*arguments: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(arguments)
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scale", SCALE_NAMES)
def test_every_shipped_recipe_loads_at_every_scale_and_dumps_to_itself(recipe, scale):
    launch = load([f"config={recipe}", f"scale={scale}"])
    assert launch.notes == ()
    write("again.yaml", dump(launch.config))
    assert load(["config=again.yaml"]).config == launch.config
    # Engines with GPUs of their own sample ahead.
    resources = launch.config.resources
    is_split = resources.gpus > 0 and not resources.colocate
    assert launch.config.rollout.max_staleness == int(is_split)
    # Pictures are decoded, and an optimizer may be offloaded to, on more than one core.
    assert min(resources.rank_cpus, resources.engine_cpus) == (4 if resources.gpus else 1)


def test_the_shipped_files_are_the_documented_ones():
    assert RECIPES == [
        "evaluate.yaml",
        "hybrid_50_50.yaml",
        "hybrid_50_50_minicpm_v.yaml",
        "hybrid_50_50_vision.yaml",
        "hybrid_auto.yaml",
        "long_only.yaml",
        "rlaif_v.yaml",
        "rlaif_v_describe.yaml",
        "short_only.yaml",
    ]
    studies = ["auto", "corruption", "ratio", "resampler", "rewards", "transfer", "video", "vision"]
    assert [f"sweep_{study}.yaml" for study in studies] == SWEEPS
    with_gpus = ["four_gpus", "node_8gpu", "one_gpu", "two_gpus"]
    assert set(SCALE_NAMES) == {"cluster", "cpu", "cpu_tiny", *with_gpus}


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.yaml"), *SCALES.glob("*.yaml")], ids=str)
def test_shipped_files_open_with_their_command_and_hardware(path):
    comment = path.read_text().partition("\n\n")[0] + path.read_text()[:1500]
    assert re.search(r"python -m rl\.(launch|sweep|evaluate) +config=", comment)
    assert "# Hardware:" in comment


def test_layers_win_in_order():
    write("base.yaml", "extends: hybrid_50_50.yaml\nseed: 1\nsteps: 11\ncheckpoint: {every: 3}\n")
    write(
        "mine.yaml", "extends: base.yaml\nseed: 2\ncheckpoint: {keep_last: 9}\nscale: mine_too.yaml"
    )
    write("mine_too.yaml", "steps: 12\nrollout: {group_size: 4}\n")
    config = load(["config=mine.yaml", "rollout.group_size=6"]).config
    assert (config.seed, config.steps) == (2, 12)
    assert (config.checkpoint.every, config.checkpoint.keep_last) == (3, 9)
    assert config.rollout.group_size == 6
    assert config.run == "runs/mine"


def test_scientific_notation_is_a_number_and_run_may_look_like_one():
    config = load([HYBRID, "policy.optimizer.learning_rate=3e-7", "run=2024"]).config
    assert config.policy.optimizer.learning_rate == 3e-7
    assert config.run == "2024"


def test_paper_settings_at_the_largest_scale():
    config = load([HYBRID, "scale=cluster"]).config
    assert (config.rollout.prompts_per_step, config.rollout.group_size) == (128, 8)
    assert config.modes["long"].max_tokens == 8192
    assert config.policy.optimizer.learning_rate == 1e-6
    assert {mode.temperature for mode in config.modes.values()} == {1.0}


def test_a_layer_that_names_the_kind_of_data_replaces_all_of_it():
    config = load([HYBRID, "scale=one_gpu", "data.kind=dataset", "data.path=a.jsonl"]).config
    assert (config.data.kind, config.data.path) == ("dataset", "a.jsonl")
    assert config.data.settings == {}
    assert config.data.system_prompt is None
    kept = load([HYBRID, "scale=one_gpu", "data.path=gcd"]).config
    assert kept.data.kind == "reasoning_gym"
    assert kept.data.system_prompt is not None


def test_a_scale_that_replaces_what_a_person_set_is_noted():
    write("mine.yaml", "extends: hybrid_50_50.yaml\npolicy: {model: my/model}\nseed: 3\n")
    (note,) = load(["config=mine.yaml", "scale=one_gpu"]).notes
    assert "policy.model 'my/model' by 'Qwen/Qwen3-1.7B'" in note
    assert "seed" not in note
    assert load(["config=mine.yaml", "scale=null"]).notes == ()


def test_a_value_that_a_scale_of_the_users_sets_again_is_theirs():
    write("mine.yaml", "extends: hybrid_50_50.yaml\ndata: {kind: dataset, path: rows.jsonl}\n")
    write(
        "laptop.yaml",
        "extends: scale/cpu_tiny.yaml\n"
        "data: {kind: dataset, path: rows.jsonl}\nmodes: {long: {max_tokens: 99}}\n"
        "policy: {model: ./mine}\nreward: {preference: null}\n",
    )
    loaded = load(["config=mine.yaml", "scale=laptop.yaml"])
    assert (loaded.config.data.path, loaded.config.modes["long"].max_tokens) == ("rows.jsonl", 99)
    assert loaded.notes == ()
    (note,) = load(["config=mine.yaml", "scale=cpu_tiny"]).notes
    assert "data.kind 'dataset' by 'chain_sum', data.path 'rows.jsonl' by None" in note
    assert "take scale=cpu" in note
    given = ["data.kind=dataset", "data.path=rows.jsonl", "reward.preference=null"]
    given.append("policy.model=./mine")
    assert load(["config=mine.yaml", "scale=cpu_tiny", *given]).notes == ()


def test_built_in_models_that_meet_other_data_are_noted():
    write("laptop.yaml", "extends: scale/cpu_tiny.yaml\ndata: {kind: dataset, path: a.jsonl}\n")
    (note,) = load([HYBRID, "scale=laptop.yaml"]).notes
    assert "policy.model=builtin:tiny and reward.preference.model=builtin:tiny" in note
    assert "the data are of kind dataset" in note and "chain_sum" not in note
    # A mixture of built-in tasks is no data set.
    assert not any(
        "built-in tasks alone" in n for n in load(["config=hybrid_50_50_minicpm_v.yaml"]).notes
    )


MINE = """
extends: hybrid_50_50.yaml
modes: {short: {share: 0.3}, long: {share: 0.7, max_tokens: 5000}}
data: {kind: dataset, path: rows.jsonl, columns: {question: problem}}
"""


def test_auto_on_a_machine_without_a_gpu_keeps_data_model_and_budgets_of_the_user(
    tmp_path, monkeypatch
):
    fake_nvidia_smi(tmp_path, monkeypatch, 0)
    write("mine.yaml", MINE)
    loaded = load(["config=mine.yaml", "policy.model=./mine"])
    config, (note,) = loaded.config, loaded.notes
    assert (config.data.path, config.data.columns.question) == ("rows.jsonl", "problem")
    assert config.policy.model == "./mine"
    assert config.reward.preference is None
    assert (config.modes["short"].max_tokens, config.modes["long"].max_tokens) == (256, 5000)
    # Room for the larger budget and a prompt, which nobody had to work out.
    assert config.rollout.max_model_length == 5000 + 1024
    assert config.rollout.engine["enforce_eager"] is True
    assert "no GPU is seen, so scale=auto takes cpu:" in note


@pytest.mark.parametrize(
    ("recipe", "given", "scale"),
    [
        (HYBRID, [], "cpu_tiny"),
        (HYBRID, ["modes.long.max_tokens=60", "seed=3"], "cpu_tiny"),
        (HYBRID, ["policy.model=builtin:tiny", "data.kind=chain_sum"], "cpu_tiny"),
        (HYBRID, ["policy.model=./mine"], "cpu"),
        (HYBRID, ["data.path=gcd"], "cpu"),
        (HYBRID, ["data.kind=dataset", "data.preset=gsm8k"], "cpu"),
        (HYBRID, ["data.kind=dataset", "data.mix.a.path=a.jsonl"], "cpu"),
        ("config=hybrid_50_50_vision.yaml", [], "cpu_tiny"),
        ("config=hybrid_50_50_vision.yaml", ["data.path=digits"], "cpu_tiny"),
        ("config=hybrid_50_50_vision.yaml", ["policy.model=./mine"], "cpu"),
        ("config=hybrid_50_50_minicpm_v.yaml", ["data.kind=dataset", "data.path=a"], "cpu"),
    ],
)
def test_auto_takes_the_built_in_world_only_where_nobody_brings_another(
    tmp_path, monkeypatch, recipe, given, scale
):
    fake_nvidia_smi(tmp_path, monkeypatch, 0)
    (note,) = load([recipe, *given]).notes
    assert f"scale=auto takes {scale}:" in note


def test_what_a_scale_has_as_defaults_stands_beneath_a_recipe_of_the_users():
    write("mine.yaml", MINE + "policy: {ranks: 2, dtype: bfloat16}\nsteps: 7\n")
    config = load(["config=mine.yaml", "scale=cpu", "eval.prompts=5"]).config
    assert (config.steps, config.policy.dtype, config.eval.prompts) == (7, "bfloat16", 5)
    assert config.rollout.group_size == 4
    # What a machine without a GPU can run is the scale's.
    assert config.policy.ranks == 1
    write("larger.yaml", "extends: scale/cpu.yaml\nsteps: 9\ndefaults: {seed: 4}\n")
    config = load(["config=mine.yaml", "scale=larger.yaml"]).config
    assert (config.steps, config.seed, config.modes["long"].max_tokens) == (9, 4, 5000)


def test_a_scale_leaves_out_the_modes_that_a_recipe_does_not_have():
    write(
        "own.yaml",
        "modes: {quick: {share: 1, thinking: false, max_tokens: 9}}\n"
        "data: {kind: chain_sum}\nsteps: 1\n",
    )
    config = load(["config=own.yaml", "scale=cpu"]).config
    assert list(config.modes) == ["quick"]
    assert config.rollout.max_model_length == 9 + 1024


def test_a_value_that_the_scale_repeats_is_not_replaced():
    write("mine.yaml", "extends: hybrid_50_50.yaml\npolicy: {dtype: bfloat16}\n")
    assert load(["config=mine.yaml", "scale=one_gpu"]).notes == ()


def test_a_share_of_prompts_for_a_reward_that_is_off_is_noted():
    (note,) = load([HYBRID, "scale=cpu_tiny", "reward.probability=null"]).notes
    assert "probability_share=0.125 has no effect" in note


def test_a_preference_model_that_sees_the_reasoning_is_noted():
    (note,) = load([HYBRID, "scale=cpu_tiny", "reward.preference.reads=response"]).notes
    assert "reads=response shows the preference model the reasoning, against the method" in note


def test_adapters_with_a_rate_for_all_weights_are_noted():
    (note,) = load([HYBRID, "scale=one_gpu", "policy.lora.rank=32"]).notes
    assert "learning_rate=1e-06" in note and "policy.lora" in note and "1e-5" in note
    given = ["policy.lora.rank=32", "policy.optimizer.learning_rate=1e-5"]
    assert load([HYBRID, "scale=one_gpu", *given]).notes == ()


def test_a_pass_after_rl_has_a_rate_of_its_own_for_adapters():
    lora = ["policy.lora.rank=32", "policy.optimizer.learning_rate=1e-5", "align.enabled=true"]
    (note,) = load([HYBRID, "scale=one_gpu", *lora]).notes
    assert "align.dpo.optimizer.learning_rate=1e-06" in note and "1e-5" in note
    higher = "align.dpo.optimizer.learning_rate=1e-5"
    assert load([HYBRID, "scale=one_gpu", *lora, higher]).notes == ()


def test_scales_with_adapters_have_a_rate_for_them():
    loaded = load(["config=hybrid_50_50_vision.yaml", "scale=one_gpu"])
    assert loaded.config.policy.lora is not None
    assert loaded.config.policy.optimizer.learning_rate == 1e-5
    assert loaded.config.align.dpo.optimizer.learning_rate == 1e-5
    assert loaded.notes == ()


def test_one_line_per_problem_with_key_value_layer_and_nearest_key():
    write("mine.yaml", "extends: hybrid_50_50.yaml\nrollout: {group_size: 1}\n")
    lines = refused("config=mine.yaml", "rollout.grup_size=4", "policy.dtype=fp16").splitlines()
    assert sorted(lines) == [
        "policy.dtype: must be 'float32' or 'bfloat16', got 'fp16' (the command line)",
        "rollout.group_size: must be greater than 1, got 1 (mine.yaml)",
        "rollout.grup_size: no such key, got 4 (the command line); "
        "did you mean rollout.group_size?",
    ]


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("group_size=16", "rollout.group_size"),
        ("modes.long.temprature=1", "modes.long.temperature"),
        ("modes.long.shares=1", "modes.long.share"),
        ("stepz=4", "steps"),
        ("reward.weight.format=1", "reward.weights"),
        # All keys of the name, where the section is missing or wrong.
        (
            "rollout.learning_rate=1",
            "policy.optimizer.learning_rate or align.dpo.optimizer.learning_rate",
        ),
        ("temperature=1", "modes.NAME.temperature or eval.temperature or align.temperature"),
        # The names of other systems.
        ("policy.lr=1", "policy.optimizer.learning_rate"),
        ("rollout.n=8", "rollout.group_size"),
        ("policy.batch_size=8", "rollout.prompts_per_step"),
    ],
)
def test_unknown_keys_name_the_nearest(argument, nearest):
    assert f"did you mean {nearest}?" in refused(HYBRID, argument)


def test_a_key_that_is_like_no_other_names_those_of_its_section():
    said = refused(HYBRID, "algorithm.kl=0.1")
    assert "algorithm.kl: no such key" in said and "did you mean" not in said
    assert "the valid ones here are aggregation, clip_high, clip_low" in said


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps", "'steps' is not key=value"),
        ("rollout..group_size=3", "is not key=value"),
        ("seed=[1", "seed: cannot read the value '[1'"),
        ("seed=${nope}", "Interpolation key 'nope' not found"),
        ("modes.long.share=0.7", "modes.*.share must sum to 1, got 1.2 (short 0.5 + long 0.7)"),
        ("modes.mid.share=0", "modes.mid.thinking: is required"),
        ("modes.shrot.share=0", "modes.shrot.thinking=VALUE, or did you mean modes.short?"),
        ("policy.optimizer.betas=[0.9]", "policy.optimizer.betas.1: a value is missing"),
        ("rollout=5", "rollout: must be a valid dictionary"),
        ("scale=node_8gpus", "did you mean node_8gpu.yaml?"),
        ("seed=-1", "seed: must be greater than or equal to 0, got -1 (the command line)"),
        # Of a union: the key alone, and not which of its types was tried.
        ("modes.long.thinking=maybe", "\nmodes.long.thinking: must be 'auto', got 'maybe'"),
        ("modes.long.price=-1", "modes.long.price: must be greater than or equal to 0, got -1"),
    ],
)
def test_bad_arguments_say_what_is_wrong(argument, message):
    assert message in refused(HYBRID, argument)


def test_a_template_needs_no_quotes_of_yaml():
    for template in ("{{question}}", "{{question}} Answer: in a box.", "Q: {{question}} # {{a}}"):
        assert load([HYBRID, f"data.template={template}"]).config.data.template == template


def test_recipes_that_cannot_be_found_or_read():
    assert "did you mean hybrid_50_50.yaml?" in refused("config=hybrid_5050.yaml")
    assert "config=NAME is missing" in refused("steps=3")
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: a.yaml\n")
    assert "in a circle" in refused("config=a.yaml")
    write("list.yaml", "- 1\n")
    assert "must hold keys and values" in refused("config=list.yaml")
    write("twice.yaml", "seed: 1\nseed: 2\n")
    assert "not readable YAML" in refused("config=twice.yaml")
    write("broken.yaml", "data:\n  - kind: x\n   b: 3\n")
    assert "\n" not in refused("config=broken.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [a.jsonl]", "data: must hold keys with values, got ['a.jsonl'] (mine.yaml)"),
        ("modes: {long: [1]}", "modes.long: must hold keys with values, got [1] (mine.yaml)"),
        (
            "policy: {optimizer: {betas: {first: 0.9}}}",
            "policy.optimizer.betas: holds keys with values, and must be a list such as",
        ),
    ],
)
def test_a_list_in_the_place_of_keys_is_named_and_the_other_way_round(text, message):
    write("base.yaml", "extends: hybrid_50_50.yaml\npolicy: {optimizer: {betas: [0.9, 0.9]}}\n")
    write("mine.yaml", f"extends: base.yaml\n{text}\n")
    assert message in refused("config=mine.yaml")


def test_a_list_over_keys_on_the_command_line_is_named():
    assert "must hold keys" in refused(HYBRID, "data.path.x=3", "data.path=[1]")
    assert "modes: must be a valid dictionary, got 3" in refused(HYBRID, "modes=3")


def test_what_names_the_kind_of_data_may_stand_anywhere_on_the_command_line():
    given = ["data.path=a.jsonl", "data.kind=dataset"]
    for arguments in (given, given[::-1]):
        data = load([HYBRID, *arguments]).config.data
        assert (data.kind, data.path) == ("dataset", "a.jsonl")
    assert "preset=gsm8k is a dataset" in refused(
        HYBRID, "data.preset=gsm8k", "data.kind=chain_sum"
    )


def fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    lines = "".join(f"GPU {i}: NVIDIA H200 (UUID: GPU-{i})\\n" for i in range(gpus))
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")


@pytest.mark.parametrize(
    ("installed", "visible", "scale"),
    [
        (0, None, "cpu_tiny"),
        (0, "0", "cpu_tiny"),
        (1, None, "one_gpu"),
        (2, None, "two_gpus"),
        (3, None, "two_gpus"),
        (4, None, "four_gpus"),
        (7, None, "four_gpus"),
        (8, None, "node_8gpu"),
        (16, None, "node_8gpu"),
        (8, "0,1", "two_gpus"),
        (8, "", "cpu_tiny"),
        (8, "-1", "cpu_tiny"),
        (8, "3,-1,4", "one_gpu"),
    ],
)
def test_auto_takes_the_largest_scale_that_fits(tmp_path, monkeypatch, installed, visible, scale):
    fake_nvidia_smi(tmp_path, monkeypatch, installed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_visible_gpus() <= installed
    assert find_scale("auto").stem == scale
    # What fits into their memory is asked where there are GPUs.
    on_gpu = None if scale == "cpu_tiny" else scale
    assert load([HYBRID, "scale=auto"]).auto_scale == on_gpu
    assert load([HYBRID, "scale=cpu"]).auto_scale is None


@pytest.mark.parametrize(
    ("answer", "visible", "mebibytes"),
    [
        ("0, 81559\\n1, 81559\\n", None, 81559),
        ("0, 81559\\n1, 24564\\n", None, 24564),
        ("0, 81559\\n1, 24564\\n", "0", 81559),
        ("0, 81559\\n1, 24564\\n", "GPU-7f", 24564),
        ("0, [N/A]\\n", None, None),
        ("", None, None),
    ],
)
def test_the_memory_of_the_smallest_visible_gpu_counts(
    tmp_path, monkeypatch, answer, visible, mebibytes
):
    fake_nvidia_smi(tmp_path, monkeypatch, 0)
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    # 1 % is the driver's.
    assert visible_gpu_bytes() == (mebibytes and round(mebibytes * 2**20 * 0.99))


def test_engines_sleep_where_they_share_the_learners_gpus_and_nothing_is_sampled_meanwhile():
    assert load([HYBRID, "scale=one_gpu"]).config.engines_sleep
    assert load([HYBRID, "scale=four_gpus", "rollout.sleep=true"]).config.engines_sleep
    for settings in (["rollout.max_staleness=1"], ["rollout.sleep=false"]):
        assert not load([HYBRID, "scale=one_gpu", *settings]).config.engines_sleep
    assert not load([HYBRID, "scale=node_8gpu"]).config.engines_sleep
    message = refused(HYBRID, "scale=node_8gpu", "rollout.sleep=true")
    assert "the engines have their own" in message and "resources.colocate=true" in message
    given = ["scale=one_gpu", "rollout.sleep=true", "rollout.max_staleness=2"]
    message = refused(HYBRID, *given)
    assert "rollout.max_staleness=2" in message and "rollout.keep_kv_cache" in message


@pytest.mark.parametrize(
    ("recipe", "scale", "model"),
    [
        ("hybrid_50_50.yaml", "auto", "builtin:tiny"),
        ("hybrid_50_50_vision.yaml", "auto", "builtin:tiny_qwen_vl"),
        ("hybrid_50_50_vision.yaml", "node_8gpu", "openbmb/MiniCPM-V-4_5"),
        ("hybrid_50_50_minicpm_v.yaml", "cpu_tiny", "builtin:tiny_minicpmv"),
        ("hybrid_50_50_minicpm_v.yaml", "node_8gpu", "openbmb/MiniCPM-V-4_5"),
        ("hybrid_50_50_minicpm_v.yaml", "one_gpu", "openbmb/MiniCPM-V-4_5"),
        ("rlaif_v_describe.yaml", "auto", "builtin:tiny_describer"),
        ("rlaif_v_describe.yaml", "two_gpus", "openbmb/MiniCPM-V-4_5"),
    ],
)
def test_a_recipe_of_its_own_scales_finds_its_policy(tmp_path, monkeypatch, recipe, scale, model):
    fake_nvidia_smi(tmp_path, monkeypatch, 0)
    config = load([f"config={recipe}", f"scale={scale}"]).config
    assert config.policy.model == model
    kinds = {source.kind for source in config.data.sources.values()}
    assert (kinds == {"visual"}) == (recipe != "hybrid_50_50.yaml")
    assert config.reward.preference is None or recipe == "hybrid_50_50.yaml"


def test_other_scales_are_found_beside_a_recipes_own():
    write("mine.yaml", "extends: hybrid_50_50.yaml\nscales: vision\n")
    assert load(["config=mine.yaml", "scale=cluster"]).config.resources.nodes > 1
    assert "no such file" in refused("config=mine.yaml", "scale=clusters")
    # From the folder of a folder through the one around it.
    write("mine.yaml", "extends: hybrid_50_50.yaml\nscales: vision/mine\n")
    of_vision = load(["config=hybrid_50_50_vision.yaml", "scale=one_gpu"]).config.policy.model
    assert load(["config=mine.yaml", "scale=one_gpu"]).config.policy.model == of_vision
    assert load(["config=mine.yaml", "scale=cluster"]).config.resources.nodes > 1


def test_loading_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from rl.config.recipe import load; load(sys.argv[1:]); "
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    repository = CONFIGS.parent
    answer = subprocess.run(
        [sys.executable, "-c", code, HYBRID, "scale=cpu_tiny"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"


def test_think_tags_and_variables_of_the_template_are_read_and_refused():
    told = ["policy.think_tags.open='[T]'", "policy.think_tags.close='[/T]'"]
    told += ["modes.long.chat_template_kwargs.thinking_budget=512"]
    given = load([HYBRID, "scale=cpu_tiny", *told]).config
    assert given.policy.think_tags.empty_block == "[T]\n\n[/T]\n\n"
    assert given.modes["long"].chat_template_kwargs == {"thinking_budget": 512}
    for wrong in ("open=</think>", "open=' <think>'", "close=think"):
        message = refused(HYBRID, "scale=cpu_tiny", f"policy.think_tags.{wrong}")
        assert "two different tags" in message, wrong


def test_gpus_that_a_run_leaves_unused_are_noted_and_missing_ones_refused():
    launch = load(["config=hybrid_50_50.yaml", "scale=node_8gpu", "reward.preference=null"])
    assert launch.notes == (
        "of resources.gpus=8 the run takes 7; more engines or ranks use the rest",
    )
    message = refused("config=hybrid_50_50.yaml", "scale=node_8gpu", "rollout.workers=4")
    assert "4 for engines" in message and "make 9, got 8" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale=node_8gpu", "sync.transport=ipc"], "sync.transport=ipc hands weights over"),
        (["scale=one_gpu", "sync.transport=nccl"], "sync.transport=nccl takes one process a GPU"),
        (["scale=cluster", "sync.transport=host"], "got resources.nodes=4"),
        (["scale=cluster", "resources.ray_address=null"], "resources.nodes=4 needs a Ray cluster"),
        (["scale=node_8gpu", "resources.nodes=2"], "resources.nodes=2 needs a Ray cluster"),
        *(
            (["scale=node_8gpu", f"rollout.engine.{size}=2"], f"rollout.engine sets {size}")
            for size in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        ),
    ],
)
def test_combinations_that_no_weights_can_travel_in_are_refused_by_name(arguments, message):
    assert message in refused(HYBRID, *arguments)


@pytest.mark.parametrize("scale", ["one_gpu", "node_8gpu"])
def test_weights_may_travel_through_the_memory_of_one_node(scale):
    config = load([HYBRID, f"scale={scale}", "sync.transport=host"]).config
    assert config.transport == "host"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss=gspo"], "set algorithm.aggregation=sequence"),
        (["loss=gspo_token", "aggregation=constant"], "set algorithm.aggregation=sequence"),
        (["loss=cispo"], "got algorithm.updates_per_batch=1"),
        (["loss=gspo", "aggregation=sequence"], "got algorithm.updates_per_batch=1"),
        (["rollout_weight_floor=2"], "got 2 >= 2"),
        (["rollout_weight=sequence_mask", "rollout_weight_cap=null"], "needs a bound"),
    ],
)
def test_losses_that_would_be_another_loss_or_none_are_refused(settings, message):
    told = [f"algorithm.{setting}" for setting in settings]
    assert message in refused(HYBRID, "scale=cpu_tiny", *told)


def test_losses_are_chosen_by_name():
    told = ["loss=gspo", "aggregation=sequence", "updates_per_batch=2", "clip_high=4e-4"]
    told += ["rollout_weight=sequence_mask", "off_policy_limit=0.5", "mask_truncated=true"]
    algorithm = load([HYBRID, "scale=cpu_tiny", *(f"algorithm.{t}" for t in told)]).config.algorithm
    assert (algorithm.loss, algorithm.rollout_weight) == ("gspo", "sequence_mask")
    assert algorithm.mask_truncated


def test_what_a_run_has_otherwise_than_its_recipe_is_told_with_who_set_it(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "extends: hybrid_50_50.yaml\nscale: null\nsteps: 50\nreward: {preference: {actors: 2}}\n"
    )
    arguments = [f"config={recipe}", "scale=cpu_tiny", "steps=7", "reward.preference=null"]
    origin = load([*arguments, "rollout.group_size=8", f"run={tmp_path / 'run'}"]).origin
    assert (origin.recipe, origin.scale) == (str(recipe), "scale/cpu_tiny.yaml")
    told = {d.key: (d.recipe, d.run, d.by) for d in origin.differences}
    line = "the command line"
    assert told["steps"] == ("50", "7", line)
    assert told["reward.preference"] == ("not set", "None", line)
    assert told["reward.preference.actors"] == ("2", "not set", line)
    # Replaced together with the whole of the data.
    assert told["data.path"] == ("leg_counting", "not set", "scale/cpu_tiny.yaml")
    assert told["modes.long.max_tokens"] == ("8192", "72", "scale/cpu_tiny.yaml")
    # The recipe has it as it is here; and a directory is no setting.
    assert not {"rollout.group_size", "run", "reward.preference.kind"} & set(told)


def test_a_recipe_as_it_is_has_no_differences():
    origin = load(["config=short_only.yaml", "scale=cpu"]).origin
    assert origin.recipe == "short_only.yaml"
    assert {d.by for d in origin.differences} <= {"scale/cpu.yaml", "scale/cpu_tiny.yaml"}
