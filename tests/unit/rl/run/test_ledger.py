import dataclasses
import math

import pyarrow.parquet as pq

from rl.data.media.names import MediaFile, RenderedMedium, from_json
from rl.loop.stages import (
    Choice,
    Claimed,
    Failure,
    Prompt,
    RolloutGroup,
    RolloutRequest,
    Route,
    Score,
    ScoredGroup,
)
from rl.run.ledger import ledger_rows, read_rows, write_step
from tests.fakes import trajectory


def group(group_id, mode, scores, reference="12", **changes):
    prompt = Prompt(f"prompt/{group_id}", (), reference)
    request = RolloutRequest(group_id, prompt, mode, (1, 2, 3), len(scores), 16, 1.0, 0)
    return ScoredGroup(
        RolloutGroup(request, tuple(trajectory(**changes) for _ in scores)), tuple(scores)
    )


FIRST = group(
    "0/0/0",
    "long",
    [
        Score(
            1.1,
            {"accuracy": 1.0, "format": 1.0},
            Route("number", 1),
            claimed=Claimed("12", "last claim", ""),
        ),
        Score(None, failure=Failure("timeout")),
    ],
    versions=(0, 1),
    reasoning="6 + 6",
    num_response=5,
    end_token=151645,
)


def test_a_step_comes_back_as_it_was_written(tmp_path):
    rows = ledger_rows(1, [FIRST], [(0.5, None)], [(1e-7, None)])
    path = write_step(tmp_path / "ledger", 1, rows)
    assert path.name == "step_000001.parquet"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    shared = {
        "step": 1,
        "group_id": "0/0/0",
        "prompt_id": "prompt/0/0/0",
        "task": "auto",
        "messages": "[]",
        "media": None,
        "media_digests": [],
        "mode": "long",
        "first_version": 0,
        "last_version": 1,
        "text": "12",
        "reasoning": "6 + 6",
        "answer": "12",
        "reference": "12",
        "finish_reason": "stop",
        "end_token": 151645,
        "num_tokens": 5,
        "choice": None,
        "choice_by": None,
        "choice_tokens": None,
        "choice_advantage": None,
    }
    scored = {
        "reward": 1.1,
        "part/accuracy": 1.0,
        "part/format": 1.0,
        "route": "number/1",
        "failure": None,
        "claimed": "12",
        "claimed_how": "last claim",
        "why": "",
        "preference_answer": None,
        "advantage": 0.5,
        "mismatch": 1e-7,
        "state": "trained",
    }
    failed = dict.fromkeys(scored) | {"route": "", "failure": "timeout", "state": "trained"}
    table = pq.read_table(path)
    assert table.to_pylist() == [shared | scored, shared | failed]
    assert table.column_names == [*shared, *scored]


def test_media_are_kept_by_name_with_what_was_seen_of_them(tmp_path):
    media = (MediaFile("image", "/a\udcff.png"), RenderedMedium("digits", 0, 7, False, 0))
    prompt = dataclasses.replace(FIRST.group.request.prompt, media=media)
    request = dataclasses.replace(FIRST.group.request, prompt=prompt)
    seen = dataclasses.replace(FIRST.group, request=request, media_digests=("0a", "0b"))
    rows = ledger_rows(1, [dataclasses.replace(FIRST, group=seen)], [(0.5, None)], [(0.0, None)])
    path = write_step(tmp_path, 1, rows)
    back = read_rows(path)
    assert back == rows
    assert [from_json(row.media) for row in back] == [media] * 2
    assert [row.media_digests for row in back] == [("0a", "0b")] * 2


def test_a_part_that_a_row_lacks_is_absent_there(tmp_path):
    later = group("1/0/0", "short", [Score(0.2, {"preference": 0.2})])
    rows = ledger_rows(2, [FIRST, later], [(0.5, None), (0.0,)], [(0.0, None), (0.0,)])
    back = read_rows(write_step(tmp_path, 2, rows))
    assert [row.parts for row in back] == [
        {"accuracy": 1.0, "format": 1.0},
        {},
        {"preference": 0.2},
    ]


def test_a_step_written_again_replaces_the_first(tmp_path):
    write_step(tmp_path, 1, ledger_rows(1, [FIRST], [(0.5, None)], [(0.0, None)]))
    assert read_rows(write_step(tmp_path, 1, [])) == []


def test_rewards_that_are_no_number_and_text_that_is_no_unicode_are_kept_as_far_as_possible(
    tmp_path,
):
    odd = group("0/0/0", "short", [Score(math.nan)], reference="a\ud83d", answer=None)
    (row,) = read_rows(write_step(tmp_path, 1, ledger_rows(1, [odd], [(0.0,)], [(0.0,)])))
    assert row.reward is not None and math.isnan(row.reward)
    assert (row.reference, row.answer) == ("a?", None)


def test_half_surrogates_of_any_column_are_stored_as_question_marks(tmp_path):
    broken = group("0/0/0", "short", [Score(1.0, {"accuracy": 1.0})], text="a\ud800", answer=None)
    rows = ledger_rows(1, [broken, FIRST], [(0.5,), (0.5, None)], [(0.0,), (0.0, None)])
    texts = pq.read_table(write_step(tmp_path, 1, rows), columns=["text", "answer"]).to_pydict()
    assert texts == {"text": ["a?", "12", "12"], "answer": [None, "12", "12"]}


def test_a_choice_comes_back_with_what_it_was_trained_on(tmp_path):
    choices = [Choice(True, 1), Choice(False, 3, is_forced=True), Choice(True, 0, is_kept=False)]
    scored = group("0/0/0", "auto", [Score(1.0, {})] * 3)
    chosen = [
        dataclasses.replace(t, choice=c)
        for t, c in zip(scored.group.trajectories, choices, strict=True)
    ]
    scored = dataclasses.replace(
        scored, group=dataclasses.replace(scored.group, trajectories=tuple(chosen))
    )
    given = [(0.5,) * 3], [(0.0,) * 3], [(0.25, -0.25, 0.0)]
    back = read_rows(write_step(tmp_path, 1, ledger_rows(1, [scored], *given)))
    assert [row.as_choice for row in back] == choices
    assert [row.choice_by for row in back] == ["policy", "pair", "stray"]
    assert [row.choice_advantage for row in back] == [0.25, -0.25, 0.0]
    assert FIRST.group.trajectories[0].choice is None
    assert ledger_rows(1, [FIRST], [(0.5, None)], [(0.0, None)])[0].as_choice is None
