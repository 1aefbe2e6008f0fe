"""The page of a whole run: what is read from a directory that may be at any point of its life."""

import json
import os
import time

import pytest

import rl.show.run as page_of_run
from rl.run.directory import RunDirectory
from rl.run.jsonl import write_records
from rl.run.ledger import write_step
from rl.show.__main__ import main
from rl.show.run import MAX_EVENTS, as_html, read_run
from tests.fakes import config
from tests.html_tree import line_of, parsed, text_of, within
from tests.unit.rl.show.test_page import HOSTILE, row

BEFORE = {"accuracy": 0.25, "half_width": 0.06, "tokens_mean": 40.0, "truncated": 0.5, "leak": 0.0}
LOST = {"time": "2026-11-29T05:28:46+0000", "event": "lost", "who": "engine 1", "why": "died"}


def metrics(step, accuracy=None):
    """Of a step with two groups of each mode; accuracy: held out, of the mode long."""
    logged = {"step": step, "time/step": 2.0, "policy/grad_norm": 0.5}
    logged |= {"perf/tokens_per_second": 1000.0, "progress/trained_tokens": 30 * step}
    for mode in ("short", "long"):
        logged |= {f"rollout/{mode}/groups": 2, f"reward/{mode}/accuracy": 0.5}
        logged |= {f"reward/{mode}/mean": 0.75, f"reward/{mode}/format": 1.0}
        logged |= {f"rollout/{mode}/tokens_mean": 30.0, f"progress/{mode}/trained_tokens": 7 * step}
    if accuracy is not None:
        logged |= {"eval/long/accuracy": accuracy, "eval/long/half_width": 0.03}
        logged |= {"eval/long/tokens_mean": 46.5, "eval/long/truncated": 0.25}
    return logged


def progress(directory, **content):
    latest = directory.checkpoints.path(2)
    latest.mkdir(parents=True)
    (latest / "progress.json").write_text(json.dumps(content))
    (latest.parent / "latest").symlink_to(latest.name)


@pytest.fixture
def real_pictures():
    """For tests that are about them; twelve a page take a second."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "real_pictures" not in request.fixturenames:
        monkeypatch.setattr(page_of_run, "picture_of", lambda panel, course: b"<svg/>")


@pytest.fixture
def run(tmp_path):
    """A run of 4 steps that was stopped after its second, as a driver leaves it."""
    with RunDirectory(tmp_path / "run").open(config(steps=4)) as directory:
        write_records(directory.metrics_path, [metrics(1), metrics(2, 0.75)])
    return directory


def shown(run, **options):
    page = read_run(run, run.root, **options)
    return page, parsed(as_html(page))


def section(document, anchor):
    """The text between a heading and the next, and its tables line by line."""
    (body,) = within(document, "body")
    elements = list(body)
    (start,) = [n for n, e in enumerate(elements) if e.get("id") == anchor]
    later = (n for n in range(start + 1, len(elements)) if elements[n].tag == "h2")
    inside = elements[start + 1 : next(later, len(elements))]
    tables = [
        [[line_of(cell) for cell in line] for line in within(table, "tr")]
        for element in inside
        for table in within(element, "table")
    ]
    return " ".join(line_of(e) for e in inside if e.tag == "p"), tables


# How far it is


def test_a_run_goes_on_while_its_directory_is_held(run):
    with RunDirectory(run.root).open(config(steps=4)):
        page, document = shown(run)
    assert (page.state, page.step, page.steps) == ("running", 2, 4)
    assert page.facts[0] == "about 4 s left"
    assert f"process {os.getpid()} on " in " ".join(page.facts)
    assert text_of(next(within(document, "title"))) == "run, running, step 2 of 4"
    (bar,) = within(document, "progress")
    assert (bar.attrib["value"], bar.attrib["max"]) == ("2", "4")


def test_a_run_that_nobody_holds_was_stopped_or_is_finished(run):
    page, document = shown(run)
    assert page.state == "stopped" and "left" not in page.facts[0]
    assert "goes on from the newest checkpoint" in line_of(document)
    write_records(run.metrics_path, [metrics(step) for step in range(1, 5)])
    assert shown(run)[0].state == "stopped"
    run.summary_path.write_text(json.dumps({"before": {}}))
    page, document = shown(run)
    assert page.state == "finished"
    assert "goes on from" not in line_of(document)


@pytest.mark.usefixtures("real_pictures")
def test_a_run_without_a_step_says_what_is_to_come(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with run.open(config()):
        page, document = shown(run)
    assert (page.state, page.step) == ("running", 0)
    assert [(mode.name, mode.accuracy, mode.facts) for mode in page.modes] == [
        ("short", "–", ("no step yet",)),
        ("long", "–", ("no step yet",)),
    ]
    assert not list(within(document, "img"))
    for said in ("Nothing is logged yet", "Nothing is known yet", "No process was lost"):
        assert said in line_of(document)


def test_a_torn_line_and_a_step_that_is_made_again_are_no_fault(run):
    with run.metrics_path.open("a") as file:
        file.write(json.dumps(metrics(2, 0.5)) + '\n{"step": 3, "rew')
    page, _ = shown(run)
    assert page.step == 2
    assert page.modes[1].accuracy == "50.0%"


# What it has gained


def test_each_mode_has_its_newest_held_out_accuracy_and_its_gain(run):
    progress(run, before={"long": BEFORE})
    page, _ = shown(run)
    short, long = page.modes
    assert (short.name, short.accuracy) == ("short", "50.0%")
    assert short.facts[0] == "accuracy in training; none was held out yet"
    assert (long.name, long.accuracy) == ("long", "75.0%")
    assert long.facts == (
        "held-out accuracy at step 2, ± 3.0",
        "+50.0 points since the start, 25.0%",
        "last 2 steps: accuracy 50.0%, reward 0.75, tokens 30.0",
    )


def test_before_and_after_are_side_by_side_and_what_is_missing_is_a_dash(run):
    progress(run, before={"long": BEFORE, "short": {"count": 0}})
    said, (table,) = section(shown(run)[1], "gains")
    assert "at step 2" in said
    assert table == [
        ["mode", "accuracy before", "after", "points", "tokens", "truncated", "mode leaks"],
        ["short", "–", "–", "–", "– → –", "– → –", "– → –"],
        ["long", "25.0% ± 6.0", "75.0% ± 3.0", "+50.0", "40.0 → 46.5", "50.0% → 25.0%", "0.0% → –"],
    ]


def test_a_mixture_stands_beside_its_mode_by_source(run):
    progress(run, before={"long": BEFORE | {"by_source": {"video": BEFORE}}})
    video = {"eval/long/accuracy_of_video": 0.5, "eval/long/half_width_of_video": 0.02}
    write_records(run.metrics_path, [metrics(1), metrics(2, 0.75) | video])
    _, (table,) = section(shown(run)[1], "gains")
    assert table[2][:4] == ["long, video", "25.0% ± 6.0", "50.0% ± 2.0", "+25.0"]


@pytest.mark.usefixtures("real_pictures")
def test_the_curves_are_embedded_under_their_headings(run):
    page, document = shown(run)
    assert list(page.learning) == ["Reward", "Accuracy", "Response tokens"]
    assert list(page.parts) == ["format"]
    assert list(page.diagnostics) == ["Gradient norm", "Tokens a second"]
    images = [image.attrib for image in within(document, "img")]
    assert [image["alt"] for image in images][:2] == ["Reward by step", "Accuracy by step"]
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)


@pytest.mark.usefixtures("real_pictures")
def test_a_mode_that_chooses_stands_beside_the_others_with_what_it_chose(run):
    chosen = {"rollout/auto/groups": 2, "rollout/auto/reasons": 0.375, "choice/reasons": 0.4}
    chosen |= {"choice/entropy": 0.6, "reward/auto/accuracy": 0.5}
    held_out = {"eval/auto/accuracy": 0.625, "eval/auto/reasons": 0.25}
    assert shown(run)[0].choice == {}
    assert "choice" not in [element.get("id") for element in shown(run)[1].iter()]
    write_records(run.metrics_path, [metrics(1) | chosen, metrics(2, 0.75) | chosen | held_out])
    progress(run, before={"auto": BEFORE | {"reasons": 0.5}, "long": BEFORE | {"reasons": None}})
    page, document = shown(run)
    assert [mode.name for mode in page.modes] == ["short", "long", "auto"]
    assert page.modes[2].accuracy == "62.5%"
    assert page.modes[2].facts[-1] == "last 2 steps: accuracy 50.0%, reasons 37.5%"
    titles = ["Share that reasons, by difficulty", "Entropy of the choice, nats"]
    assert list(page.choice) == titles
    assert "left to the policy" in section(document, "choice")[0]
    _, (table,) = section(document, "gains")
    assert [(line[0], line[-1]) for line in table] == [
        ("mode", "reasons"),
        ("long", "– → –"),
        ("auto", "50.0% → 25.0%"),
    ]


@pytest.mark.usefixtures("real_pictures")
def test_a_page_is_drawn_anew_only_after_a_step(run):
    first, again = shown(run)[0], shown(run)[0]
    assert again.learning is first.learning
    write_records(run.metrics_path, [metrics(step) for step in range(1, 4)])
    grown = shown(run)[0]
    assert grown.step == 3 and grown.learning["Reward"] != first.learning["Reward"]


# What happened to it


def test_events_are_told_newest_first_with_all_that_they_hold(run):
    discarded = LOST | {"event": "discarded", "who": "learner", "why": "", "groups": 12, "steps": 2}
    write_records(run.events_path, [LOST | {"why": "long " * 40}, discarded])
    page, document = shown(run)
    said, (table,) = section(document, "events")
    assert said == "lost 1, discarded 1."
    assert table[1] == ["2026-11-29 05:28:46+0000", "discarded", "learner", "groups 12; steps 2"]
    assert table[2][3].count("long") == 60 and "…" in table[2][3]
    assert page.alarms == (
        "1 fault, the newest of engine 1 at 2026-11-29 05:28:46+0000; 2 steps made again.",
    )


def test_of_very_many_events_the_newest_are_shown(run):
    write_records(run.events_path, [LOST | {"who": f"engine {n}"} for n in range(MAX_EVENTS + 7)])
    said, (table,) = section(shown(run)[1], "events")
    assert "lost 207. The newest 200; events.jsonl has all." in said
    assert (len(table), table[1][2]) == (MAX_EVENTS + 1, "engine 206")


def test_alarms_name_what_ended_a_run_and_steps_without_an_update(run):
    skipped = metrics(3) | {"progress/skipped_steps": 3}
    write_records(run.metrics_path, [metrics(1), metrics(2), skipped])
    write_records(run.events_path, [LOST | {"event": "gave_up", "why": "out of memory"}])
    alarms = shown(run)[0].alarms
    assert alarms[0] == "The run ended at 2026-11-29 05:28:46+0000 for engine 1: out of memory"
    assert alarms[1] == f"3 steps without an update: the samples are in {run.skipped_path}."
    # What ended it is history once it goes on.
    with RunDirectory(run.root).open(config(steps=4)):
        assert len(shown(run)[0].alarms) == 1


def test_a_run_that_stands_still_is_told_of_and_one_that_was_stopped_is_not(run):
    old = time.time() - 3600
    os.utime(run.metrics_path, (old, old))
    assert shown(run)[0].alarms == ()
    with RunDirectory(run.root).open(config(steps=4)):
        (alarm,) = shown(run)[0].alarms
    assert alarm == "No step for 1 h 00 m; the slowest of the last 2 took 2 s."


def test_groups_are_counted_by_the_newest_checkpoint_and_then_by_the_summary(run):
    assert section(shown(run)[1], "groups") == (
        "The first checkpoint counts them.",
        [
            [
                ["mode", "groups of its steps", "share", "trained tokens"],
                ["short", "4", "50.0%", "14"],
                ["long", "4", "50.0%", "14"],
            ]
        ],
    )
    progress(run, accounting={"drawn": 9, "trained": 8, "dropped": {"timeout": 1}})
    said, _ = section(shown(run)[1], "groups")
    settled = "Groups drawn 9 = trained 8 + dropped 1 (timeout 1) + in flight 0."
    assert said == f"{settled} Counted by the checkpoint of step 2."
    groups = {"drawn": 16, "trained": 16, "dropped": {}, "in_flight": 0}
    run.summary_path.write_text(json.dumps({"groups": groups}))
    said, _ = section(shown(run)[1], "groups")
    assert said == "Groups drawn 16 = trained 16 + dropped 0 + in flight 0."


# What it was asked for, and where to look next


def test_what_was_set_otherwise_than_in_the_recipe_is_told_by_who_set_it(run):
    keys = ("key", "recipe", "run", "by")
    lines = [
        ("rollout.workers", "2", "1", "scale/cpu_tiny.yaml"),
        ("steps", "400", "4", "the command line"),
    ]
    differences = [dict(zip(keys, line, strict=True)) for line in lines]
    origin = {"recipe": "a.yaml", "scale": "scale/cpu_tiny.yaml", "differences": differences}
    run.recipe_path.write_text(json.dumps(origin))
    page, document = shown(run)
    said, (asked, scaled) = section(document, "configuration")
    assert "a.yaml at scale/cpu_tiny.yaml." in said
    assert asked[1:] == [["steps", "400", "4", "the command line"]]
    assert scaled[1:] == [list(lines[0])]
    run.recipe_path.write_text(json.dumps(origin | {"scale": None, "differences": []}))
    page, document = shown(run)
    assert page.recipe == "a.yaml"
    assert "set nothing otherwise" in section(document, "configuration")[0]


def test_a_run_without_its_recipe_says_so(run):
    assert "it has no recipe.json" in section(shown(run)[1], "configuration")[0]


def links(document):
    (paragraph,) = within(document, class_="links")
    return {text_of(link): link.attrib["href"] for link in within(paragraph, "a")}


def test_a_page_leads_to_the_pages_of_steps_that_are_there(run, tmp_path):
    for step in (1, 2):
        write_step(run.ledger_path, step, [row(step=step)])
    _, document = shown(run)
    assert not list(within(document, class_="links"))
    assert "steps 1..2." in section(document, "steps")[0]
    samples = run.root / "samples"
    samples.mkdir()
    for name in ("step_000002.html", "step_000001-000002.html"):
        (samples / name).touch()
    there = {"2": "samples/step_000002.html", "1..2": "samples/step_000001-000002.html"}
    assert links(shown(run)[1]) == there
    elsewhere = read_run(run, tmp_path / "a b")
    assert elsewhere.pages["2"] == "../run/samples/step_000002.html"
    served = {f"{step}": f"samples/step_00000{step}.html" for step in (1, 2)}
    assert links(shown(run, is_served=True)[1]) == served


# Texts and refusals


def test_hostile_text_in_every_file_stays_text(run):
    write_records(run.events_path, [dict.fromkeys(("time", "event", "who", "why"), HOSTILE)])
    hostile = metrics(1) | {f"rollout/{HOSTILE.replace('/', '')}/groups": 1}
    hostile |= {f"reward/long/{HOSTILE.replace('/', '')}": 1.0}
    write_records(run.metrics_path, [hostile])
    differences = [dict.fromkeys(("key", "recipe", "run", "by"), HOSTILE)]
    origin = {"recipe": HOSTILE, "scale": HOSTILE, "differences": differences}
    run.recipe_path.write_text(json.dumps(origin))
    (run.root / "samples").mkdir()
    (run.root / "samples" / "step_<b>&.html").touch()
    document = shown(run)[1]
    assert not list(within(document, "script")) and len(list(within(document, "style"))) == 1
    assert all(i.attrib["src"].startswith("data:image/svg") for i in within(document, "img"))
    assert not [e for e in within(document) if any(key.startswith("on") for key in e.attrib)]
    assert HOSTILE.replace("/", "") in [text_of(e) for e in within(document, "h2")]
    assert links(document) == {"<b>&": "samples/step_%3Cb%3E%26.html"}


def test_the_page_is_written_into_the_run_and_replaces_the_one_before(run, tmp_path, capsys):
    assert main([f"run={run.root}"]) == 0
    path = run.root / "run.html"
    assert capsys.readouterr().out == f"run, stopped, step 2 of 4: {path}\n"
    write_records(run.metrics_path, [metrics(step) for step in (1, 2, 3)])
    assert main([f"run={run.root}"]) == 0
    assert "<title>run, stopped, step 3 of 4</title>" in path.read_text("utf-8")
    assert main([f"run={run.root}", f"out={tmp_path / 'new' / 'page.html'}"]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_files_that_something_else_changed_are_one_line(run, capsys):
    run.metrics_path.write_text("no JSON\n")
    assert main([f"run={run.root}"]) == 2
    assert "metrics.jsonl, line 1 is no JSON object" in capsys.readouterr().err
    run.config_path.write_text("steps: [")
    assert main([f"run={run.root}"]) == 2
    assert "config.yaml is not readable YAML" in capsys.readouterr().err
