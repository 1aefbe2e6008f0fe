import io
import json
import math
import subprocess
import sys
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.types import (
    Claim,
    DividedResponse,
    JudgedResponse,
    Label,
    PreferencePair,
    Response,
    RewardedResponse,
)
from rl.align.gate import Measurement, as_measurement, hallucination_rates
from rl.align.report import AlignmentConsole
from rl.data.media.names import MediaFile, RenderedMedium, from_json
from rl.evaluate.evaluation import ModeResult
from rl.loop.stages import Prompt

YES, NO = Label(0.75, 0.125), Label(0.25, 0.5)
MEDIA = (MediaFile("image", "/a.png"), RenderedMedium("digits", 3, 7, False, 0))
PARTS = ({"type": "image"}, {"type": "text", "text": "图里有什么?"})
PROMPT = Prompt("p/1", ({"role": "user", "content": list(PARTS)},), "a cup", "text", "long", MEDIA)


def judged(prompt_id, labels, mode="short", place=0):
    response = Response(Prompt(prompt_id, (), ""), mode, place, (5, 6), "text", "text")
    claims = tuple(Claim(f"claim {i}", f"question {i}?") for i in range(len(labels)))
    return JudgedResponse(response, claims, tuple(labels))


def test_a_claim_is_accepted_where_yes_is_more_probable_and_a_tie_is_not():
    assert Label(0.5, 0.25).is_accepted
    assert not Label(0.25, 0.25).is_accepted
    assert not Label(0.0, 0.0).is_accepted


@pytest.mark.parametrize("p", [math.nan, math.inf, -0.1, 1.1])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="p_no of a label must be a probability"):
        Label(0.5, p)


def test_the_score_is_minus_the_rejected_claims():
    assert judged("a", [YES, NO, NO, YES]).score == -2.0
    assert judged("a", []).score == 0.0


def test_a_response_with_a_missing_label_has_no_score():
    one = judged("a", [YES, None, NO])
    assert not one.is_complete
    with pytest.raises(ValueError, match=r"1 of 3 claims of response \('a', 'short', 0\)"):
        _ = one.score


def test_a_pair_is_of_one_prompt_and_mode_with_the_better_first():
    better, worse = judged("a", [YES]), judged("a", [NO], place=1)
    pair = PreferencePair(better, worse)
    assert (pair.id, pair.mode, pair.prompt.id) == ("a/short/0>1", "short", "a")
    with pytest.raises(ValueError, match=r"the higher score, got -1\.0 and 0\.0"):
        PreferencePair(worse, better)
    with pytest.raises(ValueError, match="one prompt and mode"):
        PreferencePair(better, judged("b", [NO]))


def test_rates_count_wrong_claims_and_responses_by_mode():
    # Prompt a: 2 and 0 wrong; prompt b: 1 and nothing said. Means by prompt: 1 and 0.5.
    rates = hallucination_rates(
        [
            judged("a", [NO, NO, YES]),
            judged("a", [YES], place=1),
            judged("b", [NO], place=0),
            judged("b", [], place=1),
            judged("b", [NO, None], place=2),
            judged("a", [YES], mode="long"),
            judged("c", [None], mode="other"),
        ]
    )
    assert sorted(rates) == ["long", "short"]
    short = rates["short"]
    assert short.wrong_claims == 0.75
    # Deviation 0.25 around 0.75, two prompts: 1.96 * 0.25 / sqrt(2).
    assert short.wrong_claims_half_width == pytest.approx(0.346482, abs=1e-6)
    assert short.wrong_responses == 0.5
    assert short.wrong_responses_half_width == 0.0
    assert short.words == 1.0
    assert (short.claims, short.silent, short.count, short.incomplete) == (1.25, 0.25, 2, 1)
    assert rates["long"].wrong_claims == 0.0
    metrics = Measurement({}, rates).as_metrics()
    assert metrics["eval/short/wrong_claims"] == 0.75 and len(metrics) == 2 * 9


def test_rates_of_a_mixture_stand_by_source_too_and_are_shown():
    both = [judged("picture/1", [NO, YES, YES]), judged("video/1", [NO, NO])]
    mixed = [*both, judged("pictures/1", [YES]), judged("video/2", [None], mode="long")]
    rates = hallucination_rates(mixed, ["picture", "video", "other"])
    of = rates["short"].by_source
    assert {
        source: (rate.wrong_claims, rate.claims, rate.count) for source, rate in of.items()
    } == {
        "picture": (1.0, 3.0, 1),
        "video": (2.0, 2.0, 1),
    }
    assert rates["short"].count == 3 and "long" not in rates
    measured = Measurement({}, rates)
    metrics = measured.as_metrics()
    assert metrics["eval/short/wrong_claims_of_video"] == 2.0 and len(metrics) == 9 + 2
    assert as_measurement(json.loads(json.dumps(asdict(measured)))) == measured
    screen = Console(record=True, width=200, file=io.StringIO())
    figures = asdict(ModeResult(0.5, 0.1, 9.0, 0.0, 0, 3))
    told = asdict(measured) | {"modes": {"short": figures, "long": figures}}
    verdict = {"is_accepted": True, "before": told, "after": told}
    AlignmentConsole(screen).verdict(1, verdict)
    shown = [line.strip(" │").split() for line in screen.export_text().splitlines()]
    rows = [[cell for cell in row if cell != "│"] for row in shown]
    # A mode of which no response could be judged has no figures of sources either.
    assert ["video", "2.000", "2.000", "-", "-"] in rows


RESPONSE = Response(PROMPT, "long", 2, (7, 8, 2), "<think>\nx\n</think>\n\n红杯子", "红杯子")
CLAIM = Claim("The cup is red.", "Is the cup red? Please answer yes or no.")


def test_every_stage_comes_back_as_it_was_written(tmp_path):
    silent = Response(Prompt("q", (), ""), "short", 0, (), "", None)
    write_stage(tmp_path / "new" / "responses.parquet", Response, [RESPONSE, silent])
    assert read_stage(tmp_path / "new" / "responses.parquet", Response) == [RESPONSE, silent]

    divided = [
        DividedResponse(RESPONSE, (CLAIM,), "rules/1", "claims/refusal"),
        DividedResponse(silent, (), "language_model/1"),
    ]
    write_stage(tmp_path / "claims.parquet", DividedResponse, divided)
    assert read_stage(tmp_path / "claims.parquet", DividedResponse) == divided

    labelled = [
        JudgedResponse(RESPONSE, (CLAIM, CLAIM), (Label(0.1, 0.7), None)),
        JudgedResponse(silent, (), ()),
    ]
    write_stage(tmp_path / "labels.parquet", JudgedResponse, labelled)
    assert read_stage(tmp_path / "labels.parquet", JudgedResponse) == labelled

    other = Response(PROMPT, "long", 3, (9, 2), "blau", "blau")
    pairs = [
        PreferencePair(
            JudgedResponse(RESPONSE, (CLAIM,), (YES,)), JudgedResponse(other, (CLAIM,), (NO,))
        ),
        PreferencePair(
            RewardedResponse(RESPONSE, "4/0/0", 1.25), RewardedResponse(other, "4/0/0", -0.5)
        ),
    ]
    write_stage(tmp_path / "pairs.parquet", PreferencePair, pairs)
    assert read_stage(tmp_path / "pairs.parquet", PreferencePair) == pairs
    assert pairs[1].id == "p/1/4/0/0/long/2>3"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"new", "claims.parquet", "labels.parquet", "pairs.parquet"}


def test_a_row_stands_for_itself_in_columns_that_any_tool_reads(tmp_path):
    write_stage(tmp_path / "l", JudgedResponse, [JudgedResponse(RESPONSE, (CLAIM,), (NO,))])
    (row,) = pq.read_table(tmp_path / "l").to_pylist()
    assert json.loads(row.pop("messages"))[0]["role"] == "user"
    assert from_json(row.pop("media")) == MEDIA
    assert row == {
        "prompt_id": "p/1",
        "reference": "a cup",
        "task": "text",
        "pinned_mode": "long",
        "mode": "long",
        "place": 2,
        "token_ids": [7, 8, 2],
        "text": RESPONSE.text,
        "answer": "红杯子",
        "claims": [{"text": CLAIM.text, "question": CLAIM.question, "p_yes": 0.25, "p_no": 0.5}],
        "score": -1.0,
    }


def test_a_stage_without_rows_comes_back_empty(tmp_path):
    write_stage(tmp_path / "pairs.parquet", PreferencePair, [])
    write_stage(tmp_path / "labels.parquet", JudgedResponse, [])
    assert read_stage(tmp_path / "pairs.parquet", PreferencePair) == []
    assert read_stage(tmp_path / "labels.parquet", JudgedResponse) == []


def test_lone_surrogates_of_a_data_set_are_stored(tmp_path):
    prompt = Prompt("a\ud800", ({"role": "user", "content": "b\udfff"},), "c\ud800")
    write_stage(tmp_path / "r.parquet", Response, [Response(prompt, "short", 0, (1,), "d", "d")])
    (stored,) = read_stage(tmp_path / "r.parquet", Response)
    assert (stored.prompt.id, stored.prompt.messages[0]["content"]) == ("a?", "b?")


def test_a_file_of_another_form_is_refused(tmp_path):
    write_stage(tmp_path / "r.parquet", Response, [RESPONSE])
    with pytest.raises(ValueError, match="another version wrote it"):
        read_stage(tmp_path / "r.parquet", PreferencePair)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_stage(tmp_path / "torn.parquet", PreferencePair)


def test_claims_load_without_torch_and_sympy():
    code = (
        "import json, sys, rl.align.claims.types, rl.align.claims.language_model, "
        "rl.align.pairing, rl.align.claims.label_cache\n"
        "print(json.dumps([m for m in ('torch', 'ray', 'vllm', 'sympy') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == []
