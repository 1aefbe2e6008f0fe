"""Lets torchvision's published wheel be imported beside a torch without CUDA.

The wheel's compiled part needs CUDA libraries. Without it torchvision works as far as it is written
in Python, but its import fails over two operators that the compiled part would have declared. This
module declares them, just before torchvision is imported and only where they are missing.

scripts/setup.sh puts it into the environment's site-packages with a .pth file, so that it holds in
every process, those of vLLM among them. It imports torch only when torchvision is asked for.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def install() -> None:
    sys.meta_path.insert(0, _TorchvisionFinder())


class _TorchvisionFinder(MetaPathFinder):
    """Finds torchvision where it is, and declares the operators before it runs."""

    def find_spec(self, name, path, target=None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclaringLoader(spec.loader)
        return spec


class _DeclaringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _declare_missing()
        self._loader.exec_module(module)

    def __getattr__(self, name: str):
        return getattr(self._loader, name)


def _declare_missing() -> None:
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + SCHEMA)
    # A library takes its operators with it when it goes.
    _declare_missing.library = library


install()
