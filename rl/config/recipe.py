"""Reads a recipe and the command line into the one `Config`, before anything heavy is imported.

    python -m rl.launch config=hybrid_50_50.yaml scale=one_gpu rollout.group_size=16 dry_run=true

A recipe says what is trained; a scale says where and how large. Later layers win:

    extends: other.yaml   <   the recipe   <   scale: NAME   <   key=value on the command line

What a scale has under `defaults:` stands beneath a recipe of the user's own instead: it holds where
that recipe says nothing.

A recipe may say `scales: vision`: names of scales are then looked up in scale/vision/ first,
because a vision-language policy has other settings at every size. What `scales: vision/describe`
does not find in its own folder it looks for in scale/vision/, then in scale/.

A layer that names `data.kind` replaces the `data` of the layers before it as a whole, since the
settings of one kind of data mean nothing to another.
"""

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rl.config.keys import RecipeError, one_line, problems
from rl.config.run import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCALES = CONFIGS / "scale"
COMMAND_LINE = "the command line"
LOADER_KEYS = ("config", "scale")
"""Keys that direct the reading and are no part of the configuration."""
ASK_TIMEOUT_S = 20
PROGRAMS_SHARE = 0.99
"""Of the memory that nvidia-smi reports, what is left for programs: 79.1 GiB of an H100's 79.6."""
BUILTIN = "builtin:"
"""How the names of the built-in models begin."""
WORLD = ("data.kind.", "data.path.", "data.preset.", "data.mix.", "policy.model.")
"""What is trained on what. Where a person names any, `auto` looks for a scale that keeps it."""
# The best rate for LoRA is about ten times that for all weights ("LoRA Without Regret", Thinking
# Machines, 2025), and RL of all weights takes 1e-6.
LORA_LEAST_RATE = 5e-6


@dataclass(frozen=True)
class Difference:
    """A setting that a run has otherwise than its recipe."""

    key: str
    recipe: str
    """What the recipe says, or `not set`."""
    run: str
    """What the run has."""
    by: str
    """Who set it so: the file of a scale, or the command line."""


@dataclass(frozen=True)
class Origin:
    """What a configuration came from."""

    recipe: str
    """The recipe's file; those of ours by their path in configs/."""
    scale: str | None
    """The file of the scale, named alike."""
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Loaded:
    """A configuration, and how it came about."""

    config: Config
    origin: Origin
    notes: tuple[str, ...]
    """What a person should know: which of their settings have no effect, and which GPUs no use."""
    auto_scale: str | None = None
    """The scale that `scale=auto` took by the number of GPUs, where there are any. Whether the
    model fits into their memory is asked when the model is known (rl/launch/auto_scale.py)."""


@dataclass(frozen=True)
class Layer:
    """One source of settings; `name` is how messages call it."""

    name: str
    tree: DictConfig
    is_shipped: bool = False


def load(arguments: Sequence[str]) -> Loaded:
    """Return the checked configuration of `config=NAME [scale=NAME] [key=value ...]`.

    Raises RecipeError, which lists every problem.
    """
    directives, overrides = parse_arguments(arguments)
    if "config" not in directives:
        raise RecipeError(
            "config=NAME is missing; name a recipe of the working directory or one of "
            f"{', '.join(recipe_names())}"
        )
    name = str(directives["config"])
    recipe = find_recipe(name)
    layers = _read_chain(recipe)
    of_recipe = tuple(layers)
    if any("recipe" in layer.tree for layer in layers):
        raise RecipeError(f"{name} is a sweep; run it with python -m rl.sweep config={name}")
    own_scale = _take(layers, "scale")
    mine = [*(layer for layer in layers if not layer.is_shipped), Layer(COMMAND_LINE, overrides)]
    scale_name = directives.get("scale", own_scale)
    scale = _scale_layers(layers, scale_name, mine)
    notes, auto_scale = [], None
    if scale_name == "auto":
        of_scale = _resolved(_joined(scale))
        if "gpus" in (resources := of_scale.get("resources", {})):
            name_of_scale, gpus = Path(scale[-1].name).stem, resources["gpus"]
            model = str(of_scale.get("policy", {}).get("model", ""))
            notes = _notes_of_auto(name_of_scale, gpus, model)
            auto_scale = name_of_scale if gpus else None
    # What a scale has under `defaults` goes beneath the first layer that a person wrote.
    below = next((n for n, layer in enumerate(layers) if not layer.is_shipped), len(layers))
    layers[below:below] = _defaults(layers, scale)
    layers += [*scale, Layer(COMMAND_LINE, overrides)]
    whole = _joined(layers)
    # The name of the recipe is the run's, so that the same command finds its run again.
    config = _checked(layers, whole, {"run": f"runs/{recipe.stem}"})
    final = dotted_leaves(whole)
    origin = Origin(
        _shown(str(recipe)),
        _shown(scale[-1].name) if scale else None,
        _differences(of_recipe, layers, final),
    )
    return Loaded(config, origin, (*notes, *_notes(layers, scale, final, config)), auto_scale)


def load_over(
    stored: Path, section: str, arguments: Sequence[str], takes_others: bool = False
) -> Config:
    """The configuration in `stored`, with one section of a recipe and the command line over it.

    arguments: `config=NAME` for the recipe and `scale=NAME` for a scale, if any, and
    `section.key=value`. takes_others: whether keys of other sections can be given too. Raises
    RecipeError.
    """
    directives, overrides = parse_arguments(arguments)
    over = _read_chain(find_recipe(str(directives["config"]))) if "config" in directives else []
    # The recipe's own scale is left out: it would say how large, and the stored run knows that.
    scale = _scale_layers(over, directives.get("scale"))
    over = [*_defaults(over, scale), *over, *scale]
    layers = _read_chain(stored) + [
        Layer(layer.name, OmegaConf.masked_copy(layer.tree, [section]))
        for layer in over
        if section in layer.tree
    ]
    other = sorted({str(key) for key in overrides} - {section})
    if other and not takes_others:
        raise RecipeError(f"only {section}.* can be changed here, got {', '.join(other)}")
    layers.append(Layer(COMMAND_LINE, overrides))
    return _checked(layers, _joined(layers), {})


def read_config(path: Path) -> Config:
    """The configuration that a file holds; raises RecipeError."""
    layers = _read_chain(path)
    return _checked(layers, _joined(layers), {})


def _checked(layers: Sequence[Layer], whole: DictConfig, defaults: dict[str, Any]) -> Config:
    """whole: the layers joined."""
    try:
        return Config.model_validate(defaults | _resolved(whole))
    except ValidationError as error:
        origins = {key: layer.name for layer in layers for key in dotted_leaves(layer.tree)}
        raise RecipeError("\n".join(problems(error, origins, Config))) from None


def dump(config: Config) -> str:
    """Return the whole tree as YAML, which `load` reads back to an equal Config."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def recipe_names() -> list[str]:
    """The installed recipes and sweeps."""
    return sorted(path.name for path in CONFIGS.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the recipe's path: from the working directory, else from the installed ones."""
    return _find(name, [Path(), CONFIGS], "config")


def find_scale(name: str, folder: str = "", mine: Sequence[Layer] = ()) -> Path:
    """Return the scale's path; `auto` takes the largest one-node scale the visible GPUs can hold.

    A name without .yaml is one of the installed scales. folder: under these, looked into first.
    mine: what a person set. Of scales of one size `auto` takes one that leaves their data and model
    as they are; where they set neither, the one that has both built in.
    """
    # The folder, those that it lies in, and that of all scales.
    own_first = [SCALES / place for place in (Path(folder), *Path(folder).parents)]
    if Path(name).suffix == ".yaml":
        return _find(name, [Path(), *own_first], "scale")
    if name != "auto":
        return _find(f"{name}.yaml", own_first, "scale")
    # Scales say themselves how many GPUs they need, so one that is added here is found by `auto`.
    visible = count_visible_gpus()
    own = dotted_leaves(_joined(mine))
    fitting: dict[tuple[int, bool, bool], Path] = {}
    found = {path.name: path for place in reversed(own_first) for path in place.glob("*.yaml")}
    for path in (found[name] for name in sorted(found)):
        leaves = {k: v for layer in _read_chain(path) for k, v in dotted_leaves(layer.tree).items()}
        gpus = int(leaves.get("resources.gpus", 0))
        if leaves.get("resources.nodes", 1) == 1 and gpus <= visible:
            keeps_mine = not any(
                # A scale that names the kind of data replaces all that was said of them.
                value != leaves.get(key)
                for key, value in own.items()
                if f"{key}.".startswith(WORLD)
                and (key in leaves or (key.startswith("data.") and "data.kind" in leaves))
            )
            fitting[gpus, keeps_mine, "data.kind" in leaves] = path
    if not fitting:
        raise RecipeError(
            f"scale=auto: no scale in {SCALES / folder} fits {visible} GPUs; name one, scale=NAME"
        )
    return fitting[max(fitting)]


def count_visible_gpus() -> int:
    """Return the machine's NVIDIA GPUs, no more than CUDA_VISIBLE_DEVICES lists where it is set."""
    # Not by torch, which takes seconds to import, and which a dry run on a laptop need not load.
    if (command := shutil.which("nvidia-smi")) is not None:
        answer = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
        )
        count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    else:
        # Containers may have the devices without the tool.
        count = sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))
    listed = _listed_devices()
    return count if listed is None else min(count, len(listed))


def visible_gpu_bytes() -> int | None:
    """Return the memory of the smallest visible NVIDIA GPU; None where it cannot be asked for."""
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    query = [command, "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(
        query, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
    )
    # Where the tool answers anything else, such as "[N/A]", nothing is known.
    rows = [re.fullmatch(r"(\d+), *(\d+)", line.strip()) for line in answer.stdout.splitlines()]
    mebibytes = {row[1]: int(row[2]) for row in rows if row is not None}
    # A name that is no index, such as a UUID, may be any of them.
    listed = [mebibytes[name] for name in _listed_devices() or [] if name in mebibytes]
    sizes = listed or list(mebibytes.values())
    # CUDA itself and its driver keep a part of what the card has.
    return round(min(sizes) * 2**20 * PROGRAMS_SHARE) if sizes else None


def _listed_devices() -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES lists; None where it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    # CUDA stops reading the list at the first entry that names no device.
    names = (name.strip() for name in visible.split(","))
    return list(takewhile(lambda name: name and name[0] != "-" and name != "NoDevFiles", names))


def _find(name: str, directories: Sequence[Path], key: str) -> Path:
    for directory in directories:
        if (path := directory / name).is_file():
            return path
    installed = sorted(path.name for path in directories[-1].glob("*.yaml"))
    # Without the ending, which would make every name look alike.
    stems = [Path(other).stem for other in installed]
    near = difflib.get_close_matches(Path(name).stem, stems, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}.yaml? " if near else ""
    raise RecipeError(
        f"{key}={name}: no such file in {' or '.join(str(d.resolve()) for d in directories)}; "
        f"{advice}the installed ones are {', '.join(installed)}"
    )


def split_argument(argument: str) -> tuple[str, str]:
    """The key and the value of `key=value`; raises RecipeError for anything else."""
    key, equals, value = argument.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{argument!r} is not key=value, such as rollout.group_size=16")
    return key, value


def parse_arguments(arguments: Sequence[str]) -> tuple[dict[str, Any], DictConfig]:
    """Return the loader's own keys and the tree of overrides."""
    directives: dict[str, Any] = {}
    overrides = OmegaConf.create()
    for argument in arguments:
        key, value = split_argument(argument)
        try:
            # Not PyYAML alone, which reads 1e-6 as a text.
            tree = OmegaConf.from_dotlist([argument])
        except yaml.YAMLError:
            if "{{" not in value:
                raise RecipeError(
                    f"{key}: cannot read the value {value!r} as YAML; quote it, and leave a space "
                    "after each colon of a mapping"
                ) from None
            # A template, in which YAML would see a mapping within a mapping.
            tree = OmegaConf.create()
            OmegaConf.update(tree, key, value)
        if key in LOADER_KEYS:
            directives[key] = tree[key]
        else:
            # All of one layer, so that what names the kind of data may stand anywhere in it.
            _lay_over(overrides, Layer(COMMAND_LINE, tree))
    return directives, overrides


def _read_chain(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """Return the layers of a file, the ones it extends first."""
    chain = (*above, path.resolve())
    if path.resolve() in above:
        raise RecipeError(f"extends goes round in a circle: {' -> '.join(map(str, chain))}")
    tree = read_tree(path)
    layers: list[Layer] = []
    if "extends" in tree:
        # Relative to the file first, so that a directory of recipes can be moved as a whole.
        beneath = _find(str(tree.pop("extends")), [path.parent, CONFIGS], "extends")
        layers = _read_chain(beneath, chain)
    return [*layers, Layer(str(path), tree, CONFIGS in path.resolve().parents)]


def read_tree(path: Path) -> DictConfig:
    """The keys and values of a YAML file; raises RecipeError where it holds anything else."""
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {one_line(error)}") from None
    if not isinstance(tree, DictConfig):
        raise RecipeError(f"{path} must hold keys and values, got a {type(tree).__name__}")
    return tree


def _take(layers: Sequence[Layer], key: str) -> Any:
    """Take `key` out of every layer; return the value of the last that has it.

    It names files, so it cannot be merged like a setting.
    """
    values = [layer.tree.pop(key) for layer in layers if key in layer.tree]
    return values[-1] if values else None


def _scale_layers(recipe: Sequence[Layer], scale: Any, mine: Sequence[Layer] = ()) -> list[Layer]:
    folder = _take(recipe, "scales") or ""
    return [] if scale is None else _read_chain(find_scale(str(scale), str(folder), mine))


def _defaults(recipe: Sequence[Layer], scale: Sequence[Layer]) -> list[Layer]:
    """Take what the layers of a scale have under `defaults` out of them, as layers of its own."""
    modes = {name for layer in recipe for name in _modes(layer.tree)}
    defaults = []
    for layer in scale:
        tree = layer.tree.pop("defaults", OmegaConf.create())
        # A scale that is for any recipe may know modes that this one does not have.
        for name in set(_modes(tree)) - modes:
            del tree.modes[name]
        defaults.append(Layer(layer.name, tree, layer.is_shipped))
    return defaults


def _modes(tree: DictConfig) -> Mapping[str, Any]:
    # What is no mapping is refused by name when the whole is checked.
    modes = tree.get("modes")
    return modes if isinstance(modes, DictConfig) else {}


def _room_for(prompt_tokens: int, *, _root_: DictConfig) -> int:
    """`${room_for:N}` in a recipe: the largest budget of its modes and N tokens of prompt."""
    modes = [mode for mode in _modes(_root_).values() if isinstance(mode, DictConfig)]
    budgets = [budget for mode in modes if isinstance(budget := mode.get("max_tokens"), int)]
    return prompt_tokens + max(budgets, default=0)


OmegaConf.register_resolver("room_for", _room_for, replace=True)


def _resolved(whole: DictConfig) -> dict[str, Any]:
    """Return the plain tree of layers that were joined."""
    try:
        # Interpolations such as ${steps} may point into other layers.
        tree = OmegaConf.to_container(whole, resolve=True)
    except (OmegaConfBaseException, TypeError) as error:
        raise RecipeError(f"cannot put the recipe together: {one_line(error)}") from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _joined(layers: Sequence[Layer]) -> DictConfig:
    """Return the tree of all layers, later ones over earlier ones."""
    joined = OmegaConf.create()
    for layer in layers:
        # Settings of one kind of data mean nothing to another, and would be refused there.
        if isinstance(data := layer.tree.get("data"), DictConfig) and "kind" in data:
            joined.pop("data", None)
        _lay_over(joined, layer)
    return joined


def _lay_over(joined: DictConfig, layer: Layer) -> None:
    try:
        joined.merge_with(layer.tree)
    except (OmegaConfBaseException, TypeError) as error:
        what = _clash(dotted_leaves(joined), dotted_leaves(layer.tree)) or one_line(error)
        raise RecipeError(f"{what} ({layer.name})") from None


def _clash(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Which leaf is a list on one side and a mapping on the other, which OmegaConf does not say."""
    for lists, others, rule in (
        (new, old, "must hold keys with values, got"),
        (old, new, "holds keys with values, and must be a list such as"),
    ):
        mappings = {above for key in others for above in _above(key)}
        for key, value in lists.items():
            if isinstance(value, list) and key in mappings:
                return f"{key}: {rule} {value!r:.60}"
    return None


def _differences(
    recipe: Sequence[Layer], layers: Sequence[Layer], new: Mapping[str, Any]
) -> tuple[Difference, ...]:
    """What the layers of a recipe say otherwise than all of them together, as it is written.

    new: the leaves of all of them together.
    """
    old = dotted_leaves(_joined(recipe))
    setters = {key: layer.name for layer in layers for key in dotted_leaves(layer.tree)}
    # What is set beneath a key is told there, and what a directory is called changes no run.
    untold = {above for key in new for above in _above(key)} | {"run"}
    differences = []
    for key in sorted({*old, *new} - untold):
        was, value = (str(leaves.get(key, "not set")) for leaves in (old, new))
        if value not in (was, "{}"):
            # What is gone was replaced by what stands above it, or with the rest of the data.
            by = next(
                (setters[name] for name in (key, *_above(key)) if name in new),
                setters.get("data.kind"),
            )
            differences.append(Difference(key, was, value, _shown(by or COMMAND_LINE)))
    return tuple(differences)


def _above(key: str) -> list[str]:
    """The keys above a dotted one, the nearest first: a.b and a above a.b.c."""
    return [key[:end] for end in range(len(key) - 1, 0, -1) if key[end] == "."]


def _shown(name: str) -> str:
    """The name of a layer for people who look from another directory, or at another machine."""
    path = Path(name)
    if name == COMMAND_LINE or not path.is_file():
        return name
    path = path.resolve()
    return str(path.relative_to(CONFIGS) if CONFIGS in path.parents else path)


def _notes(
    layers: Sequence[Layer], scale: Sequence[Layer], final: Mapping[str, Any], config: Config
) -> list[str]:
    """Which settings of a person have no effect, and which GPUs no use.

    final: the leaves of all layers together.
    """
    notes = []
    # A scale of ours comes after the person's recipe, and so wins over what they wrote in it.
    mine = dotted_leaves(_joined([layer for layer in layers if not layer.is_shipped]))
    replaced = [
        f"{key} {value!r} by {final.get(key)!r}"
        for key, value in mine.items()
        # An empty mapping sets nothing that could be replaced.
        if final.get(key) != value and value != {}
    ]
    if replaced and scale:
        # On CPU there is a scale that replaces none of it.
        other = "" if config.resources.gpus else "take scale=cpu, or "
        notes.append(
            f"{scale[-1].name} replaces settings of yours: {', '.join(replaced)}; to keep yours, "
            f"{other}give them on the command line or take a scale of your own"
        )
    # A scale of one's own over cpu_tiny.yaml may bring data and forget one of these.
    models = {"policy.model": config.policy.model}
    if config.reward.preference is not None:
        models["reward.preference.model"] = config.reward.preference.model
    builtin = [f"{key}={name}" for key, name in models.items() if name.startswith(BUILTIN)]
    kinds = dict.fromkeys(source.kind for source in config.data.sources.values())
    if builtin and (others := [kind for kind in kinds if kind not in ("chain_sum", "visual")]):
        notes.append(
            f"{' and '.join(builtin)}: the built-in models know the built-in tasks alone, and "
            f"the data are of kind {', '.join(others)}; name a policy.model of yours and set "
            "reward.preference=null, or take scale=cpu, which has none of them"
        )
    share = config.data.settings.get("probability_share")
    if config.data.kind == "chain_sum" and share and config.reward.probability is None:
        notes.append(
            f"data.settings.probability_share={share} has no effect, because reward.probability "
            "is off: rules score every answer"
        )
    if (preference := config.reward.preference) is not None and preference.reads == "response":
        notes.append(
            "reward.preference.reads=response shows the preference model the reasoning, against "
            "the method (arXiv 2509.18154, section 2.4.4); it is meant for studies of just that"
        )
    notes += lora_rate_notes(config, "policy")
    if config.align.enabled:
        notes += lora_rate_notes(config, "align.dpo")
    # No error: a machine may have three GPUs where a recipe can use two.
    gpus, taken = config.resources.gpus, config.num_gpus_taken
    if gpus != taken:
        notes.append(
            f"of resources.gpus={gpus} the run takes {taken}; more engines or ranks use the rest"
        )
    return notes


def lora_rate_notes(config: Config, section: Literal["policy", "align.dpo"]) -> list[str]:
    """A note where the learning rate of a section is too low for adapters, else none."""
    optimizer = (config.policy if section == "policy" else config.align.dpo).optimizer
    rate = optimizer.learning_rate
    if config.policy.lora is None or rate >= LORA_LEAST_RATE:
        return []
    return [
        f"{section}.optimizer.learning_rate={rate:g} suits training all weights; adapters "
        "(policy.lora) want about ten times as much, such as 1e-5"
    ]


def _notes_of_auto(scale: str, gpus: int, model: str) -> list[str]:
    """What a person on a machine without a GPU should know of the scale that was found for them."""
    if gpus:
        return []
    name = f"no GPU is seen, so scale=auto takes {scale}"
    if model.startswith(BUILTIN):
        return [
            f"{name}: the built-in model and task in place of the recipe's; with data or a model "
            "of yours it takes cpu, which keeps them"
        ]
    return [f"{name}: your data and model, small sizes where you set none"]


def dotted_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings by its dotted key; lists and empty mappings are leaves.

    Example: dotted_leaves({"a": {"b": 1}, "c": [2]}) == {"a.b": 1, "c": [2]}
    """
    if isinstance(tree, DictConfig):
        # As they are written: what an interpolation stands for is known only after the merge.
        tree = OmegaConf.to_container(tree)
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= dotted_leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
