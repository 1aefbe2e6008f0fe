"""The page of preference pairs: which iteration, what is on it, and that texts stay texts."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.align.claims.files import write_stage
from rl.align.claims.types import (
    Claim,
    JudgedResponse,
    Label,
    PreferencePair,
    Response,
    RewardedResponse,
)
from rl.data.media.names import RenderedMedium
from rl.loop.stages import Prompt
from rl.show.__main__ import main
from rl.show.page import as_html
from rl.show.samples import page_of_pairs
from tests.html_tree import line_of, parsed, shape, text_of, within
from tests.unit.rl.show.test_page import HOSTILE, as_shown, check_form, pixels_of, show, texts

YES, NO = Label(0.75, 0.125), Label(0.0004, 0.96)
PROMPT = Prompt("p", ({"role": "user", "content": "What is in the picture?"},), "a cup", "text")


def judged(place, labels, mode="long", prompt=PROMPT, said="it"):
    response = Response(prompt, mode, place, (5,) * (place + 1), f"hm</think>{said}", said)
    claims = tuple(Claim(f"{said} {i}", f"Is it {said} {i}?") for i in range(len(labels)))
    return JudgedResponse(response, claims, tuple(labels))


def pair(mode="long", prompt=PROMPT, chosen=0, rejected=1, said="it"):
    return PreferencePair(
        judged(chosen, [YES], mode, prompt, said),
        judged(rejected, [NO, YES, NO], mode, prompt, said),
    )


def prompt_named(name, media=()):
    return Prompt(name, PROMPT.messages, PROMPT.reference, PROMPT.task, media=media)


def write(root, iteration, pairs):
    path = root / f"iteration_{iteration}" / "pairs.parquet"
    write_stage(path, PreferencePair, pairs)
    return path


@pytest.fixture
def aligned(tmp_path):
    """A pass with pairs of the iterations 1 and 2; of the third there are none yet."""
    root = tmp_path / "some" / "align"
    root.mkdir(parents=True)
    (root / "config.yaml").write_text("data: {kind: visual, path: digits}")
    for iteration in (1, 2):
        write(root, iteration, [pair(prompt=prompt_named(name)) for name in "abc"])
    (root / "iteration_3").mkdir()
    return root


def shown_pairs(root, *pairs, limit=100):
    path = write(root, 1, pairs)
    page = page_of_pairs("some/align", {1: path}, limit, lambda *_: ())
    return page, parsed(as_html(page))


def test_a_pair_is_shown_with_both_responses_and_the_labels_of_their_claims(tmp_path):
    _, document = shown_pairs(tmp_path, pair())
    (card,), (one,) = within(document, class_="group"), within(document, class_="item")
    assert line_of(next(within(card, "h2"))) == "long p"
    assert line_of(next(within(card, class_="facts"))) == "iteration 1 · task text · 1 pairs"
    assert texts(next(within(card, class_="prompt"))) == ["What is in the picture?", "a cup"]
    assert line_of(next(within(one, class_="facts"))) == "gap 2 p/long/0>1"
    (sides,) = within(one, class_="sides")
    chosen, rejected = sides
    assert [line_of(side[0]) for side in (chosen, rejected)] == [
        "chosen score 0 1 tokens",
        "rejected score -2 2 tokens",
    ]
    assert texts(chosen) == ["hm</think>it", "it", "it 0", "Is it it 0?"]
    assert [line_of(claim[0]) for claim in within(rejected, class_="claim")] == [
        "rejected p(yes) 0.0004 p(no) 0.96",
        "accepted p(yes) 0.75 p(no) 0.125",
        "rejected p(yes) 0.0004 p(no) 0.96",
    ]
    colours = [next(within(c, "strong")).attrib["class"] for c in within(rejected, class_="claim")]
    assert colours == ["minus", "plus", "minus"]


def test_a_text_that_is_the_answer_is_shown_once(tmp_path):
    sides = [
        JudgedResponse(
            Response(PROMPT, "short", n, (5,), "a cup", "a cup"), (Claim("a", "b"),), (label,)
        )
        for n, label in enumerate((YES, NO))
    ]
    _, document = shown_pairs(tmp_path, PreferencePair(*sides))
    assert not list(within(document, "details"))
    (one,) = within(document, class_="item")
    assert texts(one) == ["a cup", "a", "b"] * 2


def test_a_tie_is_rejected_and_small_probabilities_are_told_apart(tmp_path):
    claims, labels = (Claim("a", "a?"), Claim("b", "b?")), (Label(0.25, 0.25), Label(6e-9, 4e-9))
    chosen, rejected = (Response(PROMPT, "long", n, (5,), "it", "it") for n in (0, 1))
    page, _ = shown_pairs(
        tmp_path,
        PreferencePair(JudgedResponse(chosen, (), ()), JudgedResponse(rejected, claims, labels)),
    )
    (sides,) = within(parsed(as_html(page)), class_="sides")
    assert [line_of(claim[0]) for claim in within(sides, "li")] == [
        "rejected p(yes) 0.25 p(no) 0.25",
        "accepted p(yes) 6e-09 p(no) 4e-09",
    ]
    assert texts(sides) == ["it", "it", "a", "a?", "b", "b?"]
    assert line_of(sides[0]).endswith("no claims")


def test_a_pair_of_a_ledger_has_its_scores_and_no_claims(tmp_path):
    def rewarded(place, score, answer):
        response = Response(PROMPT, "long", place, (5, 6), "hm</think>7", answer)
        return RewardedResponse(response, "4/0/1", score)

    mined = PreferencePair(rewarded(0, 1.1, "7"), rewarded(2, -0.1, None))
    _, document = shown_pairs(tmp_path, mined)
    (one,) = within(document, class_="item")
    assert one.attrib["data-gap"] == "1.2"
    (sides,) = within(one, class_="sides")
    assert [line_of(side[0]) for side in sides] == [
        "chosen score 1.1 2 tokens",
        "rejected score -0.1 2 tokens",
    ]
    assert "no answer" not in line_of(sides[0])
    assert "no answer" in line_of(sides[1])
    assert not list(within(one, class_="claim")) and "no claims" not in line_of(one)
    (table,) = within(document, "table")
    assert [text_of(cell) for cell in within(table, "td")] == [
        *("long", "1", "1", "1.1", "-0.1", "–", "–", "2", "2")
    ]


def test_pairs_of_one_prompt_and_mode_share_a_card_and_the_table_counts_by_mode(tmp_path):
    pairs = [pair(), pair(rejected=3), pair("short"), pair(prompt=prompt_named("q"))]
    page, document = shown_pairs(tmp_path, *pairs)
    assert [(card.prompt_id, card.mode, len(card.items)) for card in page.cards] == [
        ("p", "long", 2),
        ("p", "short", 1),
        ("q", "long", 1),
    ]
    (table,) = within(document, "table")
    header = "mode,prompts,pairs,score of chosen,score of rejected,claims of chosen,"
    header += "claims of rejected,tokens of chosen,tokens of rejected"
    assert [[text_of(cell) for cell in line] for line in within(table, "tr")] == [
        header.split(","),
        ["long", "2", "3", "0", "-2", "1", "3", "1", "2.667"],
        ["short", "1", "1", "0", "-2", "1", "3", "1", "2"],
    ]


def test_the_script_finds_every_field_and_figure_of_a_pair(tmp_path):
    _, document = shown_pairs(tmp_path, pair())
    check_form(document)
    assert next(within(document, "main")).attrib["data-items"] == "pairs"
    options = [
        [text_of(o) for o in within(select, "option")] for select in within(document, "select")
    ]
    assert options[:2] == [["any", "long"], ["any", "text"]]


def test_hostile_text_in_every_field_stays_text(tmp_path):
    prompt = Prompt(HOSTILE, ({"role": HOSTILE, "content": HOSTILE},), HOSTILE, HOSTILE)
    _, document = shown_pairs(tmp_path, pair(HOSTILE, prompt, said=HOSTILE))
    assert len(list(within(document, "script"))) == len(list(within(document, "style"))) == 1
    assert not list(within(document, "img"))
    assert not [e for e in within(document) if any(key.startswith("on") for key in e.attrib)]
    (one,) = within(document, class_="item")
    assert [one.attrib[f"data-{key}"] for key in ("mode", "task")] == [HOSTILE] * 2
    claim, question = texts(next(within(one, class_="claim")))
    assert (claim, question) == (f"{HOSTILE} 0", f"Is it {HOSTILE} 0?")


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_claim_and_question_come_back_and_leave_the_markup_as_it_is(text, question):
    document, plain = (document_of_claim(Claim(*texts)) for texts in ((text, question), "xx"))
    (claim,) = within(document, class_="claim")
    assert texts(claim) == [as_shown(text), as_shown(question)]
    assert shape(document) == shape(plain)


def document_of_claim(claim):
    chosen, rejected = (Response(PROMPT, "long", n, (5,), "it", "it") for n in (0, 1))
    with tempfile.TemporaryDirectory() as root:
        sides = JudgedResponse(chosen, (), ()), JudgedResponse(rejected, (claim,), (NO,))
        _, document = shown_pairs(Path(root), PreferencePair(*sides))
    return document


def test_the_newest_iteration_with_pairs_is_shown_unless_one_is_named(aligned, capsys):
    path = aligned / "samples" / "iteration_2.html"
    assert main([f"run={aligned}"]) == 0
    assert capsys.readouterr().out == f"3 of 3 pairs of iteration 2 in {path}\n"
    assert "<title>some/align, iteration 2</title>" in path.read_text("utf-8")
    assert show([f"run={aligned}", "step=1"])[0].name == "iteration_1.html"
    both, page = show([f"run={aligned}", "step=1..2"])
    assert (both.name, len(page.shown)) == ("iteration_1-2.html", 6)
    assert [card.facts[0] for card in page.cards] == ["iteration 1"] * 3 + ["iteration 2"] * 3


def test_the_limit_keeps_all_pairs_of_a_prompt_and_what_is_left_out_is_said(aligned):
    named = {name: prompt_named(name) for name in "abc"}
    pairs = [pair(prompt=named["a"]), pair(prompt=named["b"]), pair(prompt=named["b"], rejected=2)]
    write(aligned, 4, [*pairs, pair(prompt=named["c"])])
    path, page = show([f"run={aligned}", "limit=2"])
    # The pair of c would fit, and stand beside the gap that b leaves.
    assert [card.prompt_id for card in page.cards] == ["a"]
    assert line_of(next(within(parsed(path.read_text("utf-8")), "p"))) == (
        "Groups: 3. Pairs: 4. The table counts all of them; under it are the first 1 "
        "groups with 1 pairs. With limit=4 all are shown."
    )


def test_a_pass_is_not_watched(aligned, capsys):
    assert main([f"run={aligned}", "watch=true"]) == 2
    assert "is an RLAIF-V pass, and watch=true is for runs" in capsys.readouterr().err


@pytest.mark.parametrize("step", [0, 3, 7])
def test_an_iteration_without_pairs_is_refused(aligned, capsys, step):
    assert main([f"run={aligned}", f"step={step}"]) == 2
    error = f"error: no iteration {step} can be shown; there are 1..2\n"
    assert capsys.readouterr().err == error


def test_a_pass_that_has_no_pairs_yet_is_told_from_a_run_without_ledger(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert main([f"run={tmp_path}", "step=latest"]) == 2
    assert "log.ledger=true" in capsys.readouterr().err
    (tmp_path / "iteration_1").mkdir()
    assert main([f"run={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"no iteration of {tmp_path} has its pairs.parquet" in said
    assert said.count("\n") == 1 and not (tmp_path / "samples").exists()


def test_a_file_that_holds_no_pairs_is_one_line(aligned, capsys):
    (aligned / "iteration_2" / "pairs.parquet").write_text("no table")
    assert main([f"run={aligned}"]) == 2
    assert "pairs.parquet is no Parquet file" in capsys.readouterr().err


def test_the_pictures_of_a_prompt_are_painted_with_the_settings_of_the_pass(aligned):
    (aligned / "config.yaml").write_text(
        "data: {kind: visual, path: digits, settings: {width: 90}}"
    )
    prompt = prompt_named("a", (RenderedMedium("digits", 0, 3, False, 0),))
    write(aligned, 2, [pair(prompt=prompt), pair(prompt=prompt, rejected=2)])
    path, _ = show([f"run={aligned}"])
    (figure,) = within(parsed(path.read_text("utf-8")), "figure")
    assert pixels_of(figure).size == (90, 28)
    assert line_of(figure) == "digits, training picture 3 of seed 0"
