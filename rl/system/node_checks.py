"""What every node of a joined Ray cluster must have, asked before anything heavy starts.

A task on each node looks for it: the code and its packages, models, data, the run's directory,
memory, GPUs. Where something is missing the run ends here, with the node's name and what it lacks;
otherwise an engine or a rank would fail minutes later, or learn something else than the others.
"""

import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rl.system.resident import GIB

PACKAGES = ("rl", "rewards", "rollout", "policy")
PLUGIN = "hybrid_rl_weight_transfer"
"""The entry point through which vLLM finds how it receives weights."""
CHECK_TIMEOUT_S = 3600.0
"""For all nodes together, at the same time; each may have to download a model."""
SMI_TIMEOUT_S = 60
# A device on which another program holds more than this share is not free.
USED_SHARE = 0.1
# Ray's own variable for what it calls in every worker process (worker_logs.py). Where the code is
# missing that call fails, and Ray would start such processes over and over without a word.
_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"


@dataclass(frozen=True)
class NodeModel:
    """A model that processes on every node load."""

    setting: str
    """What names it."""
    here: Path
    """Its directory on the driver's node."""
    find: Callable[[], Path] | None = None
    """Finds, downloads or makes it on another node; None where all nodes share the directory."""


@dataclass(frozen=True)
class NodeNeeds:
    """What the driver has, which the other nodes must have too."""

    versions: Mapping[str, str]
    """Of the packages that must agree."""
    models: Sequence[NodeModel] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)
    """Files and directories that are read on every node, by what names them."""
    run: Path | None = None
    """The run's directory, which all nodes share."""
    memory: int = 0
    """Bytes that a process takes at least."""


@dataclass(frozen=True)
class NodeAnswer:
    lacks: tuple[str, ...]
    """What is missing, each with what to do."""
    models: Mapping[Path, Path]
    """Where the models of NodeNeeds are on the node, by where they are on the driver's."""


def check_nodes(needs: NodeNeeds, gpus: Mapping[str, int]) -> dict[tuple[str, Path], Path]:
    """Look at the nodes with these ids; returns where models lie, by node and the driver's place.

    gpus: how many the run takes of each node. Raises ValueError that names every node which lacks
    something, and what.
    """
    names, own = node_names(), ray.get_runtime_context().get_node_id()
    mark = None if needs.run is None else needs.run / f".nodes_{uuid.uuid4()}"
    try:
        if mark is not None:
            mark.touch()
        tasks = {
            node: ray.remote(look)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                runtime_env={"env_vars": {_HOOK_VARIABLE: ""}},
            )
            # The driver has found the models on its own node.
            .remote(
                replace(needs, models=()) if node == own else needs,
                gpus[node],
                mark,
                code_digest(),
            )
            for node in gpus
        }
        ray.wait([*tasks.values()], num_returns=len(tasks), timeout=CHECK_TIMEOUT_S)
        answers = {node: _answer(task) for node, task in tasks.items()}
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
    lacking = {names[node]: answer.lacks for node, answer in answers.items() if answer.lacks}
    if lacking:
        listed = "\n".join(f"  {name}: {'; '.join(lacks)}" for name, lacks in lacking.items())
        raise ValueError(
            f"{len(lacking)} of {len(gpus)} nodes of the Ray cluster lack what the run needs:\n"
            f"{listed}\nmend them, or leave them out of the cluster"
        )
    return {(node, here): path for node, a in answers.items() for here, path in a.models.items()}


def node_names() -> dict[str, str]:
    """A name for people of every node that is alive, by its id."""
    return {
        node["NodeID"]: f"node {node['NodeName']} ({node['NodeManagerHostname']})"
        for node in ray.nodes()
        if node["Alive"]
    }


def bundle_nodes(group: PlacementGroup) -> dict[int, str]:
    """The id of the node of each bundle of a reservation."""
    return dict(placement_group_table(group)["bundles_to_node_id"])


def _answer(task: ray.ObjectRef) -> NodeAnswer:
    try:
        return ray.get(task, timeout=0.1)
    except GetTimeoutError:
        lack = f"does not answer within {CHECK_TIMEOUT_S:g} s"
    # Whatever is wrong there is to be told of that node: a task whose code cannot be imported
    # fails in Ray in many ways.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line for line in lines if "Error: " in line and "ray::" not in line]
        lack = (
            f"cannot run this project's code ({said[-1] if said else error!r}); install it there, "
            "or set resources.working_dir=. to send it along"
        )
    return NodeAnswer((lack,), {})


# What runs on the nodes.


def look(needs: NodeNeeds, gpus: int, mark: Path | None, code: str) -> NodeAnswer:
    """What this node lacks. mark: a file that the driver has just written into the run."""
    lacks = [*_lacking_software(needs.versions, code)]
    lacks += [f"{n} is not there: {p}" for n, p in needs.paths.items() if not p.exists()]
    if needs.run is not None and mark is not None:
        if not mark.is_file():
            lacks.append(f"run={needs.run} is not the driver's; name one that all nodes share")
        elif not os.access(needs.run, os.W_OK):
            lacks.append(f"run={needs.run} cannot be written")
    models = {}
    for model in needs.models:
        try:
            models[model.here] = _found(model)
        except ValueError as error:
            lacks.append(f"{model.setting}: {error}")
    if needs.memory > (free := psutil.virtual_memory().available):
        lacks.append(
            f"{free / GIB:.1f} GiB of memory are free, and one process takes "
            f"{needs.memory / GIB:.1f}"
        )
    there, unused = _gpus()
    if gpus > there:
        lacks.append(f"Ray gives out {gpus} GPUs of it, and {there} are there")
    elif gpus > unused:
        lacks.append(
            f"other programs hold {there - unused} of its {there} GPUs, the run takes {gpus}"
        )
    return NodeAnswer(tuple(lacks), models)


def _lacking_software(versions: Mapping[str, str], code: str) -> Iterator[str]:
    for name, expected in versions.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield f"{name} is not installed (the driver has {expected})"
            continue
        if found != expected:
            yield f"{name} is {found} there and {expected} at the driver; install the same"
    if PLUGIN not in entry_points(group="vllm.general_plugins").names:
        yield "vLLM finds no plug-in of this project; install it there (pip install -e .)"
    if code_digest() != code:
        yield (
            f"the code in {_root()} is not the driver's; check out the same, or set "
            "resources.working_dir=. to send it along"
        )


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def code_digest() -> str:
    """A name for this project's code as it lies on this node."""
    digest = hashlib.blake2b()
    for package in PACKAGES:
        for file in sorted((_root() / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(_root())} {file.stat().st_size}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _found(model: NodeModel) -> Path:
    if (model.here / "config.json").is_file():
        return model.here
    if model.find is None:
        raise ValueError(f"{model.here} is not there; it must be in a place that all nodes share")
    return model.find().absolute()


def _gpus() -> tuple[int, int]:
    """This node's NVIDIA GPUs, and how many of them no other program uses."""
    # Whatever CUDA_VISIBLE_DEVICES says: Ray hides all of them from a task that takes none.
    if (command := shutil.which("nvidia-smi")) is None:
        # Containers may have the devices without the tool.
        devices = [p for p in Path("/dev").glob("nvidia*") if p.name[len("nvidia") :].isdigit()]
        return len(devices), len(devices)
    query = ["--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(
        [command, *query], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False
    )
    rows = [line.split(",") for line in answer.stdout.splitlines() if line.count(",") == 1]
    unused = sum(float(used) <= USED_SHARE * float(total) for used, total in rows)
    return len(rows), unused
