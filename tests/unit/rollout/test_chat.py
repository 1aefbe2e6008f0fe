import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.builtin.tokenizer import make_tokenizer
from rl.config.policy import THINK_TAGS, ThinkTags
from rl.config.rollout import ModeConfig
from rl.data.media.minicpmv import IMAGE_MARKER, VIDEO_MARKER
from rl.data.media.names import MediaFile
from rl.loop.stages import Prompt, split_response
from rollout.chat import ChatTemplate, UnaskablePrompt, leave_out_unaskable
from rollout.prompts.stream import PromptStream
from tests import bpe_policy
from tests.fakes import config
from tests.minicpmv_tiny import tiny_tokenizer

TURNS = (
    "{%- for m in messages -%}{{ '<' + m.role[0] + '>' + m.content }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<a>' }}"
)
EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
# Opens nothing to think; closes an empty block to answer at once.
QWEN3 = TURNS + "{%- if enable_thinking is false -%}" + EMPTY + "{%- endif -%}{%- endif -%}"
# Opens the block itself to think.
MINICPM = (
    TURNS
    + "{%- if enable_thinking -%}{{ '<think>\\n' }}{%- else -%}"
    + EMPTY
    + "{%- endif -%}{%- endif -%}"
)
# Always thinks, as distilled reasoning models do.
ALWAYS = TURNS + "{{ '<think>\\n' }}{%- endif -%}"
PLAIN = TURNS + "{%- endif -%}"
# A word in the system message outweighs the keyword.
SMOLLM = (
    "{%- set on = enable_thinking -%}{%- set system = messages[0].content -%}"
    "{%- if '/no_think' in system -%}{%- set on = false -%}"
    "{%- elif '/think' in system -%}{%- set on = true -%}{%- endif -%}"
    + TURNS
    + "{%- if not on -%}{{ '<think>\\n\\n</think>\\n' }}{%- endif -%}{%- endif -%}"
)
NO_SYSTEM = (
    "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    + QWEN3
)
ASKED = Prompt("p/1", ({"role": "user", "content": "2+2?"},), "4")


def open_chat(directory, template: str | None, tags: ThinkTags = THINK_TAGS) -> ChatTemplate:
    tokenizer = make_tokenizer(512)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return ChatTemplate(str(directory), tags)


def no_media(prompt: Prompt) -> int:
    return 0


def rendered(chat: ChatTemplate, thinking: bool) -> str:
    return chat.text(chat.prompt_token_ids(ASKED, thinking))


LONG, SHORT = "<think>\n", "<think>\n\n</think>\n\n"
# How a chat template ends -> what the prompts of both modes end with.
ENDINGS = {
    "qwen3": (QWEN3, LONG, SHORT),
    "minicpm": (MINICPM, LONG, SHORT),
    "plain": (PLAIN, LONG, SHORT),
    "always opens the tag": (ALWAYS, LONG, SHORT),
    "... without a line end": (TURNS + "{{ '<think>' }}{%- endif -%}", "<think>", SHORT),
    "... with two of them": (TURNS + "{{ '<think>\\n\\n' }}{%- endif -%}", "<think>\n\n", SHORT),
    "closes as it likes": (SMOLLM, LONG, "<think>\n\n</think>\n"),
    "another keyword": (
        TURNS + "{{ '<think>' if thinking else '</think>' }}{%- endif -%}",
        "<think>",
        "</think>",
    ),
    "another keyword, no tags": (
        TURNS + "{{ 'Think. ' if thinking else '' }}{%- endif -%}",
        "Think. <think>\n",
        "",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_prompts_end_as_the_template_ends_them_or_else_with_one_open_tag_or_an_empty_block(
    tmp_path, name
):
    template, long, short = ENDINGS[name]
    chat = open_chat(tmp_path, template)
    assert rendered(chat, True) == f"<u>2+2?<a>{long}"
    assert rendered(chat, False) == f"<u>2+2?<a>{short}"


@pytest.mark.parametrize("name", ENDINGS)
def test_a_template_without_a_switch_serves_both_modes_after_a_note(tmp_path, name):
    chat = open_chat(tmp_path, ENDINGS[name][0])
    has_switch = not any(word in name for word in ("plain", "always", "..."))
    assert [note for note in chat.check_policy(MODES) if "no switch for reasoning" in note] == (
        [] if has_switch else chat.check_policy(MODES)[:1]
    )
    for one, alone in MODES.items():
        notes = chat.check_policy({one: alone})
        assert [note for note in notes if "is put behind" not in note] == []
        # It cannot be told whether words without tags are what the model was taught.
        assert bool(notes) is (name == "another keyword, no tags")


@pytest.mark.parametrize("word", ["/think", "/no_think"])
def test_the_mode_outweighs_a_message_that_outweighs_the_switch(tmp_path, word):
    chat = open_chat(tmp_path, SMOLLM)
    told = Prompt("p/7", ({"role": "system", "content": f"Short. {word}"}, *ASKED.messages), "4")
    ends = [
        chat.raw_text(chat.prompt_token_ids(told, on)).partition("<a>")[2] for on in (True, False)
    ]
    assert ends == [LONG, SHORT if word == "/think" else "<think>\n\n</think>\n"]


def test_a_template_that_never_reasons_cannot_be_asked_to(tmp_path):
    chat = open_chat(tmp_path, TURNS + EMPTY + "{%- endif -%}")
    assert rendered(chat, False) == "<u>2+2?<a><think>\n\n</think>\n\n"
    assert chat.check_policy({"short": MODES["short"]}) == []
    with pytest.raises(ValueError, match=r"mode long.*set .* in modes\.long\.chat_template_kwargs"):
        chat.check_policy(MODES)


SEED = ThinkTags(open="<seed:think>", close="</seed:think>")
BUDGET = (
    TURNS + "{%- if thinking_budget is defined -%}{{ '<budget ' ~ thinking_budget ~ '>' }}"
    "{%- if thinking_budget == 0 -%}{{ '<seed:think>\\n</seed:think>' }}{%- endif -%}{%- endif -%}"
    "{%- endif -%}"
)


def mode(thinking: bool, **variables: object) -> ModeConfig:
    return ModeConfig(share=0.5, thinking=thinking, max_tokens=4, chat_template_kwargs=variables)


MODES = {"short": mode(False), "long": mode(True)}


def test_tags_and_variables_of_the_template_are_settings(tmp_path):
    chat = open_chat(tmp_path, BUDGET, SEED)
    short, long = mode(False, thinking_budget=0), mode(True, thinking_budget=512)
    # They tell the modes apart, so nothing is to be said of a switch.
    assert chat.check_policy({"short": short, "long": long}) == []
    asked = [
        chat.raw_text(chat.prompt_token_ids(ASKED, each.thinking, each.chat_template_kwargs))
        for each in (short, long)
    ]
    assert asked == [
        "<u>2+2?<a><budget 0><seed:think>\n</seed:think>",
        "<u>2+2?<a><budget 512><seed:think>\n",
    ]
    # Without them the tags alone tell the modes apart.
    assert rendered(chat, True) == "<u>2+2?<a><seed:think>\n"
    assert rendered(chat, False) == "<u>2+2?<a><seed:think>\n\n</seed:think>\n\n"
    assert chat.length_above(ASKED, True, 8, {"thinking_budget": 512}) == len(
        chat.prompt_token_ids(ASKED, True, {"thinking_budget": 512})
    )


def test_variables_that_do_nothing_or_contradict_the_mode_are_refused(tmp_path):
    chat = open_chat(tmp_path, QWEN3)
    with pytest.raises(ValueError, match=r"modes\.long\.chat_template_kwargs sets budget, which"):
        chat.check_policy({"long": mode(True, budget=4)})
    with pytest.raises(ValueError, match=r"enable_thinking is False and modes\.long\.thinking is"):
        chat.check_policy({"long": mode(True, enable_thinking=False)})
    with pytest.raises(ValueError, match="multiple values for keyword argument 'messages'"):
        chat.check_policy({"long": mode(True, messages=[])})
    chat.check_policy({"long": mode(True, enable_thinking=True)})


@pytest.mark.parametrize("tags", [SEED, ThinkTags()], ids=["its own", "others"])
def test_tags_that_the_template_does_not_write_are_told(tmp_path, tags):
    (note,) = open_chat(tmp_path, BUDGET, tags).check_policy({"long": MODES["long"]}) or [""]
    told = 'policy.think_tags: {open: "<seed:think>", close: "</seed:think>"}' in note
    assert told is (tags != SEED)


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        (("<|think|>", "<|think|><|/think|>"), 'open: "<|think|>", close: "<|/think|>"'),
        (("<muse>", "<muse></muse>"), "with '<a><muse>' for a mode that reasons and"),
        (("<think>", "</think>"), None),
    ],
)
def test_a_switch_with_tags_of_its_own_is_told(tmp_path, ends, told):
    ending = f"{{{{ '{ends[0]}' if enable_thinking else '{ends[1]}' }}}}"
    notes = open_chat(tmp_path, TURNS + ending + "{%- endif -%}").check_policy(MODES)
    assert (told in notes[0]) if told else notes == []


@pytest.mark.parametrize(
    ("template", "lacks"),
    [
        ("{%- for m in messages -%}{{ '<' + m.role + '>' + m.content }}{%- endfor -%}", "<assist"),
        # The user's turn has an end, behind which the answer stands.
        ("{%- for m in messages -%}{{ m.content + '[/INST]' }}{%- endfor -%}", None),
    ],
)
def test_a_template_that_begins_no_answer_is_told(tmp_path, template, lacks):
    notes = open_chat(tmp_path, template).check_policy(MODES)
    found = [note for note in notes if "add_generation_prompt" in note]
    assert (f"prompts lack '{lacks}" in found[0]) if lacks else found == []


def test_a_template_that_writes_the_day_is_told_unless_the_day_is_set(tmp_path):
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + QWEN3
    chat = open_chat(tmp_path, dated)
    (note,) = chat.check_policy(MODES)
    assert "the current day" in note and "chat_template_kwargs" in note
    assert chat.check_policy({"long": mode(True, date_string="1 May 2024")}) == []


def test_the_built_in_policy_uses_its_own_template(tmp_path):
    chat = open_chat(tmp_path, None)
    assert rendered(chat, True) == "<user>2+2?<asst>\n<think>\n"
    assert rendered(chat, False) == "<user>2+2?<asst>\n<think>\n\n</think>\n\n"
    # One token per character or marker: user, 4, asst, \n, think, \n.
    assert len(chat.prompt_token_ids(ASKED, True)) == 9


def test_a_model_without_a_template_is_refused(tmp_path):
    tokenizer = make_tokenizer(512)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate(str(tmp_path))


def test_a_template_that_leaves_the_question_out_is_refused(tmp_path):
    # As Qwen3's does with a content that is no text.
    template = "{%- for m in messages -%}{{ '<u>' }}{%- endfor -%}<a>"
    with pytest.raises(ValueError, match="does not write the question that it is given, but '<u><"):
        open_chat(tmp_path, template).check_policy(MODES)


def test_messages_that_the_template_refuses_name_the_prompt(tmp_path):
    chat = open_chat(tmp_path, NO_SYSTEM)
    prompt = Prompt("p/7", ({"role": "system", "content": "x"}, *ASKED.messages), "4")
    with pytest.raises(ValueError, match="refuses prompt p/7: no system role"):
        chat.prompt_token_ids(prompt, True)


@pytest.mark.parametrize(
    "files",
    [
        {"generation_config": {"eos_token_id": [1, 3]}},
        # What an engine takes where there is no generation_config.json.
        {"config": {"eos_token_id": [1, 3]}},
        {"config": {"text_config": {"eos_token_id": 3}}},
        {"generation_config": {"eos_token_id": 1}, "config": {"eos_token_id": 3}},
    ],
)
def test_text_drops_one_final_end_token_and_keeps_other_special_tokens(tmp_path, files):
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    chat = open_chat(tmp_path, QWEN3)
    assert chat.end_tokens == {1, 3}
    tokenizer = make_tokenizer(512)
    ids = tokenizer("4</think>\n<pad>", add_special_tokens=False)["input_ids"]
    for end in (1, 3):
        assert chat.text([*ids, end]) == "4</think>\n<pad>"
    assert chat.text([*ids, 1, 1]) == "4</think>\n<pad><eos>"
    assert chat.text([]) == ""
    four = chat.token_ids("4")
    assert chat.response_token_ids("4", False) == four
    assert chat.response_token_ids("4", True) == (*four, 1)
    assert chat.response_token_ids("4", True, end_token=3) == (*four, 3)


def test_a_model_that_never_ends_a_response_is_refused(tmp_path):
    tokenizer = make_tokenizer(512)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"names no end of sequence.* set eos_token in its"):
        ChatTemplate(str(tmp_path)).check_policy(MODES)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert ChatTemplate(str(tmp_path)).response_token_ids("", True) == (3,)
    (tmp_path / "config.json").write_text('{"eos_token_id": "<end>"}')
    with pytest.raises(ValueError, match="must be the id of a token or a list of ids, got '<end>'"):
        ChatTemplate(str(tmp_path))
    (tmp_path / "config.json").write_text('{"eos_token_id": [9999]}')
    with pytest.raises(ValueError, match=r"with the token 9999, which its tokenizer does not have"):
        ChatTemplate(str(tmp_path)).check_policy(MODES)


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_a_directory_without_a_tokenizer_is_named(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=r"no usable tokenizer: .* copy tokenizer\.json"):
        ChatTemplate(str(tmp_path))


@pytest.mark.parametrize("form", ["{}", '{{"text_config": {}}}'])
def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path, form):
    tokenizer = make_tokenizer(512)
    rows = len(tokenizer)
    (tmp_path / "config.json").write_text(form.format(json.dumps({"vocab_size": rows})))
    tokenizer.save_pretrained(tmp_path)
    ChatTemplate(str(tmp_path)).check_policy(MODES)
    tokenizer.add_tokens(["<scratch>"])
    tokenizer.save_pretrained(tmp_path)
    chat = ChatTemplate(str(tmp_path))
    with pytest.raises(ValueError, match=rf"1 tokens .*'<scratch>' with the id {rows}"):
        chat.check_policy(MODES)


def test_a_placeholder_of_images_that_a_text_model_has_no_row_for_is_no_obstacle(tmp_path):
    tokenizer = make_tokenizer(512)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer)}))
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(tmp_path)
    chat = ChatTemplate(str(tmp_path))
    chat.check_policy(MODES)
    assert chat.prompt_token_ids(ASKED, True)
    written = Prompt("p/3", ({"role": "user", "content": "<image_soft_token>?"},), "4")
    with pytest.raises(ValueError, match="prompt p/3 writes <image_soft_token>"):
        chat.prompt_token_ids(written, True)


def test_split_by_hand():
    assert split_response("a+b\n</think>\n\n4", True) == ("a+b\n", "\n\n4")
    assert split_response("a+b", True) == ("a+b", None)
    assert split_response("x</think>y</think>z", True) == ("x", "y</think>z")
    assert split_response("a</think>4", False) == (None, "a</think>4")
    assert split_response("a</think>b[/T]4", True, ThinkTags(open="[T]", close="[/T]")) == (
        "a</think>b",
        "4",
    )


def test_length_is_told_only_above_the_limit(tmp_path):
    chat = open_chat(tmp_path, None)
    # 9 tokens, 23 bytes: limits on both sides of each.
    lengths = [chat.length_above(ASKED, True, limit) for limit in (8, 9, 22, 23)]
    assert lengths == [9, None, None, None]


@given(text=st.text(alphabet="ab<>/think\n", max_size=40))
def test_split_loses_nothing(text):
    reasoning, answer = split_response(text, True)
    assert text == (reasoning if answer is None else f"{reasoning}</think>{answer}")
    assert "</think>" not in reasoning


def test_prompts_that_leave_no_room_are_counted_and_named(tmp_path):
    chat = open_chat(tmp_path, None)
    cfg = config(
        data={"kind": "chain_sum", "settings": {"lengths": [3, 6]}},
        modes__long__max_tokens=16,
        rollout__max_model_length=30,
        eval__prompts=4,
    )
    stream = PromptStream.open(cfg)
    # 6 labelled numbers: user, 12 characters, ?, asst, \n, think, \n = 18 tokens, + 16 > 30;
    # 3 of them make 12 tokens, which fit.
    with pytest.raises(
        ValueError, match=r"too long for mode long: up to 18 prompt tokens"
    ) as caught:
        leave_out_unaskable(cfg, stream, chat, no_media)
    assert "chain_sum/heldout/1, chain_sum/heldout/3, chain_sum/train/" in str(caught.value)
    assert "heldout/0" not in str(caught.value)
    fits = config(rollout__max_model_length=34, data__settings={"lengths": [3, 6]})
    leave_out_unaskable(fits, PromptStream.open(fits), chat, no_media)


def test_rows_that_leave_no_room_are_left_out_and_named_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    chat, path = open_chat(tmp_path, None), tmp_path / "rows.jsonl"
    rows = [
        {"question": "a" * (40 if n % 4 == 0 else 3) + f"{n}?", "answer": "1"} for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "dataset", "path": str(path), "heldout_share": 0.3}
    settings = config(data=data, rollout__max_model_length=48, eval__prompts=40)
    stream = PromptStream.open(settings)
    leave_out_unaskable(settings, stream, chat, no_media)
    left = {int(row.id.rpartition("/")[2]) for row in stream.quarantined}
    assert left == set(range(0, 40, 4))
    assert {row.reason.partition(":")[0] for row in stream.quarantined} == {"too_long"}
    kept = [*stream.checked(), *stream.heldout(40)]
    assert len(kept) == 30 and not {int(p.id.rpartition("/")[2]) for p in kept} & left
    # The same rows go from a fresh stream, so a resumed run asks the same prompts.
    again = PromptStream.open(settings)
    leave_out_unaskable(settings, again, chat, no_media)
    assert [again.prompts(step) for step in range(9)] == [stream.prompts(step) for step in range(9)]
    refused = config(data=data | {"too_long": "refuse"}, rollout__max_model_length=48)
    with pytest.raises(ValueError, match="prompts are too long for mode"):
        leave_out_unaskable(refused, PromptStream.open(refused), chat, no_media)
    none = config(data=data, rollout__max_model_length=36)
    with pytest.raises(ValueError, match=r"too long for mode .*rows: no train row is left"):
        leave_out_unaskable(none, PromptStream.open(none), chat, lambda prompt: 30)


IMAGE, VIDEO = MediaFile("image", "/a.png"), MediaFile("video", "/b.mp4")


def seeing_chat(directory) -> ChatTemplate:
    """MiniCPM-V, whose template takes text alone."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "minicpmv"}')
    return ChatTemplate(str(directory))


def shown(parts: list, *media: MediaFile) -> Prompt:
    return Prompt("p/1", ({"role": "user", "content": parts},), "4", media=media)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_prompts_of_the_policies_that_see_are_as_they_always_were(tmp_path):
    chat = seeing_chat(tmp_path)
    turn = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert [rendered(chat, thinking) for thinking in (True, False)] == [turn + LONG, turn + SHORT]


def test_media_are_one_marker_each_in_the_order_of_the_messages(tmp_path):
    chat = seeing_chat(tmp_path)
    parts = [{"type": "image"}, text("then"), {"type": "video"}, text("what?")]
    ids = chat.prompt_token_ids(shown(parts, IMAGE, VIDEO), thinking=False)
    body = f"{IMAGE_MARKER}\nthen\n{VIDEO_MARKER}\nwhat?"
    assert chat.raw_text(ids).startswith(f"<|im_start|>user\n{body}<|im_end|>\n")
    marker = list(chat.token_ids(IMAGE_MARKER))
    # In running text the marker's last character and the new line are one token.
    assert marker != list(chat.token_ids(f"{IMAGE_MARKER}\n"))[: len(marker)]
    assert marker in [list(ids[i : i + len(marker)]) for i in range(len(ids))]


@pytest.mark.parametrize(
    ("parts", "media"),
    [
        ([text("what?")], [IMAGE]),
        ([{"type": "image"}, text("what?")], [VIDEO]),
        ([{"type": "image"}, text(f"{IMAGE_MARKER} what?")], [IMAGE]),
        ([text(f"{VIDEO_MARKER} what?")], []),
    ],
    ids=["none", "other kind", "written by the text", "text alone"],
)
def test_markers_must_match_the_media(tmp_path, parts, media):
    chat = seeing_chat(tmp_path)
    with pytest.raises(ValueError, match=r"prompt p/1 .* has markers for"):
        chat.prompt_token_ids(shown(parts, *media), thinking=False)


def test_a_text_cannot_write_an_image(tmp_path):
    chat = seeing_chat(tmp_path)
    forged = shown([{"type": "image"}, text("<image><unk></image>")], IMAGE)
    with pytest.raises(ValueError, match="must not write <image>, </image>"):
        chat.prompt_token_ids(forged, thinking=False)


def test_a_policy_of_text_refuses_media(tmp_path):
    chat = open_chat(tmp_path, QWEN3)
    assert chat.unsampled == ()
    with pytest.raises(ValueError, match=r"shows 1 images or videos, and .* reads text only"):
        chat.prompt_token_ids(shown([{"type": "image"}], IMAGE), thinking=False)


def test_rows_that_write_a_marker_are_left_out_and_named_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    chat, path = seeing_chat(tmp_path), tmp_path / "rows.jsonl"
    words = [(IMAGE_MARKER, "<slice>", "plain", "good")[n % 4] for n in range(24)]
    rows = [{"question": f"What is {word} {n}?", "answer": "1"} for n, word in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "dataset", "path": str(path), "heldout_share": 0.3}
    settings = config(data=data, rollout__max_model_length=999, eval__prompts=24)
    stream = PromptStream.open(settings)
    leave_out_unaskable(settings, stream, chat, no_media)
    left = {int(row.id.rpartition("/")[2]): row.reason for row in stream.quarantined}
    assert sorted(left) == [n for n in range(24) if n % 4 < 2]
    assert all(reason.startswith("unaskable: ") for reason in left.values())
    # None of the others is refused once engines run.
    for prompt in (*stream.checked(), *stream.heldout(24)):
        assert chat.prompt_token_ids(prompt, thinking=False)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::4]))
    none = PromptStream.open(settings)
    with pytest.raises(ValueError, match=r"prompts cannot be asked .*has markers for \['image'\]"):
        leave_out_unaskable(settings, none, chat, no_media)


def test_no_token_of_a_medium_may_be_sampled(tmp_path):
    chat = seeing_chat(tmp_path)
    names = "<unk> <image> </image> <slice> </slice> <image_id> </image_id>".split()
    assert [chat.raw_text([token]) for token in chat.unsampled] == names


def test_what_media_take_counts_against_the_engines_length(tmp_path):
    chat = open_chat(tmp_path, QWEN3)
    settings = config(rollout__max_model_length=64)
    stream = PromptStream.open(settings)
    leave_out_unaskable(settings, stream, chat, no_media)
    with pytest.raises(ValueError, match="too long for mode"):
        leave_out_unaskable(settings, stream, chat, lambda prompt: 60)


# A mode in which the policy chooses.

AUTO = {"auto": ModeConfig(share=1.0, thinking="auto", max_tokens=9)}


def open_choosing(directory, template: str) -> ChatTemplate:
    """With a tokenizer of which two line ends are one token."""
    tokenizer = make_tokenizer(512, has_blank_line=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return ChatTemplate(str(directory))


def open_bpe(directory) -> ChatTemplate:
    bpe_policy.make_tokenizer().save_pretrained(directory)
    return ChatTemplate(str(directory))


@pytest.mark.parametrize("name", ["qwen3", "minicpm", "plain", "always opens the tag", "bpe"])
def test_what_follows_a_choice_has_the_tokens_of_the_mode_that_was_chosen(tmp_path, name):
    is_bpe = name == "bpe"
    chat = open_bpe(tmp_path) if is_bpe else open_choosing(tmp_path, ENDINGS[name][0])
    assert chat.check_policy(AUTO) == []
    kinds = chat.choice_tokens()
    for prompt in (ASKED, Prompt("p/2", ({"role": "user", "content": "so\n\n"},), "4")):
        auto, long, short = (chat.prompt_token_ids(prompt, on) for on in ("auto", True, False))
        assert (*auto, *kinds.long) == long
        assert (*auto, *kinds.short) == short
        assert chat.length_above(prompt, "auto", len(auto) - 1) == len(auto)
    assert kinds.long[0] != kinds.short[0]
    assert chat.raw_text(kinds.long) == "\n"
    assert chat.raw_text(kinds.short) == "\n\n</think>\n\n"


@pytest.mark.parametrize("ending", ["<think>", "<think>\\n\\n\\n"])
def test_a_prompt_that_leaves_another_choice_is_known_before_it_is_asked(tmp_path, ending):
    """Also one that is short enough not to be tokenised."""
    quick = f"{{%- elif 'quickly' in messages[0].content -%}}{{{{ '{ending}' }}}}"
    plain = "{%- if not enable_thinking -%}" + EMPTY
    last = "{%- else -%}{{ '<think>\\n' }}{%- endif -%}{%- endif -%}"
    chat = open_choosing(tmp_path, TURNS + plain + quick + last)
    assert chat.length_above(ASKED, "auto", 400) is None
    asked = Prompt("p/2", ({"role": "user", "content": "quickly: 2+2?"},), "4")
    with pytest.raises(UnaskablePrompt, match=r"other tokens|one prompt begins with the other"):
        chat.length_above(asked, "auto", 400)


def test_a_switch_that_is_two_tags_is_a_choice_between_them(tmp_path):
    chat = open_choosing(tmp_path, ENDINGS["another keyword"][0])
    kinds = chat.choice_tokens()
    assert [chat.raw_text(tail) for tail in (kinds.long, kinds.short)] == ["<think>", "</think>"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        # Here the prompt of the one mode is how that of the other begins.
        ("qwen3", "one prompt begins with the other"),
        ("... without a line end", "one prompt begins with the other"),
        ("another keyword, no tags", "one prompt begins with the other"),
    ],
)
def test_a_policy_that_cannot_be_asked_to_choose_is_refused(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        open_chat(tmp_path, ENDINGS[name][0]).check_policy(AUTO)


def test_prompts_that_differ_before_the_tag_leave_no_choice(tmp_path):
    told = "{{ 'Think. ' if enable_thinking else 'Be quick. ' }}" + QWEN3
    with pytest.raises(ValueError, match="its prompts differ before <think>"):
        open_choosing(tmp_path, told).check_policy(AUTO)


def test_the_switch_of_a_mode_that_chooses_is_not_set_beside_it(tmp_path):
    chat = open_choosing(tmp_path, QWEN3)
    settings = {"share": 0.0, "thinking": "auto", "max_tokens": 9, "chat_template_kwargs": {}}
    switched = settings | {"chat_template_kwargs": {"enable_thinking": True}}
    with pytest.raises(ValueError, match=r"enable_thinking is True and modes\.auto"):
        chat.check_policy({"auto": ModeConfig(**switched)})
