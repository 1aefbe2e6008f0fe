"""What the policy that describes is taught, and which claims its labeller is."""

import numpy as np
import pytest

from policy.builtin.labelling import LEAD
from policy.builtin.sight.describing_task import TASK, misseen, worked_example
from policy.builtin.sight.description_labeller import MISTAKES, RECIPE, DescriptionClaims
from policy.builtin.warmup import Question
from rl.align.claims import rules
from rl.data.tasks.chain_sum import Slips
from rl.data.tasks.pictures import draw_scene, read_settings
from rl.data.tasks.pictures.descriptions import Shape, describe

PARTS = (Shape("red", "star"), None, None, Shape("blue", "circle"))
DESCRIBED = "There are two shapes. Part 1 shows a red star. Part 4 shows a blue circle."
SETTINGS = read_settings("descriptions", TASK)


def asked(index: int) -> Question:
    scene = draw_scene("descriptions", SETTINGS, 3, index, False)
    return Question(scene.question, scene.answer, (), (), scene)


def test_a_long_example_lists_the_parts_counts_and_then_describes():
    listed = "1: red star\n2: nothing\n3: nothing\n4: blue circle\n= two\n"
    assert worked_example(PARTS, thinking=True) == f"{listed}</think>\n\n{DESCRIBED}"
    assert worked_example(PARTS, thinking=False) == DESCRIBED == describe(PARTS)


def test_an_example_that_errs_describes_what_it_listed():
    slips = Slips(np.random.default_rng(0), reasoning=1.0, answer=1.0)
    for _ in range(100):
        listed, _, answer = worked_example(PARTS, True, slips).partition("</think>\n\n")
        shown = [line[3:] for line in listed.splitlines()[:4]]
        told = [sentence.split() for sentence in answer.removesuffix(".").split(". ")[1:]]
        assert {words[1]: " ".join(words[-2:]) for words in told} == {
            str(place): what for place, what in enumerate(shown, start=1) if what != "nothing"
        }
        assert answer != DESCRIBED


def test_mistakes_are_as_frequent_as_their_rate_and_keep_the_number_of_shapes_within_bounds():
    rng, full = np.random.default_rng(0), (Shape("red", "star"),) * 4
    seen = [misseen(full, rng, 0.2) for _ in range(1000)]
    other = [shape is not None and shape != full[0] for parts in seen for shape in parts]
    assert np.mean(other) == pytest.approx(0.2 * 0.95, abs=0.02)
    assert np.mean([None in parts for parts in seen]) == pytest.approx(0.2, abs=0.04)
    # Exactly one of colour and form is another.
    wrong = {shape for parts in seen for shape in parts if shape and shape != full[0]}
    assert all((shape.colour == "red") != (shape.form == "star") for shape in wrong)
    fewest = [sum(map(bool, misseen(PARTS, rng, 1.0))) for _ in range(200)]
    assert set(fewest) == {2, 3}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_claims_are_sentences_of_descriptions_and_asked_about_as_the_rules_do(mistake: str):
    claims, rng = DescriptionClaims(None), np.random.default_rng(0)  # type: ignore[arg-type]
    for index in range(100):
        question = asked(index)
        right, wrong = claims.pair(rng, question, mistake)
        told = rules.claims(question.text, question.answer)
        assert right in told and wrong not in told
        for claim in (right, wrong):
            (divided,) = rules.claims(question.text, claim)
            assert divided == claim
            assert rules.question(divided) == claims.asked(question, claim)
            assert claims.asked(question, claim).startswith(LEAD)


def test_mistakes_are_what_their_names_say():
    claims, rng = DescriptionClaims(None), np.random.default_rng(0)  # type: ignore[arg-type]
    scene = draw_scene("descriptions", SETTINGS, 0, 0, False)
    question = Question("?", DESCRIBED, (), (), type(scene)(*("",) * 4, PARTS, "together"))
    wrong = {name: {claims.pair(rng, question, name)[1] for _ in range(300)} for name in MISTAKES}
    assert wrong["number"] == {"There are three shapes.", "There are four shapes."}
    assert wrong["elsewhere"] == {
        "Part 1 shows a blue circle.",
        "Part 4 shows a red star.",
    }
    assert {claim.split()[1] for claim in wrong["invented"]} == {"2", "3"}
    assert {claim.split()[-1] for claim in wrong["colour"]} == {"star.", "circle."}
    assert {claim.split()[-2] for claim in wrong["form"]} == {"red", "blue"}
    assert len(wrong["colour"]) == 2 * 5 and len(wrong["form"]) == 2 * 4
    assert sum(RECIPE.shares) == pytest.approx(1)
