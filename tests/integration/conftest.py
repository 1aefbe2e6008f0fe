"""The order of the integration tests, and a Ray for those that start none by a command.

Three processes take a file at a time.
"""

import os
from collections.abc import Iterator

import pytest
import ray

# The longest first, so that no core is left alone with one of them at the end. The second and the
# third need none of the built-in models, which the first makes on a new machine.
FIRST = (
    "test_align",
    "test_gpu_transports",
    "test_dpo",
    "test_run",
    "test_recovery",
    "test_chaos",
    "test_lora",
    "test_system",
    "test_vision_run",
    "test_serving",
    "test_laptop",
)


# On a new machine the first test of a file may wait for a built-in model that is being made.
TIMEOUT_S = 1200


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of the file's own, whatever other one runs on this machine."""
    # As the project's own has it (rl/system/cluster.py).
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
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
