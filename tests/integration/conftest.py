"""The order of the integration tests: three processes take a file at a time."""

import pytest

# First, so that no core is left alone with one of them at the end.
LONGEST = ("test_align", "test_sweep", "test_serving", "test_system", "test_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
