"""A user's own reward: one function in a Python file that the config names.

    def score(prompt, mode, answer, reasoning):      # `reasoning` may be left out
        return float(answer is not None and answer.strip().isdigit())

It is called with keywords: `prompt` a dictionary of `id`, `messages`, `reference` and `task`;
`mode` the mode's name; `answer` a text, or None where there is none; `reasoning` likewise, and only
if it is a parameter. It returns a finite number, or a text that says why there is none. It runs in
the killable workers (rewards/text/workers.py), never in the process that trains.
"""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from rewards.rules.verifier import NotScorable
from rewards.text.workers import SampleFailed, WorkerPool
from rl.config.reward import RewardConfig

PARAMETERS = ("prompt", "mode", "answer")
OPTIONAL = "reasoning"


def with_checked_plugins(config: RewardConfig) -> RewardConfig:
    """The configuration with absolute plug-in files, each known to be callable within the limits.

    Raises ValueError that names the plug-in and says what is wrong with it.
    """
    checked = {}
    for name, plugin in config.plugins.items():
        try:
            file = load_plugin(plugin.file, plugin.function, config)
        except ValueError as error:
            raise ValueError(f"reward.plugins.{name}: {error}") from error
        checked[name] = plugin.model_copy(update={"file": file})
    return config.model_copy(update={"plugins": checked})


def load_plugin(path: str, function: str, limits: RewardConfig) -> str:
    """Return the absolute path of a plug-in that a run can use, as `call_plugin` takes it.

    The file is imported in a worker under the run's own limits, which hold at its first sample too.
    Raises ValueError that says what is wrong: no such file or function, an error at import, other
    parameters.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ValueError(f"the reward plug-in {path} is no file; name a Python file")
    pool = WorkerPool(1, limits.timeout_s, limits.memory_mib)
    try:
        problem = pool.call(plugin_problem, str(file), function)
    except SampleFailed as failed:
        problem = (
            f"importing it failed: {failed}; it must load within reward.timeout_s "
            f"{limits.timeout_s:g} and reward.memory_mib {limits.memory_mib}"
        )
    finally:
        pool.close()
    if problem:
        raise ValueError(f"the reward plug-in {path}: {problem}")
    return str(file)


def plugin_problem(path: str, function: str) -> str:
    """Return what keeps the function from being called as the module says; empty if nothing.

    Imports the file: only for killable workers.
    """
    try:
        found = getattr(_module(path), function, None)
    except SampleFailed as failed:
        return f"importing it failed: {failed}"
    if not inspect.isfunction(found):
        return f"it has no function {function}; define it or name another one"
    if inspect.iscoroutinefunction(found):
        return f"{function} is asynchronous; make it a plain function"
    wanted = f"({', '.join(PARAMETERS)}) or ({', '.join((*PARAMETERS, OPTIONAL))})"
    parameters = inspect.signature(found).parameters
    by_keyword = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    is_callable = {parameter.kind for parameter in parameters.values()} <= by_keyword
    if not is_callable or set(parameters) - {OPTIONAL} != set(PARAMETERS):
        return f"{function} must take {wanted}, by those names, got {inspect.signature(found)}"
    return ""


def call_plugin(
    path: str,
    function: str,
    prompt: Mapping[str, Any],
    mode: str,
    answer: str | None,
    reasoning: str | None,
) -> float:
    """Return the plug-in's number for one sample. Runs a user's code: only for killable workers.

    Raises NotScorable with the text that it returned instead of a number, and SampleFailed
    `plugin_error: ...` for an error inside it or a value that is neither.
    """
    call = getattr(_module(path), function, None)
    if call is None:
        raise SampleFailed("plugin_error", f"{path} has no function {function}")
    keywords: dict[str, Any] = {"prompt": dict(prompt), "mode": mode, "answer": answer}
    if OPTIONAL in inspect.signature(call).parameters:
        keywords[OPTIONAL] = reasoning
    value = _guarded(call, **keywords)
    if isinstance(value, str):
        raise NotScorable(value)
    # A bool is a number to Python, as it should be here.
    if not isinstance(value, Real) or not math.isfinite(value):
        got = f"{function} returned {repr(value)[:80]}"
        wanted = "return a finite number, or a text that says why there is none"
        raise SampleFailed("plugin_error", f"{got}; {wanted}")
    return float(value)


@cache
def _module(path: str) -> Any:
    """Import a file, once per worker process."""
    # A name of our own, so that a plug-in called json.py hides no module of that name.
    name = f"reward_plugin_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SampleFailed("plugin_error", f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look their module up.
    sys.modules[name] = module
    _guarded(spec.loader.exec_module, module)
    return module


def _guarded(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a user's code; its errors, and its exit, are failures of the sample."""
    try:
        return call(*arguments, **keywords)
    # The worker reports it under its own reason: the plug-in may be right and its limit too low.
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise SampleFailed("plugin_error", f"{type(error).__name__}: {error}") from error
