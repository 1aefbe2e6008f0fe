"""The order of the integration tests: two processes take a file at a time."""

import pytest

# First, so that no core is left alone with one of them at the end.
LONGEST = ("test_sweep", "test_serving", "test_system", "test_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
