"""A run's ledger under another reward configuration: a real ledger, real workers, no sampling."""

import json

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from rl.config.recipe import dump, load
from rl.rescore import __main__ as rescore
from rl.run.ledger import LedgerRow, read_rows, write_step

QUESTION = json.dumps([{"role": "user", "content": "2+9?"}])
PROSE = "because the light of the sun is scattered by the air far more where it is blue"


def row(group, place, answer, **changes):
    text = f"2 and 9\n</think>\n\n{answer}"
    fields = {
        "step": 1,
        "group_id": group,
        "prompt_id": f"p/{group}",
        "task": "auto",
        "messages": QUESTION,
        "mode": "long",
        "first_version": 0,
        "last_version": 0,
        "text": text,
        "reasoning": "2 and 9\n",
        "answer": f"\n\n{answer}",
        "reference": "11",
        "finish_reason": "stop",
        "num_tokens": 9,
        "reward": 1.1 if answer == "11" else 0.1,
        "parts": {"accuracy": float(answer == "11"), "format": 1.0, "repetition": 0.0, "leak": 0.0}
        | {"preference": 0.7 - place, "preference_raw": 3.0 - place},
        "route": "number/2",
        "failure": None,
        "preference_answer": answer,
        "advantage": 0.7 - place,
        "mismatch": None,
    }
    return LedgerRow(**(fields | changes))


@pytest.fixture
def run(tmp_path):
    """A run of the default recipe with one step in its ledger."""
    root = tmp_path / "run"
    config = load(["config=hybrid_50_50.yaml", "scale=cpu_tiny", f"run={root}"]).config
    root.mkdir()
    (root / "config.yaml").write_text(dump(config))
    natural = {
        "reference": PROSE,
        "route": "probability/1",
        "parts": {"accuracy": 0.4, "probability": 0.6, "baseline": 0.2, "format": 1.0},
    }
    rows = [row("a", 0, "11"), row("a", 1, "12"), row("b", 0, "it scatters", **natural)]
    write_step(root / "ledger", 1, rows)
    return root


def rescored(run, *arguments):
    assert rescore.main([f"run={run}", *arguments]) == 0
    return read_rows(run / "rescored" / "step_000001.parquet")


def test_the_runs_own_reward_gives_the_parts_it_gave(run):
    right, wrong, natural = rescored(run)
    assert right.parts["accuracy"] == 1.0 and wrong.parts["accuracy"] == 0.0
    # raw 3 and 2 have z 0.7071 and -0.7071, weighed with a half
    assert right.reward == pytest.approx(1.1 + 0.5 * 2**-0.5, abs=1e-3)
    assert wrong.reward == pytest.approx(0.1 - 0.5 * 2**-0.5, abs=1e-3)
    assert natural.parts["accuracy"] == pytest.approx(0.6 - 0.2)
    assert natural.route == "probability/1"
    assert right.advantage == pytest.approx(-wrong.advantage) and right.advantage > 0


def test_other_weights_and_no_preference(run):
    right, wrong, natural = rescored(run, "reward.preference=null", "reward.weights.format=0.3")
    assert (right.reward, wrong.reward) == (pytest.approx(1.3), pytest.approx(0.3))
    assert natural.reward == pytest.approx(0.7)
    assert "preference" not in right.parts


def test_scores_of_answers_are_not_taken_for_those_of_whole_responses(run, capsys):
    # A model that is gone: the ledger's scores are enough until it is to read something else.
    stored = OmegaConf.load(run / "config.yaml")
    stored.reward.preference.model = "gone"
    OmegaConf.save(stored, run / "config.yaml")
    right, *_ = rescored(run)
    assert right.parts["preference_raw"] == 3.0
    arguments = [f"run={run}", f"out={run}/other", "reward.preference.reads=response"]
    assert rescore.main(arguments) == 2
    assert "reward.preference.model must be a model directory" in capsys.readouterr().err


def test_the_bias_can_be_left_in(run):
    *_, natural = rescored(run, "reward.probability.debias=false")
    assert natural.parts["accuracy"] == pytest.approx(0.6)


def test_a_recipe_gives_only_its_reward_section(run, tmp_path):
    recipe = tmp_path / "other.yaml"
    recipe.write_text("steps: 3\nreward:\n  weights: {accuracy: 2.0}\n  preference: null\n")
    right, *_ = rescored(run, f"config={recipe}")
    assert right.reward == pytest.approx(2.1)


def test_all_but_the_scores_stays_as_it_was(run):
    media = '[{"form": "file", "kind": "image", "path": "/a.png"}]'
    shown = row("m", 0, "11", step=3, media=media, media_digests=("d",), mismatch=0.25)
    write_step(run / "ledger", 3, [shown])
    rescored(run, "reward.preference=null")
    (scored,) = read_rows(run / "rescored" / "step_000003.parquet")
    changed = {name for name, value in vars(scored).items() if value != vars(shown)[name]}
    scores = {"reward", "parts", "route", "claimed", "claimed_how", "why", "advantage"}
    assert changed <= scores | {"preference_answer"}


def test_a_ledger_of_before_rules_said_what_they_read_is_scored_all_the_same(run):
    path = run / "ledger" / "step_000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["claimed", "claimed_how", "why"]), path)
    right, wrong, _ = rescored(run)
    assert (right.parts["accuracy"], wrong.parts["accuracy"]) == (1.0, 0.0)
    assert (right.claimed, wrong.claimed) == ("11", "12")


def test_a_probability_that_was_never_measured_is_a_failure(run):
    plain = row("c", 0, "it scatters", reference=PROSE, parts={}, step=2)
    write_step(run / "ledger", 2, [plain])
    rescored(run)
    (scored,) = read_rows(run / "rescored" / "step_000002.parquet")
    assert scored.reward is None
    assert scored.failure == "not_scorable: the ledger has no probability for it"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give run=runs/NAME"),
        (("run=nowhere",), "is no run directory"),
        (("run={run}", "out={run}/ledger"), "is the ledger itself"),
        (("run={run}", "steps=4"), "only reward"),
        (("run={run}", "reward.weights.speed=1"), "speed"),
        (("run={run}", "reward.preference={{kind: judge, model: x}}"), "a judge needs an engine"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, capsys, arguments, said):
    assert rescore.main([argument.format(run=run) for argument in arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (run / "rescored").exists()
