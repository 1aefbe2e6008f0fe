"""What `rl.align` reads and refuses, without an engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rl.align import __main__ as align
from rl.align.__main__ import config_of, main
from rl.align.assistants import ASK, EndpointAssistant, check_assistants
from rl.align.claims import rules
from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import Response
from rl.align.judging import judge
from rl.config.data import SourceConfig
from rl.config.keys import RecipeError
from rl.config.run import Config
from rl.data.media.store import MediaStore
from rl.loop.stages import Prompt
from rl.run.command import read
from rl.run.directory import RunDirectory
from rl.sweep.arms import load_sweep
from rollout import endpoint
from rollout.endpoint import open_endpoint
from tests.bpe_policy import make_policy
from tests.fakes import config
from tests.unit.rl.align.test_assistant import listing
from tests.unit.rl.align.test_label_cache import num_labels
from tests.unit.rollout.test_endpoint import Reply, Server, completion

RECIPE = ["config=rlaif_v.yaml", "scale=cpu_tiny"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without any checkpoint."""
    root = tmp_path / "run"
    stored = config(run=str(root), align={"prompts": 77})
    with RunDirectory(root).open(stored):
        pass
    return root


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert align.main(list(arguments)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def settings_of(*arguments: str) -> Config:
    return config_of(read(main, arguments))


def test_a_command_without_one_clear_policy_is_refused(run, tmp_path, capsys):
    assert "run=runs/NAME" in refused(capsys)
    assert "model=DIR_OR_NAME config=NAME.yaml" in refused(capsys, *RECIPE)
    assert "a run's checkpoint" in refused(capsys, "model=builtin:tiny", "step=4", *RECIPE)
    assert "model= names nothing" in refused(capsys, "model=", *RECIPE)
    assert "step: must be the number" in refused(capsys, f"run={run}", "step=last")
    assert "has no config.yaml; train one with rl.launch" in refused(capsys, f"run={tmp_path}")
    assert "has no checkpoint yet" in refused(capsys, f"run={run}")
    assert "no dry run" in refused(capsys, f"run={run}", "dry_run=true")


def test_a_rate_that_is_too_low_for_adapters_is_noted_before_a_pass_too(run, capsys):
    assert align.main([f"run={run}", "policy.lora.rank=2"]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "align.dpo.optimizer.learning_rate=1e-06 suits training all weights" in shown


def test_the_recipe_gives_its_section_and_the_command_line_anything(run, capsys):
    settings = [f"run={run}", "config=rlaif_v.yaml", "rollout.start_timeout_s=9"]
    asked = settings_of(*settings)
    assert (asked.rollout.start_timeout_s, asked.steps, asked.run) == (9, 4, str(run))
    assert "align.promts" in refused(capsys, f"run={run}", "align.promts=4")


def test_the_run_gives_the_settings_the_recipe_and_the_command_line_go_over_them(run):
    asked = settings_of(f"run={run}", "config=rlaif_v.yaml", "align.responses=3").align
    assert (asked.prompts, asked.responses, asked.enabled) == (77, 3, True)
    scaled = settings_of(f"run={run}", *RECIPE).align
    assert scaled.labeller.model == "builtin:tiny_labeller"
    assert settings_of(f"run={run}").align.enabled is False


def test_a_batch_that_is_not_whole_micro_batches_is_refused_at_once(run, capsys):
    settings = ("align.dpo.batch_size=10", "align.dpo.micro_batch_pairs=4")
    assert "must be a multiple of the 4 pairs" in refused(capsys, f"run={run}", *settings)


def test_pairs_cannot_be_mined_without_a_ledger(run, capsys):
    assert "there is none in" in refused(capsys, f"run={run}", "align.mine=accuracy")


def test_an_assistant_is_one_model(run, capsys):
    both = ("align.labeller.model=a", "align.labeller.endpoint=http://127.0.0.1:9/v1")
    assert "are two models; name one" in refused(capsys, f"run={run}", *both)
    assert "belongs to an endpoint" in refused(capsys, f"run={run}", "align.labeller.served_name=a")


def test_a_mix_of_other_modes_is_refused(run, capsys):
    assert "align.mix must sum to 1" in refused(capsys, f"run={run}", "align.mix={short: 0.5}")
    assert "unknown modes ['lang']" in refused(capsys, f"run={run}", "align.mix={lang: 1}")


def test_a_sweep_refuses_the_pass():
    with pytest.raises(RecipeError, match=r"a sweep compares RL runs.*rl\.align run="):
        load_sweep(["config=sweep_ratio.yaml", "scale=cpu_tiny", "align.enabled=true"])


def source(policy: Path, labeller: dict, **data: object) -> None:
    settings = config(align={"labeller": labeller}, data={"kind": "chain_sum", **data})
    asyncio.run(check_assistants(settings, policy))


def test_a_labeller_that_sees_nothing_is_refused_where_prompts_show_pictures(tmp_path):
    directory = make_policy(tmp_path / "policy", 512)
    with pytest.raises(ValueError, match="sees no images, and the prompts show some"):
        source(directory, {}, kind="visual", path="digits")


def test_a_labeller_that_cannot_write_yes_as_one_token_is_refused(tmp_path):
    directory = make_policy(tmp_path / "policy", 512)
    with pytest.raises(ValueError, match="has no token that spells yes"):
        source(directory, {})


def test_an_endpoint_that_is_down_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"endpoint http://127\.0\.0\.1:9/v1 does not answer"):
        source(tmp_path, {"endpoint": "http://127.0.0.1:9/v1"})


def test_videos_are_not_sent_to_a_server(tmp_path):
    with pytest.raises(ValueError, match="would choose other frames"):
        source(
            tmp_path,
            {"endpoint": "http://127.0.0.1:9/v1"},
            kind="dataset",
            path="rows.jsonl",
            columns={"videos": "video"},
        )


def test_an_endpoint_that_sends_no_probabilities_is_refused_at_the_start(tmp_path):
    server = Server(lambda body: completion("yes"))
    try:
        with pytest.raises(ValueError, match="asked for log-probabilities and sends none"):
            source(tmp_path, {"endpoint": server.url})
    finally:
        server.close()


def test_an_endpoint_that_labels_is_taken(tmp_path):
    server = Server(lambda body: listing(("Yes", 0.7), ("no", 0.2)))
    try:
        source(tmp_path, {"endpoint": server.url})
    finally:
        server.close()


def test_what_was_labelled_before_a_server_went_down_is_not_asked_again(tmp_path, monkeypatch):
    """Bounded retries, then a stop that names the server; the next pass asks only for the rest."""
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 1)

    def labelling(asked: list[str], most: int, port: int = 0) -> Server:
        def reply(body: dict) -> Reply:
            question = body["messages"][-1]["content"]
            if "logprobs" not in body:
                return completion("3")
            if len(asked) == most:
                return 503
            asked.append(question)
            return listing(("yes", 0.6), ("no", 0.3))

        return Server(reply, port)

    divided = [rules.divide(answered(number)) for number in range(8)]

    async def labelled(server: Server) -> None:
        thinking = {ASK: False}
        store = MediaStore(SourceConfig())
        async with open_endpoint(server.url, "./exported", thinking, 20, store) as opened:
            one_at_a_time = config(rollout__prompts_per_step=1, rollout__group_size=2)
            await judge(
                one_at_a_time,
                divided,
                EndpointAssistant(opened),
                store,
                LabelCache(tmp_path / "labels"),
                lambda: None,
            )

    failing = labelling([], 3)
    try:
        with pytest.raises(ValueError, match=r"endpoint http://.* does not answer"):
            asyncio.run(labelled(failing))
    finally:
        failing.close()
    kept = num_labels(tmp_path / "labels")
    assert kept >= 2
    # Another server at the same address: the first one may still be answering clients that have
    # given up, and would count their questions.
    again: list[str] = []
    started_anew = labelling(again, 8, failing.port)
    try:
        asyncio.run(labelled(started_anew))
    finally:
        started_anew.close()
    assert len(again) == 8 - kept
    assert num_labels(tmp_path / "labels") == 8


def answered(number: int) -> Response:
    prompt = Prompt(str(number), ({"role": "user", "content": f"a{number}b1?"},), "0")
    return Response(prompt, "short", 0, (1,), "11", "11")
