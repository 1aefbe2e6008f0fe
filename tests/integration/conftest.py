"""The order of the integration tests, and a Ray for those that start none by a command.

Three processes take a file at a time.
"""

from collections.abc import Iterator

import pytest
import ray

# The longest first, so that no core is left alone with one of them at the end. The third and the
# fourth need none of the built-in models, which the first makes on a new machine.
FIRST = (
    "test_align",
    "test_recovery",
    "test_dpo",
    "test_visual_learner",
    "test_run",
    "test_serving",
    "test_preference",
    "test_best_of",
    "test_system",
)


# On a new machine the first test of a file may wait for a built-in model that is being made.
TIMEOUT_S = 1200


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of the file's own, whatever other one runs on this machine."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
