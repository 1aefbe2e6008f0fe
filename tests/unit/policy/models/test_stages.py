"""Training in stages: what learns, what stays, and when a stage is over."""

import pytest
import torch
from torch import Tensor, nn

from policy.models.stages import Stage, let_learn, train_stage
from tests.minicpmv_tiny import tiny_model

IDS = torch.tensor([[7, 8, 9]])
BRIEF = Stage("brief", ("resampler",), 2, 6, 1e-2, round_steps=2)


def loss_of(model: nn.Module, head: nn.Module | None = None) -> Tensor:
    """Of every part: the decoder reads, and the resampler shows it a grey patch."""
    tokens = model.backbone().see(torch.full((1, 3, 14, 14), 0.5), [(1, 1)], [(-1,)])
    seen = tokens.square().mean() + (head(tokens).square().mean() if head else 0)
    return seen + model(input_ids=IDS).logits.square().mean()


def test_the_parts_of_a_stage_learn_and_the_others_stay():
    model = tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    report = train_stage(model, BRIEF, lambda _: loss_of(model), lambda: ({"right": 1.0}, True))
    changed = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    assert changed
    assert all(name.startswith("resampler.") for name in changed)
    assert (report["steps"], report["right"], report["is_ready"]) == (2, 1.0, True)
    # A later stage may train again what this one left.
    train_stage(
        model,
        Stage("all", ("llm", "vision", "resampler"), 1, 1, 1e-2),
        lambda _: loss_of(model),
        lambda: ({}, True),
    )
    assert not torch.equal(model.llm.lm_head.weight, before["llm.lm_head.weight"])


def test_a_head_learns_with_the_parts():
    model, head = tiny_model(), nn.Linear(256, 3)
    before = head.weight.detach().clone()
    train_stage(model, BRIEF, lambda _: loss_of(model, head), lambda: ({}, True), head=head)
    assert not torch.equal(head.weight, before)


def test_a_stage_goes_on_in_rounds_until_it_is_enough_or_out_of_steps():
    model, asked, heard = tiny_model(), [], []

    def loss(first: int) -> Tensor:
        asked.append(first)
        return loss_of(model)

    verdicts = iter([False, True])
    report = train_stage(
        model, BRIEF, loss, lambda: ({}, next(verdicts)), lambda step, _: heard.append(step)
    )
    assert (report["steps"], report["is_ready"]) == (4, True)
    assert heard == [1, 2, 3, 4]
    assert asked == [0, 64, 128, 192]
    report = train_stage(model, BRIEF, loss, lambda: ({}, False))
    assert (report["steps"], report["is_ready"]) == (6, False)


def test_a_part_that_the_model_lacks_is_refused():
    stage = Stage("ears", ("audio",), 1, 1, 1e-3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage ears trains audio, and minicpmv has only llm"):
        train_stage(tiny_model(), stage, lambda _: torch.zeros(()), lambda: ({}, True))


def test_only_the_named_parts_are_let_learn():
    model = tiny_model()
    let_learn(model.parts(), ["vision"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"vpm"}
