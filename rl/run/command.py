"""What all commands share: how a command line is read, how it is explained, and how a command ends.

A command is a section of its own keys (`Keys`) and a function that takes them. Whatever else
stands on the command line is a setting, which the function hands to the reader of recipes
(rl/config/recipe.py).
"""

import asyncio
import errno
import gc
import re
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from rich.console import Console
from rich.text import Text

from rl.config.keys import Key, keys_of, matching_keys, named_as, nearest, problems
from rl.config.recipe import LOADER_KEYS, load, recipe_names, split_argument
from rl.config.run import Config
from rl.config.section import Section
from rl.loop.interfaces import WorkerFailed
from rl.loop.step_guard import RunStopped
from rl.run.directory import RunDirectory
from rl.run.files import FULL_DISK

HELP_WIDTH = 100
SETTINGS = {"Config": "every key of the configuration", "SweepConfig": "those of a sweep"}
# What a person can mend about a path that they named. Any other system error is ours, or the
# machine's, and keeps its traceback.
BAD_PATH = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class Keys(Section):
    """The keys that a command takes itself; every value arrives as text."""

    settings: tuple[str, ...] = Field(default=(), exclude=True)
    """The rest of the command line, for the reader of recipes."""


K = TypeVar("K", bound=Keys)


@dataclass(frozen=True)
class Command(Generic[K]):
    name: str
    """What stands after `python -m`."""
    about: str | None
    """What it does, with examples: the docstring of its module."""
    keys: type[K]
    act: Callable[[K], int | Coroutine[Any, Any, int | None] | None]
    """Does it; returns the exit code, None for 0. Raises ValueError for what a user can mend."""
    settings: tuple[type[Section], ...] = ()
    """The sections whose keys it also takes; without any, an unknown key is refused at once."""
    goes_on: bool = False
    """Whether the same command continues what was stopped; else it begins again."""

    def __call__(self, arguments: Sequence[str]) -> int:
        """Do what the command line asks for, and return the exit code.

        0 is success, 1 a process that failed or a run that ended itself, 2 an error that a user can
        mend, and 130 Ctrl-C. Of all these errors the message is printed and no traceback.
        """
        # As in a worker process (rl/system/worker_logs.py): much is loaded, and stays.
        gc.set_threshold(50_000, 10, 10)
        # Before anything is checked: who asks for help need not have the rest right.
        asks_help = [a for a in arguments if re.fullmatch("-h|--help|help|--help=.*", a)]
        try:
            if asks_help:
                print_help(self, asks_help[0].partition("=")[2])
                return 0
            ended = self.act(read(self, arguments))
            # Commands that start engines are asynchronous; the others need no event loop.
            if isinstance(ended, Coroutine):
                ended = asyncio.run(ended)
            return ended or 0
        # By this project's rule a ValueError is for people, and says what, got and what to do.
        # Anything else is a fault of ours and keeps its traceback.
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (WorkerFailed, RunStopped) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            advice = "the same command goes on" if self.goes_on else "run the command again"
            if error.errno in FULL_DISK:
                is_limit = error.errno == errno.EFBIG
                cure = "raise the limit of its size (ulimit -f)" if is_limit else "make room"
                print(f"error: {error}; {cure}, {advice}", file=sys.stderr)
            elif error.errno in BAD_PATH and error.filename is not None:
                print(f"error: {error}; name another path, or mend this one", file=sys.stderr)
            else:
                raise
            return 2
        # A run cancels itself at the second Ctrl-C, and nobody else cancels what a command does.
        except (KeyboardInterrupt, asyncio.CancelledError):
            advice = "goes on" if self.goes_on else "begins again"
            print(f"stopped; the same command {advice}", file=sys.stderr)
            return 130


# Types of keys that several commands have


def _spelled(pattern: str, what: str) -> BeforeValidator:
    """Refuses text that is not written like this, before pydantic reads it."""

    # pydantic alone would read 4.0 as the step 4, and 1, y or on as true.
    def check(text: Any) -> Any:
        if isinstance(text, str) and not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}, got {text!r}")
        return text

    return BeforeValidator(check)


def require_run(path: Path) -> Path:
    """The path, if it is a run directory; raises ValueError otherwise."""
    stored = RunDirectory(path).config_path
    if (path / "sweep.yaml").is_file():
        raise ValueError(
            f"{path} is a sweep, and each of its arms is a run; name one, such as "
            f"run={next(iter(sorted(path.glob('arms/*'))), path / 'arms/NAME')}"
        )
    if not stored.is_file():
        raise ValueError(
            f"{path} is no run directory: it has no {stored.name}; train one with rl.launch, or "
            "name another with run=runs/NAME"
        )
    return path


Step = Annotated[int, _spelled("[0-9]+", "the number of a step")]
Switch = Annotated[bool, _spelled("(?i)true|false", "true or false")]
RunPath = Annotated[Path, AfterValidator(require_run), Field(examples=["runs/NAME"])]
INSTALLED = ", ".join(recipe_names())
RECIPE = Field(
    description=f"The recipe: a file of the working directory, or an installed one: {INSTALLED}.",
    examples=["NAME.yaml"],
)
RecipeName = Annotated[str, RECIPE]
OptionalRecipeName = Annotated[str | None, RECIPE]
ScaleName = Annotated[
    str | None,
    Field(
        description="Where it runs, and how large: cpu, cpu_tiny, one_gpu, node_8gpu, cluster, "
        "auto (the largest one-node scale that this machine can hold) or a file of yours. By "
        "default what the recipe says."
    ),
]


# Reading


def read(command: Command[K], arguments: Sequence[str]) -> K:
    """The keys that the arguments give; raises ValueError, with one line per problem.

    Of a key that is given twice the last value holds, so that a script can append its own.
    """
    fields = {
        field.alias or name: field
        for name, field in command.keys.model_fields.items()
        if name != "settings"
    }
    given: dict[str, Any] = {}
    settings = []
    for argument in arguments:
        key, value = split_argument(argument)
        if key in fields:
            if not value:
                raise ValueError(f"{key}= names nothing; write {key}=VALUE")
            given[key] = value
        elif key == "dry_run":
            raise ValueError(f"{command.name} has no dry run; leave dry_run out")
        elif not command.settings:
            raise ValueError(
                f"{key}: no such key; {nearest(key, [*fields])} {command.name} takes "
                f"{', '.join(fields)}"
            )
        # The reader of recipes takes these two itself, and a command has them for its help.
        if key not in fields or key in LOADER_KEYS:
            settings.append(argument)
    missing = [
        f"{key}= is missing; give {key}={(field.examples or ['VALUE'])[0]}: {field.description}"
        for key, field in fields.items()
        if field.is_required() and key not in given
    ]
    if missing:
        raise ValueError("\n".join(missing))
    try:
        return command.keys.model_validate(given | {"settings": settings})
    except ValidationError as error:
        raise ValueError("\n".join(problems(error, {}, command.keys))) from None


def config_of_run(run: Path, settings: Sequence[str]) -> Config:
    """The stored configuration of a run directory, with the settings over it."""
    return load([f"config={RunDirectory(run).config_path}", f"run={run}", *settings]).config


# Help


def print_help(command: Command[Any], topic: str = "") -> None:
    """What the command does and which keys it takes.

    topic: a key or section that is explained instead, or a word that keys are searched for. Raises
    ValueError if nothing is about it.
    """
    screen = Console(highlight=False, markup=False)
    screen.width = min(screen.width, HELP_WIDTH) if screen.is_terminal else HELP_WIDTH
    own = [key for key in keys_of(command.keys) if key.name != "settings"]
    others = {section: keys_of(section) for section in command.settings}
    keys = [*own, *chain.from_iterable(others.values())]
    if not topic:
        screen.print((command.about or "").strip())
        screen.print(f"\nKeys of {command.name}:\n")
        _print_keys(screen, own)
        for section, its_keys in others.items():
            names = _indented(screen, ", ".join(key.name for key in its_keys if not key.parent))
            screen.print(f"And {SETTINGS[section.__name__]}:\n\n{names}\n")
        if others:
            explained = "--help=KEY explains one, or all of a section; --help=WORD searches."
            screen.print(f"python -m {command.name} {explained}")
    # `modes`, `modes.NAME` and `modes.long` are the same key.
    elif key := next((key for key in keys if named_as(key.name, topic) == topic), None):
        _print_keys(screen, [key])
        if key.section and " ".join(key.section.split()) != key.help:
            screen.print(key.section + "\n")
        _print_keys(screen, (inner for inner in keys if inner.parent == key.name))
    elif matching := matching_keys(keys, topic):
        screen.print(f"No key is called {topic}; these are near:\n")
        _print_keys(screen, matching)
    else:
        raise ValueError(
            f"--help={topic}: no key or section of this name, nor any that mentions it; "
            f"python -m {command.name} --help lists them"
        )


def _print_keys(screen: Console, keys: Iterable[Key]) -> None:
    for key in keys:
        default = f"={key.default}" if key.default else ""
        screen.print(Text.assemble((key.name, "bold"), f"{default}   ", (key.type, "dim")))
        inner = f"Its keys: --help={key.name}" if key.section is not None else ""
        about = _indented(screen, f"{key.help} {inner}".strip())
        screen.print(about + "\n")


def _indented(screen: Console, text: str) -> str:
    # Not rich's padding, which ends each line in spaces.
    return textwrap.fill(text, screen.width, initial_indent=" " * 4, subsequent_indent=" " * 4)
