"""Given to engines of a test as `worker_extension_cls`: it replaces what names a GPU."""

from __future__ import annotations

from rollout.engines.receivers import WorkerExtension
from tests.doubles.transports import replace_gpu_names

# In every process of an engine, as vLLM imports the extension in each.
replace_gpu_names()


class DoubledExtension(WorkerExtension):
    pass
