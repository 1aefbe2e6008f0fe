"""What explains a reward, and how two scorings differ, on rows small enough to check by hand."""

import random

import pytest

from rl.rescore.replay import alarms, changes, scores_of, sign_flips
from rl.run.ledger import LedgerRow


def row(group, reward, mode="long", advantage=None, num_tokens=10, **parts):
    return LedgerRow(
        step=1,
        group_id=group,
        prompt_id="p",
        task="auto",
        messages="[]",
        mode=mode,
        first_version=0,
        last_version=0,
        text="12",
        reasoning=None,
        answer="12",
        reference="12",
        finish_reason="stop",
        num_tokens=num_tokens,
        reward=reward,
        parts=parts,
        route="number/2",
        failure=None,
        preference_answer=None,
        advantage=advantage,
        mismatch=None,
    )


def test_changes_by_mode_and_part():
    old = [row("a", 1.1, accuracy=1.0, format=1.0), row("a", 0.1, accuracy=0.0, format=1.0)]
    new = [row("a", 1.2, accuracy=1.0, format=1.0), row("a", None, format=1.0)]
    other = row("b", 0.5, mode="short", leak=1.0)
    changed = changes(scores_of([*old, other]), scores_of([*new, other]))
    assert changed.loc["long", "reward"].tolist() == pytest.approx([0.6, 1.2, 1.0])
    assert changed.loc["long", "accuracy"].tolist() == pytest.approx([0.5, 1.0, 0.5])
    assert changed.loc["long", "format"].tolist() == [1.0, 1.0, 0.0]
    assert changed.loc["short"].index.tolist() == ["reward", "leak"]


def test_sign_flips():
    old = [row("a", 1.0, advantage=0.5), row("a", 0.0, advantage=-0.5), row("b", 0.0, mode="short")]
    new = [row("a", 0.0, advantage=-0.5), row("a", 0.0, advantage=-0.5), row("b", 0.0)]
    assert sign_flips(scores_of(old), scores_of(new)) == {"long": 0.5}


def made(explains):
    """Forty groups of four with random parts, rewarded by `explains(accuracy, format, length)`."""
    rng = random.Random(0)
    rows = []
    for place in range(160):
        accuracy, form, length = rng.choice([0.0, 1.0]), rng.random(), rng.randrange(10, 90)
        reward = explains(accuracy, form, length) + place // 4
        parts = {"accuracy": accuracy, "format": form}
        rows.append(row(f"group {place // 4}", reward, num_tokens=length, **parts))
    return rows


WEIGHTS = {"long": {"accuracy": 1.0, "format": 0.1}}


def test_an_accuracy_that_explains_the_reward_is_as_it_should_be():
    rows = made(lambda accuracy, form, length: accuracy + 0.1 * form)
    assert alarms(scores_of(rows), WEIGHTS) == []


def test_a_part_that_explains_the_reward_alone_is_named():
    (alarm,) = alarms(scores_of(made(lambda accuracy, form, length: form)), WEIGHTS)
    assert alarm.startswith("long: format alone explains 100% of the reward within groups")


def test_a_part_that_agrees_with_accuracy_is_no_alarm():
    rows = [
        row(f"group {n // 4}", 1.5 * a, num_tokens=n % 7, accuracy=a, preference=a)
        for n, a in enumerate(random.Random(1).choices([0.0, 1.0], k=160))
    ]
    assert alarms(scores_of(rows), {"long": {"accuracy": 1.0, "preference": 0.5}}) == []


def test_length_that_explains_the_reward_is_named_whatever_its_direction():
    for sign in (1, -1):
        (alarm,) = alarms(scores_of(made(lambda a, f, length, s=sign: s * length + 5 * a)), WEIGHTS)
        assert alarm.startswith("long: the length alone explains 9")


def test_too_few_rows_prove_nothing():
    assert alarms(scores_of(made(lambda accuracy, form, length: form)[:24]), WEIGHTS) == []
