"""The dry run: reads everything that a run would read, says what it found, and starts nothing.

What would stop the run is found one after the other, as a run would, and all of it is told: data,
model, template and rewards are looked at even where one of the others cannot be used.
"""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import ray

from policy.builtin.names import POLICY_SIZES, builtin_policy
from policy.learner.memory_meter import meter_model
from policy.models.cache import NotMade, find_model, looking_only
from policy.models.checks import weight_files
from policy.models.loading import resolve_model
from rl.align.assistants import check_assistants
from rl.assembly import (
    checked_rewards,
    count_rows,
    find_preference_model,
    media_token_counter,
    node_needs,
    open_chat,
    open_prompts,
    refuse_missing_gpus,
    refuse_missing_wandb,
)
from rl.config.recipe import dump, visible_gpu_bytes
from rl.config.run import Config
from rl.loop.stages import Prompt
from rl.run.directory import RunDirectory
from rl.run.terminal import counted
from rl.system.cluster import NoCluster, refuse_unplaceable, start_ray
from rl.system.memory_estimate import (
    MemoryPlan,
    ModelSize,
    describe_memory,
)
from rl.system.node_checks import NodeModel, check_nodes
from rl.system.placement import describe, place
from rl.system.resident import GIB
from rollout.chat import ChatTemplate
from rollout.prompts.stream import PromptStream

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 3000


@dataclass
class Preflight:
    """What a dry run has found so far."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What would stop the run, each with what to do about it."""

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"note: {note}" for note in self.notes)])

    @contextmanager
    def looking(self, at: str) -> Iterator[None]:
        """Keep what the block finds wrong with `at`, a setting, and go on behind it."""
        try:
            yield
        except NotMade:
            self.notes.append(f"{at}: is made when the run starts, which takes minutes")
        except ValueError as error:
            # Some errors name the setting first themselves. Several looks at one directory may end
            # at the same fault.
            problem = str(error) if str(error).startswith(at) else f"{at}: {error}"
            if problem not in self.problems:
                self.problems.append(problem)


async def print_preflight(config: Config, notes: Sequence[str]) -> int:
    """Print what a dry run finds, what would stop the run to stderr; returns the exit code."""
    report = await preflight(config, notes)
    print(report)
    sys.stdout.flush()
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if report.problems else 0


async def preflight(config: Config, notes: Sequence[str] = ()) -> Preflight:
    """Look at all that a run of `config` reads. notes: of how its recipe and scale met."""
    report = Preflight([dump(config).rstrip()], list(notes))
    gpus, here = config.resources.gpus, True
    try:
        refuse_missing_gpus(config)
    except ValueError as error:
        # A run is often planned on a laptop or a login node. What only this machine lacks stops it
        # here, and need not where it will run.
        here = False
        report.notes.append(f"not on this machine: {error}")
    with looking_only():
        stream = None
        source = config.data
        at = f"data.kind={source.kind}" if source.path is None else f"data.path={source.path}"
        with report.looking(at):
            stream = open_prompts(config)
        about_policy = len(report.lines)
        size = await _describe_policy(report, config, stream, here)
        # Only now: the policy's template says which rows are too long. They are told of first.
        if stream is not None:
            with report.looking(at):
                report.lines[about_policy:about_policy] = _describe_rows(config, stream)
        if (preference := config.reward.preference) is not None:
            at, name = f"reward.preference.model={preference.model}", preference.model
            with report.looking(at), _elsewhere(report, name, here):
                find_preference_model(config.reward, stream)
    with report.looking("log"):
        refuse_missing_wandb(config)
    with report.looking(f"run={config.run}"):
        _check_directory(config)
    if (address := config.resources.ray_address) is not None:
        with report.looking(f"resources.ray_address={address}"):
            _check_cluster(report, config)
    memory = "  unknown until the policy can be read"
    if size is not None:
        plan = MemoryPlan(config, size)
        # Of another machine nothing is known but what its scale says, which names a common size.
        memory = describe_memory(plan, visible_gpu_bytes() if here else None)
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if here and not gpus and plan.total_bytes > there:
            report.notes.append(
                f"the run takes {plan.total_bytes / GIB:.1f} GiB of memory or more, and this "
                f"machine has {there / GIB:.1f}; take a smaller policy.model, or "
                "policy.lora.rank=16"
            )
    report.lines += ["placement:", describe(place(config)), "memory:", memory]
    return report


def _describe_rows(config: Config, stream: PromptStream) -> list[str]:
    """How many rows there are by source, route and mode, and why others are left out."""
    rows = count_rows(stream, checked_rewards(config.reward))
    shares = ", ".join(f"{name} {mode.share:g}" for name, mode in config.modes.items())
    lines = ["prompts:"]
    for source in dict.fromkeys(row.source for row in rows):
        routes: Counter[str] = Counter()
        modes: Counter[str] = Counter()
        for row, count in rows.items():
            if row.source == source:
                routes[str(row.route)] += count
                modes[f"drawn ({shares})" if row.mode is None else row.mode] += count
        kinds = f"{routes.total():,} to train on"
        if stream.num_train is None:
            kinds = f"without end, of which {routes.total():,} were looked at"
        lines.append(f"  {source}: {kinds}")
        for key, counts in (("reward", routes), ("mode", modes)):
            listed = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
            lines.append(f"    {key}: {listed}")
    heldout = stream.heldout(config.eval.prompts)
    lines.append(f"  held out: {len(heldout):,} that are asked in every mode (eval.prompts)")
    if left_out := stream.quarantined:
        reasons = Counter(row.reason.partition(":")[0] for row in left_out)
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        lines.append(f"  left out: {counted(len(left_out), 'row')} ({counts}), such as")
        lines += [f"    {row.id} {row.reason}" for row in left_out[:SHOWN_ROWS]]
    return lines


async def _describe_policy(
    report: Preflight, config: Config, stream: PromptStream | None, here: bool
) -> ModelSize | None:
    """Check the policy and show a prompt of each mode; returns its size where that is known."""
    name = config.policy.model
    report.lines += ["policy:", f"  {name}"]
    builtin, model = POLICY_SIZES.get(name), None
    size = None if builtin is None else ModelSize(builtin.parameters, builtin.vocabulary)
    at = f"policy.model={name}"
    with report.looking(at), _elsewhere(report, name, here):
        directory = find_model(builtin_policy(name), "policy.model")
        if Path(name).is_dir() or builtin is not None:
            with report.looking(at):
                # Not untied: the copy is made when the run starts, and is checked then.
                model = resolve_model(str(directory), untie=False, is_trained=True)
        else:
            model = directory
            report.lines.append("  its weights are downloaded when the run starts")
        # Also of a directory where nothing is missing but the weights: memory is often asked for
        # before these are fetched. A model that is refused for what it is has no plan.
        if model is not None or not weight_files(directory):
            size = meter_model(model or directory, config)
        if model is None:
            return size
        if stream is not None:
            chat, notes = open_chat(config, model, stream)
            report.notes += notes
            report.lines += _rendered(config, model, chat, stream)
        # An assistant of the Hub is checked when it has been downloaded.
        assistants = (config.align.labeller, config.align.divider)
        named = [a.model for a in assistants if a is not None and a.model is not None]
        if config.align.enabled and all(Path(a).is_dir() or ":" in a for a in named):
            with report.looking("align"):
                await check_assistants(config, model)
    return size


@contextmanager
def _elsewhere(report: Preflight, name: str, here: bool) -> Iterator[None]:
    """Of a Hub name that cannot be reached: a note where the run is for another machine."""
    try:
        yield
    except ValueError as error:
        if here or Path(name).exists() or "could not be downloaded" not in str(error):
            raise
        report.notes.append(f"not checked: {error}")


def _rendered(
    config: Config, model: Path, chat: ChatTemplate, stream: PromptStream
) -> Iterator[str]:
    """One prompt in each mode in which it can be asked, as the policy reads it."""
    count = media_token_counter(config, model, chat)
    for name, mode in config.modes.items():
        asked: Iterator[Prompt] = (p for p in stream.checked() if p.mode in (None, name))
        for prompt in islice(asked, 1):
            tokens = chat.prompt_token_ids(prompt, mode.thinking, mode.chat_template_kwargs)
            length, text = len(tokens) + count(prompt), chat.raw_text(tokens)
            if len(text) > SHOWN_CHARACTERS:
                half = SHOWN_CHARACTERS // 2
                text = f"{text[:half]}\n[... {len(text):,} characters ...]\n{text[-half:]}"
            yield (
                f"  mode {name}: {prompt.id}, {counted(length, 'token')}, "
                f"and {mode.max_tokens:,} at most for the response"
            )
            yield from (f"    | {line}" for line in text.split("\n"))


def _check_cluster(report: Preflight, config: Config) -> None:
    """Ask every node of the cluster that is to be joined what it lacks; nothing is reserved."""
    placement = place(config)
    try:
        start_ray(config.resources, sum(bundle.cpus for bundle in placement.bundles))
    except NoCluster as error:
        report.notes.append(f"nodes are not checked: {error}")
        return
    try:
        refuse_unplaceable(placement)
        name = config.policy.model
        # Each node downloads or makes a model that is no directory when the run starts.
        here = Path(name).absolute()
        needs = node_needs(config, NodeModel(f"policy.model={name}", here), None)
        if not here.is_dir():
            needs = dataclasses.replace(needs, models=())
        nodes = [node for node in ray.nodes() if node["Alive"]]
        # Where some stay free, it is not known which the run will take.
        takes_all = config.resources.gpus == sum(n["Resources"].get("GPU", 0) for n in nodes)
        gpus = {n["NodeID"]: int(n["Resources"].get("GPU", 0)) * takes_all for n in nodes}
        check_nodes(needs, gpus)
        report.lines.append(f"nodes: {len(nodes)} of the cluster have what the run needs")
    finally:
        ray.shutdown()


def _check_directory(config: Config) -> None:
    """Raise ValueError if the run's directory holds another run, or cannot be made or written."""
    directory = RunDirectory(Path(config.run))
    directory.refuse_another(config)
    there = next(p for p in (directory.root, *directory.root.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{there} cannot be written; name another directory with run=PATH")
