"""The learner over several ranks: other numbers of them on a resume, bfloat16, offload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policy.learner.rank import LearnerRank
from rl.config.run import Config
from tests.integration.ranks import ask, close, open_ranks
from tests.integration.test_learner import make_batch, make_config
from tests.qwen3_tiny import tiny_qwen3

ZERO3 = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


class RankWithMoments(LearnerRank):
    """A rank that shows AdamW's state as DeepSpeed itself puts it together."""

    def moments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """By parameter: float32 weight and both moments, whole."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        zero = self._engine.optimizer
        # DeepSpeed links the moments to the parameters in the first step after a load.
        link = getattr(zero, "_lazy_init_hp_params_optimizer_state", lambda: None)
        link()
        found = {}
        for name, parameter in self._engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if self._config.policy.effective_zero_stage == 0:
                state = zero.state[parameter]
                whole = [parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]
            else:
                keys = ("exp_avg", "exp_avg_sq")
                whole = [safe_get_full_fp32_param(parameter)]
                whole += [safe_get_full_optimizer_state(parameter, key) for key in keys]
            found[name] = tuple(tensor.clone().view(-1) for tensor in whole)
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._weights}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    # Of odd sizes, which two ranks cannot share without padding.
    tiny_qwen3(65, hidden_size=33, intermediate_size=65).save_pretrained(directory)
    return directory


def config_of(ranks: int, stage: int, dtype: str = "float32", **policy: object) -> Config:
    return make_config(ranks=ranks, zero_stage=stage, dtype=dtype, **policy)


def batch(step: int):
    return make_batch(step, num_samples=6)


FLOAT32 = [(2, 3), (1, 2), (2, 0), (1, 3)]
"""Of ranks and stages: each kind of state is read by the next kind, on another number of ranks."""
THE_OTHER_WAY = [(1, 3), (2, 2), (1, 0), (2, 3)]
BFLOAT16 = [(2, 3), (1, 1), (2, 2), (1, 3)]


@pytest.mark.parametrize(
    ("dtype", "layouts"),
    [
        ("float32", FLOAT32),
        pytest.param("float32", THE_OTHER_WAY, marks=pytest.mark.slow),
        ("bfloat16", BFLOAT16),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_weights_and_moments(
    model_dir: Path, tmp_path: Path, dtype: str, layouts: list[tuple[int, int]]
):
    """Handed on from layout to layout, each of which takes a step more than the one before it."""
    saved: Path | None = None
    before: list = []
    for turn, layout in enumerate(layouts, start=1):
        ranks = open_ranks(config_of(*layout, dtype), model_dir, RankWithMoments)
        if saved is not None:
            ask(ranks, "load", saved)
            for found in ask(ranks, "moments"):
                assert found.keys() == before[0].keys()
                for name, tensors in found.items():
                    for got, expected in zip(tensors, before[0][name], strict=True):
                        assert torch.equal(got, expected), (turn, name)
            for found in ask(ranks, "weights"):
                assert all(torch.equal(found[name], before[1][name]) for name in before[1])
        ask(ranks, "update", batch(turn))
        saved = tmp_path / f"{turn}"
        saved.mkdir()
        ask(ranks, "save", saved)
        before = [ask(ranks, "moments")[0], ask(ranks, "weights")[0]]
        assert all(tensor.abs().max() > 0 for tensors in before[0].values() for tensor in tensors)
        close(ranks)

    # One rank that took all the steps without a break, against the last one.
    (rank,) = open_ranks(
        config_of(1, 0 if dtype == "float32" else 1, dtype), model_dir, RankWithMoments
    )
    for turn in range(1, len(layouts) + 1):
        ask([rank], "update", batch(turn))
    (straight,) = ask([rank], "moments")
    close([rank])
    for name, tensors in straight.items():
        for got, expected in zip(before[0][name], tensors, strict=True):
            difference = (got - expected).abs()
            # AdamW makes a whole step of a tiny gradient, the sign of which bfloat16 may decide.
            off = difference.max() / 1e-4 if dtype == "float32" else difference.mean() / 2e-3
            assert off < 1, name


def test_an_incomplete_checkpoint_of_other_ranks_is_refused_by_words(
    model_dir: Path, tmp_path: Path
):
    ranks = open_ranks(config_of(2, 2), model_dir, RankWithMoments)
    ask(ranks, "update", batch(1))
    ask(ranks, "save", tmp_path)
    close(ranks)
    (lost,) = tmp_path.rglob("zero_pp_rank_1_mp_rank_00_optim_states.pt")
    lost.unlink()
    (rank,) = open_ranks(config_of(1, 0), model_dir, RankWithMoments)
    with pytest.raises(ValueError, match="does not hold the optimizer's state of every rank"):
        ask([rank], "load", tmp_path)
    close([rank])


def weights_after_updates(config: Config, model_dir: Path) -> dict[str, torch.Tensor]:
    ranks = open_ranks(config, model_dir, RankWithMoments)
    for step in (1, 2, 3):
        ask(ranks, "update", batch(step))
    found = ask(ranks, "moments")[0]
    close(ranks)
    return {name: tensors[0] for name, tensors in found.items()}


def test_zero3_in_bfloat16_learns_the_same_on_two_ranks_as_on_one(model_dir: Path):
    one, two = (
        weights_after_updates(config_of(ranks, 3, "bfloat16", deepspeed=ZERO3), model_dir)
        for ranks in (1, 2)
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Three steps of 1e-2; gradients are rounded to 8 bits, and summed in another order.
        assert (two[name] - tensor).abs().mean() < 2e-3, name


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_on_the_cpu_takes_the_same_steps(model_dir: Path, stage: int):
    settings = {"zero_optimization": {**(ZERO3["zero_optimization"] if stage == 3 else {})}}
    here = weights_after_updates(config_of(2, stage, deepspeed=settings), model_dir)
    settings["zero_optimization"] |= OFFLOAD
    there = weights_after_updates(config_of(2, stage, deepspeed=settings), model_dir)
    for name, tensor in here.items():
        assert (there[name] - tensor).abs().max() < 1e-5, name
