"""The arms of a sweep: which settings each run of it has, checked before anything starts.

    recipe: hybrid_50_50.yaml             what every arm starts from
    long_share: [0, 0.25, 0.5, 1]         share of the mode that thinks; the other takes the rest
    variants: {plain: {}, wide: {rollout: {group_size: 16}, steps: 40}}    several keys at once
    arms: {rollout.group_size: [4, 8]}    any other keys of a recipe, each with its values
    seeds: [0, 1]
    settings: {eval: {every: 10}}         over the recipe and its scale, in every arm

An arm is one value of each; `rl/sweep` trains them all.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from rl.config.keys import RecipeError, one_line, problems
from rl.config.recipe import (
    Loaded,
    Origin,
    dotted_leaves,
    find_recipe,
    load,
    parse_arguments,
    read_tree,
)
from rl.config.run import Config
from rl.config.section import Section, Share
from rl.run.directory import RunDirectory
from rl.run.files import read_json


class Published(Section):
    """What others published of the same comparison, which the report puts beside ours."""

    text: str
    """What was published, where, and what must be known to compare it; Markdown."""
    points: dict[str, dict[str, str]] = Field(default={})
    """Their figures by column, of every arm that they have too: by the name of its variant, or by
    its share, such as `50 % long`."""


class SweepConfig(Section):
    recipe: str
    """The recipe that every arm starts from."""
    long_share: tuple[Share, ...] = ()
    """Shares of the mode that thinks; empty leaves the shares to the recipe."""
    variants: dict[str, dict[str, Any]] = Field(default={})
    """Settings that are varied together, each set under a name; the first is what the others are
    compared with."""
    arms: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    """Other keys to vary, each with its values; every combination is an arm."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every combination is trained once with each."""
    arms_at_once: int | None = Field(default=None, gt=0)
    """Most arms trained side by side; None takes as many as Ray has room for. Without GPUs, a
    number makes that room: engine and learner of a synchronous arm take turns anyway."""
    settings: dict[str, Any] = Field(default={})
    """Settings of every arm, over those of the recipe and its scale."""
    curves: tuple[str, ...] = ()
    """Metrics that the report draws over steps, such as `policy/entropy`; `{mode}` in a name stands
    for every mode."""
    published: Published | None = None
    """What the report puts beside the arms."""


@dataclass(frozen=True)
class Point:
    """What is compared: one combination of settings, trained once per seed."""

    name: str
    long_share: float | None
    """None where the sweep does not vary it."""
    others: tuple[tuple[str, Any], ...]
    """The other varied keys, with their values here."""
    variant: str | None = None
    """None where the sweep has no variants."""

    @property
    def besides(self) -> list[str]:
        """What tells this point from those of the same share, for people."""
        variant = [] if self.variant is None else [self.variant]
        return [*variant, *(f"{key.rpartition('.')[2]} {value}" for key, value in self.others)]

    @property
    def labels(self) -> list[str]:
        """What tells this point from the others, for people: ["25 % long", "group_size 8"]."""
        share = [] if self.long_share is None else [f"{100 * self.long_share:g} % long"]
        return [*share, *self.besides]


@dataclass(frozen=True)
class Arm:
    """One run of a sweep."""

    name: str
    point: Point
    seed: int
    config: Config
    origin: Origin


@dataclass(frozen=True)
class Sweep:
    config: SweepConfig
    root: Path
    """The sweep's directory, absolute; an arm's run directory lies in arms/ beneath it."""
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]
    """What a person should know about how recipe and scale met."""


def is_finished(arm: Arm) -> bool:
    """Whether the arm has trained all the steps its configuration asks for, and saved the last."""
    run = RunDirectory(Path(arm.config.run))
    if not run.summary_path.is_file():
        return False
    # A run that was stopped early has a summary, too.
    trained, saved = read_json(run.summary_path)["steps"], max(run.checkpoints.steps(), default=0)
    return min(trained, saved) >= arm.config.steps


def load_sweep(arguments: Sequence[str]) -> Sweep:
    """Read `config=NAME` and the command line; raises RecipeError for any arm that cannot run.

    Keys of SweepConfig change the sweep (`arms.KEY=[...]` adds one), `run` names its directory;
    every other key, `scale` among them, is a setting of every arm.
    """
    directives, overrides = parse_arguments(arguments)
    if "config" not in directives:
        raise RecipeError("config=NAME is missing; name a sweep, such as sweep_ratio.yaml")
    path = find_recipe(str(directives["config"]))
    try:
        stored = OmegaConf.to_container(read_tree(path), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path} cannot be resolved: {one_line(error)}") from None
    given = OmegaConf.to_container(overrides)
    assert isinstance(stored, dict) and isinstance(given, dict)
    root = Path(str(given.pop("run", f"runs/{path.stem}"))).absolute()
    own = {key: given.pop(key) for key in SweepConfig.model_fields if key in given}
    if "scale" in directives:
        given["scale"] = directives["scale"]
    # Keys that the command line varies join those of the file; anything else replaces.
    varied = [tree.get("arms") or {} for tree in (stored, own)]
    for arms in varied:
        if not isinstance(arms, Mapping):
            raise RecipeError(f"arms: must be keys with lists of values, got {arms!r}")
    own["arms"] = dotted_leaves(varied[0]) | dotted_leaves(varied[1])
    tree = {str(key): value for key, value in (stored | own).items()}
    if "recipe" not in tree:
        raise RecipeError(
            f"{path.name} is no sweep: it names no recipe; train it with python -m rl.launch"
        )
    try:
        config = SweepConfig.model_validate(tree)
    except ValidationError as error:
        origins = dict.fromkeys(tree, str(path))
        raise RecipeError("\n".join(problems(error, origins, SweepConfig))) from None
    settings = dotted_leaves(config.settings) | dotted_leaves(given)
    variants = {name: dotted_leaves(variant) for name, variant in config.variants.items()}
    return _planned(config.model_copy(update={"settings": settings, "variants": variants}), root)


def _planned(config: SweepConfig, root: Path) -> Sweep:
    """Plan and load every arm; raises RecipeError where two are the same or one cannot run."""
    # What the sweep itself sets in every arm.
    instead = {"seed": "seeds=[...]", "data.seed": "the first of seeds", "run": "run=PATH"}
    of_variants = itertools.chain(*config.variants.values())
    for key in (*config.arms, *of_variants, *config.settings):
        if config.long_share and re.fullmatch(r"modes\.[^.]+\.share", key):
            raise RecipeError(f"{key}: the sweep sets it from long_share; set that")
        if key in instead:
            raise RecipeError(f"{key}: the sweep sets it in every arm; give {instead[key]}")
    others = itertools.product(*([(k, value) for value in config.arms[k]] for k in config.arms))
    varied = itertools.product(config.variants or (None,), config.long_share or (None,), others)
    points = []
    for variant, long_share, values in varied:
        parts = [] if long_share is None else [f"long_{100 * long_share:g}"]
        parts += [] if variant is None else [variant]
        parts += [f"{key.rpartition('.')[2]}_{value}" for key, value in values]
        # Readable in a directory: long_25_learning_rate_1e-06.
        name = re.sub(r"[^\w.-]", "-", "_".join(parts) or "all")
        points.append(Point(name, long_share, values, variant))
    names = Counter(f"{p.name}_seed_{seed}" for p in points for seed in config.seeds)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise RecipeError(
            f"{', '.join(twice)}: more than one arm of this name; leave out values that repeat"
        )
    arms, notes = [], []
    for point in points:
        # All arms ask the same prompts in the same order; a seed varies modes and samples.
        of_variant = {} if point.variant is None else config.variants[point.variant]
        settings = config.settings | of_variant | dict(point.others)
        settings |= {"data.seed": config.seeds[0]}
        if point.long_share is not None:
            settings |= _shares(_load(config.recipe, settings, point.name).config, point.long_share)
        for seed in config.seeds:
            name = f"{point.name}_seed_{seed}"
            own = {"seed": seed, "run": str(root / "arms" / name)}
            loaded = _load(config.recipe, settings | own, name)
            if loaded.config.align.enabled:
                raise RecipeError(
                    "align.enabled: a sweep compares RL runs; leave it out, and align an arm "
                    f"afterwards with python -m rl.align run={root}/arms/NAME"
                )
            arms.append(Arm(name, point, seed, loaded.config, loaded.origin))
            notes += loaded.notes
    # Most notes are the same for every arm.
    return Sweep(config, root, tuple(arms), tuple(dict.fromkeys(notes)))


def _shares(config: Config, long_share: float) -> dict[str, float]:
    thinking = [name for name, mode in config.modes.items() if mode.thinking is True]
    direct = [name for name, mode in config.modes.items() if not mode.thinking]
    is_pair = len(thinking) == len(direct) == 1 and not config.choosing
    if not is_pair or config.share_schedule:
        raise RecipeError(
            "long_share needs one mode that thinks, one that does not and no share_schedule; got "
            f"modes {thinking} and {direct}; leave long_share=[] and vary other keys by arms"
        )
    return {f"modes.{thinking[0]}.share": long_share, f"modes.{direct[0]}.share": 1 - long_share}


def _load(recipe: str, settings: Mapping[str, Any], arm: str) -> Loaded:
    listed = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    try:
        return load([f"config={recipe}", *listed])
    except RecipeError as error:
        raise RecipeError(f"arm {arm}: {error}") from None
