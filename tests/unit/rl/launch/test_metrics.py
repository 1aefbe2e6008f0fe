from collections import Counter
from dataclasses import replace

import pytest

from rl.launch.metrics import Progress, step_metrics
from rl.loop.loop import StepResult
from rl.loop.stages import (
    Choice,
    Failure,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    ScoredGroup,
)
from tests.fakes import config, trajectory


def scored(mode, lengths, rewards, versions=(0, 0), finish_reason="stop"):
    request = RolloutRequest(
        "g", Prompt("p", (), "12"), mode, (1, 2, 3), len(lengths), 16, 1.0, None
    )
    trajectories = tuple(
        trajectory(num_response=n, versions=versions, finish_reason=finish_reason) for n in lengths
    )
    scores = tuple(
        Score(None, {"leak": 0.0}, failure=Failure("timeout"))
        if reward is None
        else Score(reward + 0.1, {"accuracy": reward, "leak": 1.0 - reward}, Route("number", 1))
        for reward in rewards
    )
    return ScoredGroup(RolloutGroup(request, trajectories), scores)


def with_choices(one, *choices):
    """The group with these choices, one a trajectory."""
    trajectories = tuple(
        replace(t, choice=choice) for t, choice in zip(one.group.trajectories, choices, strict=True)
    )
    return replace(one, group=replace(one.group, trajectories=trajectories))


def result(*groups, step=3, advantages=None, dropped=None, choices=None, prices=None):
    return StepResult(
        step=step,
        groups=groups,
        advantages=advantages or tuple(tuple(0.0 for _ in g.scores) for g in groups),
        choices=choices or tuple((None,) * len(g.scores) for g in groups),
        prices=prices or {},
        mismatches=(),
        dropped=Counter(dropped or {}),
        learner_metrics={"loss/policy": 0.5},
        sync_metrics={"sync/seconds": 0.1},
        seconds={
            **{"step": 2.0, "record": 0.4, "wait_for_groups": 1.0, "update": 0.5, "publish": 0.1},
            **{"scoring": 0.2, "engines_idle": 0.5},
        },
    )


def metrics_of(step_result):
    progress = Progress()
    progress.add(step_result)
    return step_metrics(step_result, config(), progress), progress


def test_figures_of_two_modes_by_hand():
    short = scored("short", [2, 4], [1.0, 0.0])
    long = scored("long", [10, 20], [1.0, 1.0], finish_reason="length")
    metrics, _ = metrics_of(result(short, long))
    assert metrics["rollout/short/tokens_mean"] == 3.0
    assert metrics["rollout/long/tokens_mean"] == 15.0
    assert metrics["reward/short/accuracy"] == 0.5
    assert metrics["reward/short/mean"] == pytest.approx(0.6)
    assert metrics["reward/mean"] == pytest.approx((1.1 + 0.1 + 1.1 + 1.1) / 4)
    assert metrics["rollout/long/truncated"] == 1.0
    assert metrics["rollout/short/leak"] == 0.5
    assert metrics["rollout/long/zero_variance"] == 1.0
    assert metrics["rollout/short/share"] == 0.25
    # Prompts of 3 tokens: (5 + 7 + 13 + 23) / 2 seconds.
    assert metrics["perf/tokens_per_second"] == 24.0
    assert metrics["loss/policy"] == 0.5
    assert metrics["idle/learner"] == 0.5
    # Nothing is sampled while the last samples are scored, nor afterwards.
    assert metrics["idle/engines"] == pytest.approx(0.35)


def test_speed_per_gpu_counts_the_gpus_that_the_run_takes_and_is_absent_on_cpu():
    step_result = result(scored("long", [13, 23], [1.0, 1.0]))
    assert "perf/tokens_per_second_per_gpu" not in metrics_of(step_result)[0]
    on_gpus = config(resources__gpus=4, rollout__workers=1, policy__ranks=2)
    metrics = step_metrics(step_result, on_gpus, Progress())
    # 42 tokens in 2 seconds; one of the four GPUs is left to others.
    assert metrics["perf/tokens_per_second_per_gpu"] == 7.0


def test_a_failed_score_enters_no_mean_but_is_counted():
    metrics, _ = metrics_of(result(scored("long", [4, 4], [1.0, None])))
    assert metrics["reward/long/accuracy"] == 1.0
    assert metrics["rollout/long/unscored"] == 0.5


def test_trained_tokens_count_prompt_and_response_of_what_entered_the_update():
    group = scored("long", [4, 6], [1.0, None])
    _, progress = metrics_of(result(group, advantages=((0.5, None),)))
    assert progress.trained_tokens == {"long": 7}


def test_staleness_is_the_age_of_the_oldest_token():
    metrics, _ = metrics_of(
        result(scored("long", [4], [1.0], versions=(0, 2)), scored("short", [4], [1.0], (2, 2)))
    )
    assert metrics["staleness/max"] == 2


def test_drops_add_up_over_modes_by_reason():
    group = scored("long", [4], [1.0])
    dropped = {("long", "timeout"): 2, ("short", "timeout"): 1, ("short", "empty"): 1}
    metrics, _ = metrics_of(result(group, dropped=dropped))
    assert metrics["rollout/dropped/timeout"] == 3
    assert metrics["rollout/dropped/empty"] == 1
    assert metrics["rollout/short/groups"] == 0


def test_what_was_chosen_is_told_of_free_groups_by_difficulty_and_source():
    cfg = config(modes={"auto": {"share": 1.0, "thinking": "auto", "max_tokens": 16}})

    def chosen(name: str, difficulty: float, kinds: list[bool], is_pair: bool = False):
        one = scored("auto", [5] * len(kinds), [1.0] * len(kinds))
        prompt = Prompt(name, (), "12", difficulty=difficulty)
        request = replace(one.group.request, prompt=prompt, is_pair=is_pair)
        one = replace(one, group=replace(one.group, request=request))
        return with_choices(one, *(Choice(kind, 1) for kind in kinds))

    groups = [
        chosen("sums/1", 2.0, [False, False]),
        chosen("sums/2", 3.0, [True, False]),
        chosen("maths/1", 6.0, [True, True]),
        chosen("sums/3", 6.0, [True, False], is_pair=True),
    ]
    choices = ((0.0, 0.0), (0.1, -0.1), (0.0, 0.0), (0.25, -0.25))
    step_result = result(*groups, choices=choices, prices={"auto": 0.25})
    metrics = step_metrics(step_result, cfg, Progress())
    assert metrics["choice/price"] == 0.25
    of_mode = {key.rpartition("/")[2]: value for key, value in metrics.items() if "auto" in key}
    assert of_mode["pairs"] == 0.25
    assert of_mode["reasons"] == 0.5
    thirds = [of_mode[f"reasons_{third}"] for third in ("easy", "middle", "hard")]
    assert thirds == [0.0, 0.5, 1.0]
    assert (of_mode["reasons_of_sums"], of_mode["reasons_of_maths"]) == (0.25, 1.0)
    assert of_mode["gap"] == pytest.approx((0.2 + 0.5) / 2)
    # All are right; where the kinds differ in worth there is something to learn all the same.
    assert of_mode["zero_variance"] == 0.5


def test_a_first_token_of_neither_kind_is_no_part_of_the_gap_between_the_kinds():
    cfg = config(modes={"auto": {"share": 1.0, "thinking": "auto", "max_tokens": 16}})
    one = scored("auto", [5] * 3, [1.0, 1.0, 0.0])
    one = with_choices(one, Choice(True, 1), Choice(False, 1), Choice(True, 0, is_kept=False))
    step_result = result(one, choices=((0.3, 0.1, -0.4),), prices={"auto": 0.0})
    metrics = step_metrics(step_result, cfg, Progress())
    assert metrics["rollout/auto/gap"] == pytest.approx(0.2)


def test_a_response_without_a_score_says_nothing_of_the_gap_between_the_kinds():
    """Its choice has no credit, where the others of its kind have one."""
    cfg = config(modes={"auto": {"share": 1.0, "thinking": "auto", "max_tokens": 16}})
    one = scored("auto", [5] * 4, [1.0, None, 0.0, 0.0])
    one = with_choices(one, *(Choice(kind, 1) for kind in (True, True, False, False)))
    credits = (0.6, 0.0, -0.4, -0.4)
    step_result = result(one, choices=(credits,), prices={"auto": 0.0})
    metrics = step_metrics(step_result, cfg, Progress())
    assert metrics["rollout/auto/gap"] == pytest.approx(1.0)
