"""The unit tests on all cores, where pytest-xdist is installed."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads how many workers there are to be
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole folder among worker processes, unless the command says how many.

    A file or a single test runs in this process: it is done before a worker has started.
    """
    is_worker = hasattr(config, "workerinput")
    is_whole = [Path(argument).resolve() for argument in config.args] == [HERE]
    if is_whole and not is_worker and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = "logical"
        config.option.dist = "worksteal"
