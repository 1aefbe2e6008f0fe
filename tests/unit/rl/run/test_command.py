"""How every command is read, explained and ended."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field, model_validator

from rl.config.recipe import CONFIGS
from rl.config.run import Config
from rl.loop.interfaces import WorkerFailed
from rl.run.command import Command, Keys, RunPath, Step, Switch, read

COMMANDS = [
    "rl.launch",
    "rl.sweep",
    "rl.evaluate",
    "rl.export",
    "rl.align",
    "rl.rescore",
    "rl.show",
    "rewards.audit",
]


class TeaKeys(Keys):
    pot: Path = Field(examples=["POT"])
    """Where the tea is made."""
    cups: int = Field(default=2, gt=0)
    """How many are poured."""
    step: Step | None = None
    """When."""
    milk: Switch = False
    """Whether milk comes first."""

    @model_validator(mode="after")
    def _holds_the_cups(self) -> TeaKeys:
        if self.cups > 9:
            raise ValueError(f"{self.pot} holds nine cups, got cups={self.cups}; pour fewer")
        return self


def tea(act: Callable = lambda keys: None, **changes: object) -> Command[TeaKeys]:
    about = "Makes tea.\n\n    python -m tea pot=POT\n"
    return Command("tea", about, TeaKeys, act, **changes)  # type: ignore[arg-type]


def test_keys_come_typed_and_the_rest_is_for_the_recipe():
    arguments = ["pot=a/b", "cups=3", "cups=4", "rollout.group_size=8", "milk=true", "step=7"]
    keys = read(tea(settings=(Config,)), arguments)
    assert (keys.pot, keys.cups, keys.milk, keys.step) == (Path("a/b"), 4, True, 7)
    assert keys.settings == ("rollout.group_size=8",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "pot= is missing; give pot=POT: Where the tea is made."),
        (["pot=a", "cups=none"], "cups: must be a valid integer"),
        (["pot=a", "cups=0"], "cups: must be greater than 0, got '0'"),
        (["pot=a", "cups=10"], "a holds nine cups, got cups=10; pour fewer"),
        (["pot=a", "cup=3"], "cup: no such key; did you mean cups? tea takes pot, cups"),
        (["pot=a", "step=4.0"], "step: must be the number of a step, got '4.0'"),
        (["pot=a", "milk=1"], "milk: must be true or false, got '1'"),
        (["pot="], "pot= names nothing; write pot=VALUE"),
        (["pot=a", "dry_run=true"], "tea has no dry run"),
        (["pot"], "'pot' is not key=value"),
        (["--pot=a"], "--pot: no such key; did you mean pot?"),
    ],
)
def test_what_is_wrong_with_a_key_is_one_line_and_code_2(capsys, arguments, said):
    assert tea()(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert said in printed.err
    assert printed.out == ""


def test_a_run_directory_has_a_configuration(tmp_path):
    class RunKeys(Keys):
        run: RunPath
        """The run."""

    command = Command("x", "", RunKeys, lambda keys: None)
    with pytest.raises(ValueError, match=r"is no run directory: it has no config\.yaml"):
        read(command, [f"run={tmp_path}"])
    (tmp_path / "config.yaml").touch()
    assert read(command, [f"run={tmp_path}"]).run == tmp_path


def ended(capsys: pytest.CaptureFixture[str], error: BaseException, **changes: object):
    def act(keys: TeaKeys) -> None:
        raise error

    return tea(act, **changes)(["pot=a"]), capsys.readouterr().err


def test_a_command_that_does_what_was_asked_ends_with_its_code():
    async def pour(keys: TeaKeys) -> int:
        return keys.cups

    assert tea()(["pot=a"]) == 0
    assert tea(pour)(["pot=a", "cups=1"]) == 1


def test_what_a_user_can_mend_is_one_line(capsys):
    assert ended(capsys, ValueError("no water; boil some")) == (2, "error: no water; boil some\n")
    full = OSError(errno.ENOSPC, "No space left on device", "pot/a")
    code, said = ended(capsys, full, goes_on=True)
    assert code == 2 and said.endswith("make room, the same command goes on\n")
    code, said = ended(capsys, full)
    assert code == 2 and said.endswith("make room, run the command again\n")
    large = OSError(errno.EFBIG, "File too large", "pot/a")
    code, said = ended(capsys, large, goes_on=True)
    assert code == 2 and "'pot/a'; raise the limit" in said
    code, said = ended(capsys, PermissionError(errno.EACCES, "Permission denied", "/pot"))
    assert code == 2 and "Permission denied: '/pot'" in said


def test_a_process_that_failed_says_why_without_a_traceback(capsys):
    assert ended(capsys, WorkerFailed("engine 0 died:\nno memory")) == (
        1,
        "error: engine 0 died:\nno memory\n",
    )


def test_what_is_not_the_users_to_mend_keeps_its_traceback(capsys):
    for error in (PermissionError(errno.EACCES, "no"), RuntimeError("a bug")):
        with pytest.raises(type(error)):
            ended(capsys, error)


def test_ctrl_c_says_whether_the_command_goes_on(capsys):
    assert ended(capsys, KeyboardInterrupt(), goes_on=True) == (
        130,
        "stopped; the same command goes on\n",
    )
    assert ended(capsys, KeyboardInterrupt()) == (130, "stopped; the same command begins again\n")
    # With which a run ends itself at the second one.
    assert ended(capsys, asyncio.CancelledError(), goes_on=True)[0] == 130


def explained(capsys: pytest.CaptureFixture[str], argument: str) -> str:
    assert tea(settings=(Config,))([argument, "cups=0"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    return printed


def test_help_says_what_a_command_does_and_lists_its_keys_and_the_sections(capsys):
    for argument in ("--help", "-h", "help"):
        said = explained(capsys, argument)
        assert said.startswith("Makes tea.\n\n    python -m tea pot=POT\n")
        assert "pot=POT   path, required\n    Where the tea is made.\n" in said
        assert "cups=2   whole number above 0\n" in said
        assert "settings" not in said
        assert "modes.NAME, share_schedule.N, data, policy" in said


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        (
            "rollout",
            ["rollout.group_size=8   whole number above 1", "    Trajectories per prompt."],
        ),
        ("policy.optimizer", ["policy.optimizer.betas=[0.9, 0.999]   [number, number]"]),
        ("modes", ["modes.NAME.share   number at least 0 and at most 1, required"]),
        ("modes.long", ["modes.NAME.thinking   true or false or auto, required"]),
        ("eval.every", ["eval.every=null   whole number above 0, or null"]),
        ("share_schedule", ["share_schedule.N.step   whole number at least 1, required"]),
        ("data", ["data.path=null   text or list of text, or null", "data.columns   section"]),
        ("cups", ["cups=2   whole number above 0"]),
    ],
)
def test_help_of_a_key_or_section_gives_type_default_and_what_it_means(capsys, topic, lines):
    said = explained(capsys, f"--help={topic}").splitlines()
    assert [line for line in lines if line not in said] == []


def test_help_of_a_word_gives_the_keys_that_are_about_it(capsys):
    assert "eval.samples=1   " in explained(capsys, "--help=pass@k")
    near = explained(capsys, "--help=temprature")
    assert "modes.NAME.temperature=1.0" in near and "align.temperature=0.7" in near
    assert tea(settings=(Config,))(["--help=qqqq"]) == 2
    assert "no key or section of this name" in capsys.readouterr().err


def test_every_command_explains_itself_without_anything_heavy():
    code = (
        "import runpy, sys\n"
        f"for name in {COMMANDS!r}:\n"
        "    sys.argv = [name, '--help']\n"
        "    try:\n"
        "        runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    heavy = ('torch', 'ray', 'vllm', 'sympy', 'transformers', 'matplotlib', 'pandas')\n"
        "    loaded = [module for module in heavy if module in sys.modules]\n"
        "    assert not loaded, (name, loaded)\n"
    )
    # The launch imports the pass after it, which runpy would warn of.
    python = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code]
    done = subprocess.run(python, cwd=CONFIGS.parent, capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"    python -m {name} " in done.stdout
        assert f"Keys of {name}:" in done.stdout
    assert done.stderr == ""
