"""Goes on from a checkpoint that another number of ranks wrote, or that has another ZeRO stage.

DeepSpeed's checkpoints belong to the ranks that wrote them: each holds a slice of the flattened
float32 weights and of AdamW's two moments. Here the slices become whole tensors again, one
parameter at a time, and every rank takes the share of them that is now its own. Nothing is lost and
nothing rounded, so weights, moments and steps are those of the checkpoint, bit for bit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rl.config.policy import PolicyConfig

LAYOUT = "layout.json"
WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Layout:
    """What decides which rank holds which slice of the optimizer's state."""

    ranks: int
    zero_stage: int

    @classmethod
    def of(cls, policy: PolicyConfig) -> "Layout":
        return cls(policy.ranks, policy.effective_zero_stage)

    def write(self, state: Path) -> None:
        """state: the directory of DeepSpeed's checkpoint, which exists."""
        (state / LAYOUT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, state: Path) -> "Layout | None":
        """The layout of a checkpoint; None of one that is older than this file."""
        path = state / LAYOUT
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True)
class SavedState:
    """The trained parameters of a checkpoint."""

    step: float
    """Optimizer steps that were taken, on which AdamW's correction of its moments depends."""
    tensors: Mapping[str, Mapping[str, Any]]
    """By WEIGHT and MOMENTS, and by parameter: what `contiguous()` makes a whole tensor of."""

    def whole(self, key: str, name: str) -> Tensor:
        """[numbers], in float32."""
        return self.tensors[key][name].contiguous().view(-1)


def read_state(directory: Path, layout: Layout, names: Sequence[str]) -> SavedState:
    """Read what ranks of `layout` have saved; files are mapped and read where they are used.

    names: of the trained parameters, in the order of the optimizer. Raises ValueError for files
    that are missing, or without the optimizer's state.
    """
    if layout.zero_stage == 0:
        saved = _load(directory / "mp_rank_00_model_states.pt")
        state = saved["optimizer"]["state"]
        weights = {name: tensor for name, tensor in saved["module"].items() if name in set(names)}
        _refuse_unless(directory, len(state) == len(names) == len(weights))
        moments = {k: {n: state[i][k] for i, n in enumerate(names)} for k in MOMENTS}
        return SavedState(float(state[0]["step"]), {WEIGHT: weights, **moments})
    files = [
        path
        for rank in range(layout.ranks)
        for path in directory.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    ]
    _refuse_unless(directory, len(files) == layout.ranks)
    ranks = [_load(path)["optimizer_state_dict"] for path in files]
    is_partitioned = layout.zero_stage == 3
    of_weights = "fp32_flat_groups" if is_partitioned else "single_partition_of_fp32_groups"
    of_optimizer = "optimizer_state_dict" if is_partitioned else "base_optimizer_state"
    # Of each rank: the state of each flattened group of parameters, in order.
    states = [list(rank[of_optimizer]["state"].values()) for rank in ranks]
    flat = {WEIGHT: [rank[of_weights] for rank in ranks]} | {
        key: [[group[key] for group in groups] for groups in states] for key in MOMENTS
    }
    groups = len(ranks[0][of_weights])
    _refuse_unless(directory, groups > 0 and all(len(of_rank) == groups for of_rank in states))
    prefix = "zero_pp_rank_0_" if is_partitioned else ""
    shapes = _load(directory / f"{prefix}mp_rank_00_model_states.pt")["param_shapes"]
    paddings = ranks[0].get("param_alignment_paddings")
    tensors = {key: _put_together(layout, flat[key], shapes, paddings) for key in flat}
    return SavedState(float(states[0][0]["step"]), tensors)


def _load(file: Path) -> Any:
    # DeepSpeed pickles objects of its own. The files are those of this run, which its manifest
    # vouches for (rl/run/checkpoints.py), as for DeepSpeed's own loader.
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def _refuse_unless(directory: Path, is_whole: bool) -> None:
    if not is_whole:
        raise ValueError(
            f"{directory} does not hold the optimizer's state of every rank, without which another "
            "number of ranks cannot go on; give policy.ranks and policy.zero_stage their old "
            "values, or resume from another step"
        )


def _put_together(
    layout: Layout,
    flat: list[list[Tensor]],
    shapes: list[Mapping[str, torch.Size]],
    paddings: Any,
) -> Mapping[str, Any]:
    """Whole tensors by parameter. flat: of each rank, its slice of each group of parameters."""
    # Imported here for the same reason as in deepspeed_engine.py.
    from deepspeed.utils import zero_to_fp32

    whole: dict[str, Any] = {}
    # DeepSpeed's own code that makes one file of the weights; the moments are cut as they are.
    of_model = [SimpleNamespace(param_shapes=shapes)]
    if layout.zero_stage == 3:
        zero_to_fp32._zero3_merge_trainable_params(whole, layout.ranks, flat, of_model)
    else:
        zero_to_fp32._zero2_merge_trainable_params(whole, layout.ranks, flat, of_model, paddings)
    return whole


@dataclass(frozen=True)
class _Share:
    """The part of one parameter that this rank's AdamW steps on."""

    name: str
    flat: Tensor
    """What the optimizer holds: a slice of many parameters; at stage 0 the parameter itself."""
    start: int
    """Where in it the part begins."""
    whole_start: int
    """Where in the flattened parameter the part begins."""
    length: int


@torch.no_grad()
def take_share(engine: Any, layout: Layout, directory: Path, saved_by: Layout) -> None:
    """Put a checkpoint that ranks of `saved_by` wrote into the engine of a rank of `layout`.

    directory: holds DeepSpeed's files. All ranks take part. Raises ValueError if the checkpoint is
    of other parameters.
    """
    trained = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    saved = read_state(directory, saved_by, list(trained))
    if wrong := sorted(trained.keys() ^ saved.tensors[WEIGHT].keys()):
        raise ValueError(
            f"{directory} is of other parameters: {', '.join(wrong[:3])} are only on one side; "
            "resume with the policy and the adapters that were trained"
        )
    zero, stage = engine.optimizer, layout.zero_stage
    # What DeepSpeed wraps, which is nothing at stage 0.
    adamw = getattr(zero, "optimizer", zero)
    if stage == 3:
        zero.checkpoint_event_prologue()
        flats = list(zero.fp32_partitioned_groups_flat)
        zero._set_fp32_optimizer_param_groups()
    else:
        flats = [parameter for group in adamw.param_groups for parameter in group["params"]]
    empty = {
        place: {"step": torch.tensor(saved.step)}
        | {key: torch.zeros_like(flat.detach()) for key in MOMENTS}
        for place, flat in enumerate(flats)
    }
    # Through AdamW's own loader, which puts its count of steps where it wants it.
    adamw.load_state_dict({"state": empty, "param_groups": adamw.state_dict()["param_groups"]})
    for share in _shares(zero, stage, trained):
        for key in (WEIGHT, *MOMENTS):
            target = share.flat.data if key == WEIGHT else adamw.state[share.flat][key]
            part = saved.whole(key, share.name).narrow(0, share.whole_start, share.length)
            target.view(-1).narrow(0, share.start, share.length).copy_(part)
    # The weights that the forward reads follow the float32 ones.
    if stage == 3:
        zero._clear_fp32_optimizer_param_groups()
        _update_partitions(zero)
        zero.checkpoint_event_epilogue()
    elif stage > 0:
        zero.update_lp_params()


def _shares(zero: Any, stage: int, trained: Mapping[str, Tensor]) -> Iterator[_Share]:
    for name, parameter in trained.items():
        if stage == 0:
            yield _Share(name, parameter, 0, 0, parameter.numel())
        elif stage == 3:
            group, start, length = zero.grad_position[zero.get_param_id(parameter)]
            whole_start = length * zero._get_param_partition_rank(parameter)
            # The last rank's slice is padded to the length of the others.
            length = max(0, min(length, parameter.ds_numel - whole_start))
            if length:
                flat = zero.fp32_partitioned_groups_flat[group]
                yield _Share(name, flat, start, whole_start, length)
        # Stages 1 and 2 cut the whole group, so a rank may hold nothing of a parameter.
        elif (slice_ := parameter._hp_mapping) is not None:
            own, whole = slice_.hp_fragment_address, slice_.lp_fragment_address
            flat = zero.optimizer.param_groups[slice_.param_group_index]["params"][0]
            yield _Share(name, flat, own.start, whole.start, own.numel)


def _update_partitions(zero: Any) -> None:
    """As DeepSpeed does at ZeRO-3 when it has loaded a checkpoint of its own."""
    for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
        partitions = zero.fp16_partitioned_groups[group]
        low = zero.fp16_partitioned_groups_flat[group]
        low.data.copy_(flat.data)
        for partition, updated in zip(partitions, zero.unflatten(low, partitions), strict=True):
            partition.data = updated.data
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
