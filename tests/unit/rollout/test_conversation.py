"""Questions and answers as data sets hold them: messages of every kind, templates, last turns."""

import json

import pytest

from rl.config.data import SourceConfig
from rollout.prompts.conversation import Template, read_question
from rollout.prompts.dataset import DatasetSource

MODES = ("short", "long")


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(tmp_path, rows, columns=None, **settings) -> DatasetSource:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSource(SourceConfig(path=str(path), columns=columns or {}, **settings), MODES)


def first(tmp_path, row, columns=None, **settings):
    """The prompt of a row that stands there three times, which is in one split for that."""
    source = opened(tmp_path, [row, row, row, other(row)], columns, **settings)
    prompts = [source.train(n) for n in range(source.train_count)]
    prompts += [source.heldout(n) for n in range(source.heldout_count)]
    (prompt, *_) = [p for p in prompts if p.id.endswith("/0")]
    return prompt


def other(row):
    return json.loads(json.dumps(row).replace("2+2", "3+3"))


def turn(role, content):
    return {"role": role, "content": content}


def said(speaker, value):
    return {"from": speaker, "value": value}


ASKED = (turn("user", "2+2?"),)


@pytest.mark.parametrize(
    "cell",
    [
        "2+2?",
        [turn("user", "2+2?")],
        [turn("User", "2+2?")],
        [said("human", "2+2?")],
        json.dumps([turn("user", "2+2?")]),
        json.dumps([said("human", "2+2?")]),
    ],
)
def test_a_question_is_text_or_messages_in_either_column(tmp_path, cell):
    assert first(tmp_path, {"question": cell, "answer": "4"}).messages == ASKED
    if cell != "2+2?":
        columns = {"messages": "chat"}
        assert first(tmp_path, {"chat": cell, "answer": "4"}, columns).messages == ASKED


def test_speakers_are_called_by_their_roles():
    chat = [said("system", "s"), said("human", "a"), said("gpt", "b"), said("human", "c")]
    roles = [message["role"] for message in read_question(chat, True).messages]
    assert roles == ["system", "user", "assistant", "user"]
    tools = [said("human", "a"), said("function_call", "b"), said("observation", "c")]
    roles = [message["role"] for message in read_question([*tools, *chat[1:2]], True).messages]
    assert roles == ["user", "assistant", "tool", "user"]


def test_bytes_are_no_question():
    with pytest.raises(ValueError, match="neither text nor messages, got b'2"):
        read_question(b"2+2?", False)


def test_messages_that_cannot_be_read_are_told_of_before_the_answer_that_they_lack(tmp_path):
    chat = [said("alien", "2+2?"), said("gpt", "4")]
    with pytest.raises(ValueError, match="message of 'alien'"):
        opened(tmp_path, [{"chat": chat}] * 2, {"messages": "chat"})


def test_a_field_that_is_not_there_is_told_those_beside_it(tmp_path):
    rows = [{"question": "2+2?", "meta": {"gold": 4}}] * 2
    with pytest.raises(ValueError, match=r"reference=meta\.answer; its columns are meta\.gold, "):
        opened(tmp_path, rows, {"reference": "meta.answer"})


@pytest.mark.parametrize("ending", [turn("assistant", "four"), said("gpt", "four")])
def test_the_last_turn_of_the_assistant_is_cut_and_is_the_answer_where_no_column_is(
    tmp_path, ending
):
    chat = [turn("user", "2+2?"), ending]
    columns = {"messages": "chat"}
    for reference in ({}, {"reference": None}):
        prompt = first(tmp_path, {"chat": chat}, columns | reference)
        assert (prompt.messages, prompt.reference) == (ASKED, "four")
    prompt = first(tmp_path, {"chat": chat, "answer": "4"}, columns)
    assert (prompt.messages, prompt.reference) == (ASKED, "4")
    # A column that is named and not there is a mistake.
    with pytest.raises(ValueError, match=r"no column for data\.columns\.reference=solution"):
        first(tmp_path, {"chat": chat}, columns | {"reference": "solution"})


def test_questions_with_other_answers_are_in_one_split(tmp_path):
    rows = [
        {"chat": [turn("user", f"{n % 20}?"), turn("assistant", f"answer {n}")]} for n in range(60)
    ]
    source = opened(tmp_path, rows, {"messages": "chat"}, heldout_share=0.3)
    train = {source.train(n).messages[0]["content"] for n in range(source.train_count)}
    held = {source.heldout(n).messages[0]["content"] for n in range(source.heldout_count)}
    assert len(train) + len(held) == 20


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": {"text": "2+2?"}}, {}, r"neither text nor messages, got \{'text'"),
        ({"question": ["a", "b"]}, {}, r"neither text nor messages, got \['a', 'b'\]"),
        ({"chat": [turn("user", 4)]}, {"messages": "chat"}, "neither a text nor a list of parts"),
        ({"chat": "2+2?"}, {"messages": "chat"}, "without a list of messages"),
        ({"chat": [turn("user", None)]}, {"messages": "chat"}, "without a content"),
        ({"chat": [turn("user", "")]}, {"messages": "chat"}, "nothing in column chat"),
        ({"chat": [said("alien", "2+2?")]}, {"messages": "chat"}, "message of 'alien'"),
        ({"chat": [turn("system", "x")]}, {"messages": "chat"}, "do not end with the user"),
        ({"chat": [turn("user", "2+2?"), turn("tool", "4")]}, {"messages": "chat"}, "do not end"),
        ({"question": "2+2?", "answer": {"value": 4}}, {}, r"answer is none.*value"),
        ({"question": "2+2?", "answer": []}, {}, "nothing in column answer"),
        ({"question": "2+2?", "answer": [" ", None]}, {}, "nothing in column answer"),
        ({"question": "2+2?", "uid": None}, {"id": "uid"}, "whose id is empty"),
        ({"question": "2+2?", "mode": ["short"]}, {"mode": "mode"}, r"none of short, long, got \["),
    ],
)
def test_other_cells_are_refused_with_file_row_and_key(tmp_path, row, columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path, [{"answer": "4"} | row] * 2, columns)
    assert "rows.jsonl row 1" in str(caught.value)
    assert "data.columns." in str(caught.value)


def test_a_list_of_texts_holds_accepted_answers(tmp_path):
    prompt = first(tmp_path, {"question": "2+2?", "answer": ["4", None, "four"]})
    assert json.loads(prompt.reference) == {"any_of": ["4", "four"]}


# Templates


def test_a_template_joins_columns_and_leaves_other_braces_alone(tmp_path):
    template = "{{do}}{% if input %}: {{input}}{% endif %}\nPut it in \\boxed{}."
    columns = {"question": "do"}
    row = {"do": "Add", "input": "2+2", "answer": "4"}
    prompt = first(tmp_path, row, columns, template=template)
    assert prompt.messages[-1]["content"] == "Add: 2+2\nPut it in \\boxed{}."
    bare = first(tmp_path, {**row, "do": "2+2?", "input": None}, columns, template=template)
    assert bare.messages[-1]["content"] == "2+2?\nPut it in \\boxed{}."


def test_a_template_is_put_around_the_last_turn(tmp_path):
    chat = [turn("user", "1+1?"), turn("assistant", "2"), turn("user", "2+2?")]
    row = {"chat": chat, "answer": "4"}
    prompt = first(tmp_path, row, {"messages": "chat"}, template="{{question}} Be brief.")
    assert [m["content"] for m in prompt.messages] == ["1+1?", "2", "2+2? Be brief."]


@pytest.mark.parametrize("term", ["n / 2", "n[0].x", "(n + 'a') | int + 'b'"])
def test_a_cell_that_a_template_is_not_made_for_is_named_with_its_row(tmp_path, term):
    rows = [{"question": "2+2?", "answer": "4", "n": n} for n in (["1"], 3)]
    with pytest.raises(ValueError, match=r"rows\.jsonl row \d: data\.template cannot be filled"):
        opened(tmp_path, rows, template=f"{{{{question}}}} {{{{{term}}}}}")


def test_the_columns_of_a_template_tell_questions_apart(tmp_path):
    rows = [{"do": "Add", "input": str(n), "answer": "1"} for n in range(40)]
    source = opened(
        tmp_path, rows, {"question": "do"}, template="{{do}} {{input}}", heldout_share=0.3
    )
    assert 0 < source.heldout_count < 40


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{questio}}", r"got questio; the columns are question, answer"),
        ("{question} Be brief.", "got neither"),
        ("{{question}} {{answer}}", "would show .*the reference answer"),
        ("{{question", "no Jinja template"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Template(template, ["question", "answer"], "answer")


def test_a_template_may_show_the_fields_beside_the_reference():
    with pytest.raises(ValueError, match=r"would show .*the reference answer"):
        Template("{{question}} {{meta.gold}}", ["question", "meta"], "meta.gold")
    assert Template("{{meta.hint}} {{question}}", ["question", "meta"], "meta.gold").columns == [
        "meta",
        "question",
    ]
