"""What a GPU test needs beside a CUDA device; it is skipped by the name of what is missing."""

import importlib.util

import pytest
import torch

NUM_GPUS = torch.cuda.device_count()
QWEN3_VOCABULARY = 151_936


def needs(*packages: str, gpus: int = 1) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing) or gpus > NUM_GPUS,
        reason=f"needs {', '.join(missing) or f'{gpus} GPUs, {NUM_GPUS} here'}",
    )
