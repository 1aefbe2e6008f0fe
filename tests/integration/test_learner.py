"""The learner on real DeepSpeed, and on Ray, against plain PyTorch on the whole batch."""

import asyncio
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from peft import PeftModel
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policy.learner.learner import RayLearner
from policy.learner.learning_rate import learning_rate_at
from policy.learner.rank import load_trained
from policy.weights.engine_client import EngineClient
from rl.config.run import Config
from rl.loop.stages import TrainBatch, TrainSample, Trajectory
from rl.system.cluster import Cluster
from rl.system.placement import place
from tests.integration.ranks import DEADLINE_S, ONE_MICRO_BATCH, Rank, ask, close, open_ranks
from tests.qwen3_tiny import tiny_qwen3

VOCABULARY = 64


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_qwen3(VOCABULARY).save_pretrained(directory)
    return directory


def make_config(**policy: object) -> Config:
    algorithm = {"aggregation": "sequence", **policy.pop("algorithm", {})}
    return Config.model_validate(
        {
            "run": "unused",
            "steps": 10,
            "modes": {"short": {"share": 1.0, "thinking": False, "max_tokens": 16}},
            "data": {"kind": "chain_sum"},
            "rollout": {"max_model_length": 64, "prompts_per_step": 8},
            "algorithm": algorithm,
            "policy": {
                "logprob_chunk_tokens": 16,
                "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5},
                # Tiny parameters would otherwise stay whole on every rank under ZeRO-3.
                "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
                if policy.get("zero_stage") == 3
                else {},
                **policy,
            },
        }
    )


def make_batch(step: int = 1, num_samples: int = 7) -> TrainBatch:
    rng = np.random.default_rng(step)
    samples = []
    for _ in range(num_samples):
        length, prompt = int(rng.integers(8, 25)), int(rng.integers(1, 6))
        mask = np.arange(length) >= prompt
        logprobs = np.where(mask, rng.normal(-4, 1, length), 0).astype(np.float32)
        trajectory = Trajectory(
            token_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
            loss_mask=mask,
            rollout_logprobs=logprobs,
            versions=(0, 0),
            finish_reason="stop",
            text="",
            reasoning=None,
            answer=None,
        )
        samples.append(TrainSample(trajectory, float(rng.normal()), temperature=0.8))
    return TrainBatch(step, tuple(samples))


def plain_logprobs(model: torch.nn.Module, sample: TrainSample) -> torch.Tensor:
    """Log-probabilities of a sample's loss tokens from the full logits."""
    ids = torch.tensor(sample.trajectory.token_ids, dtype=torch.int64)
    table = torch.log_softmax(model(input_ids=ids[None]).logits[0] / sample.temperature, dim=-1)
    mask = torch.tensor(sample.trajectory.loss_mask)
    return table[:-1].gather(1, ids[1:, None])[:, 0][mask[1:]]


def plain_loss(
    model: torch.nn.Module, samples: tuple[TrainSample, ...], old: list[torch.Tensor] | None
) -> torch.Tensor:
    """The clipped objective, sample by sample, mean over sequences of token means."""
    loss = torch.zeros(())
    for index, sample in enumerate(samples):
        logprobs = plain_logprobs(model, sample)
        before = logprobs.detach() if old is None else old[index]
        rollout = torch.tensor(sample.trajectory.rollout_logprobs[sample.trajectory.loss_mask])
        weight = (before - rollout).exp().clamp(max=2.0)
        ratio = (logprobs - before).exp()
        gain = torch.minimum(ratio * sample.advantage, ratio.clamp(0.8, 1.27) * sample.advantage)
        loss = loss - (weight * gain).mean() / len(samples)
    return loss


def to_rank_name(name: str) -> str:
    return name.replace("model.", "backbone.", 1) if name[0] == "m" else f"head.{name}"


@pytest.fixture(scope="module")
def reference_gradients(model_dir: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    plain_loss(model, make_batch().samples, None).backward()
    return {to_rank_name(name): p.grad for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def zero3_pair(model_dir: Path) -> Iterator[list[Rank]]:
    """Two ranks under ZeRO-3, started once: most of a test's time is the start of its ranks."""
    config = make_config(ranks=2, zero_stage=3, gradient_checkpointing=True)
    ranks = open_ranks(config, model_dir)
    yield ranks
    close(ranks)


@pytest.mark.parametrize(
    ("num_ranks", "stage", "settings"),
    [
        (1, 0, {}),
        (2, 0, {}),
        (1, 3, {}),
        # On CPU the kernel is TRL's own PyTorch form of it.
        (2, 3, {"logprobs": "fused", "gradient_checkpointing": 2}),
        (1, 2, {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}),
    ],
    ids=["one", "two", "one zero3", "two zero3 fused", "offload"],
)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(
    num_ranks: int,
    stage: int,
    settings: dict,
    model_dir: Path,
    reference_gradients: dict[str, torch.Tensor],
):
    ranks = open_ranks(make_config(ranks=num_ranks, zero_stage=stage, **settings), model_dir)
    check_gradients(ranks, reference_gradients)
    close(ranks)


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(2, 0), pytest.param(4, 3, marks=pytest.mark.slow)]
)
def test_ranks_that_share_sequences_compute_what_one_process_does(
    num_ranks: int, stage: int, model_dir: Path, reference_gradients: dict[str, torch.Tensor]
):
    """Ulysses over pairs of ranks; four are two pairs, which have other rows."""
    config = make_config(
        ranks=num_ranks, zero_stage=stage, sequence_parallel=2, gradient_checkpointing=True
    )
    ranks = open_ranks(config, model_dir)
    check_gradients(ranks, reference_gradients)
    results = ask(ranks, "update", make_batch())
    close(ranks)
    for first, second in zip(results[::2], results[1::2], strict=True):
        assert first.sums == second.sums
        assert first.mismatches == second.mismatches
    found = {index: value for result in results for index, value in result.mismatches.items()}
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for index, sample in enumerate(make_batch().samples):
        rollout = torch.tensor(sample.trajectory.rollout_logprobs[sample.trajectory.loss_mask])
        expected = (plain_logprobs(model, sample) - rollout).mean().item()
        assert found[index] == pytest.approx(expected, abs=1e-4)


def test_the_gradient_is_the_same_on_two_zero3_ranks(
    zero3_pair: list[Rank], reference_gradients: dict[str, torch.Tensor]
):
    check_gradients(zero3_pair, reference_gradients)


def check_gradients(ranks: list[Rank], reference_gradients: dict[str, torch.Tensor]) -> None:
    """Every rank holds the reference gradient, forwarding the batch at once or in parts."""
    for micro_batch_tokens in (ONE_MICRO_BATCH, 30):
        for gradients in ask(ranks, "gradients", make_batch(), micro_batch_tokens):
            assert gradients.keys() == reference_gradients.keys()
            for name, expected in reference_gradients.items():
                assert expected.abs().max() > 1e-3, name
                assert (gradients[name] - expected).abs().max() < 1e-5, name


def test_two_updates_per_batch_equal_a_hand_written_loop(model_dir: Path):
    config = make_config(algorithm={"updates_per_batch": 2}, zero_stage=1)
    optimizer_config = config.policy.optimizer
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    samples = make_batch().samples
    with torch.no_grad():
        old = [plain_logprobs(model, sample) for sample in samples]
    norms = []
    for start, end in [(0, 3), (3, 7)]:
        optimizer.zero_grad()
        plain_loss(model, samples[start:end], old[start:end]).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
    assert learning_rate_at(optimizer_config, 1, config.steps) == 1e-2

    ranks = open_ranks(config, model_dir)
    (result,) = ask(ranks, "update", make_batch())
    (weights,) = ask(ranks, "weights")
    close(ranks)
    assert result.num_updates == 2
    for index, sample in enumerate(samples):
        rollout = torch.tensor(sample.trajectory.rollout_logprobs[sample.trajectory.loss_mask])
        expected = (old[index] - rollout).mean().item()
        assert result.mismatches[index] == pytest.approx(expected, abs=1e-4)
    assert result.grad_norm == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert min(norms) > 0.5, "the clip must be at work"
    for name, expected in model.named_parameters():
        assert (weights[name] - expected).abs().max() < 1e-4, name


@pytest.mark.parametrize(
    ("dtype", "stage", "num_ranks"),
    [("float32", 0, 2), ("float32", 1, 1), ("float32", 3, 2), ("bfloat16", 1, 1)],
)
def test_a_step_that_went_wrong_is_taken_by_no_rank_and_leaves_no_trace(
    model_dir: Path, tmp_path: Path, dtype: str, stage: int, num_ranks: int
):
    """Neither in the weights nor in the moments, by which the next step goes."""
    ranks = open_ranks(make_config(dtype=dtype, zero_stage=stage, ranks=num_ranks), model_dir)
    ask(ranks, "update", make_batch(1))
    ask(ranks, "save", tmp_path)
    (before, *_) = ask(ranks, "weights")
    ask(ranks, "update", make_batch(3))
    (straight, *_) = ask(ranks, "weights")
    ask(ranks, "load", tmp_path)
    batch = make_batch(2)
    (first, *rest) = batch.samples
    broken = TrainBatch(2, (dataclasses.replace(first, advantage=math.nan), *rest))
    for given, limits, why in (
        (broken, {}, "loss nan"),
        (batch, {"grad_norm": 1e-3}, "gradient norm"),
        (batch, {"mismatch_kl": 1e-6}, "mismatch KL"),
    ):
        results = ask(ranks, "update_within", given, limits)
        assert len({result.skipped for result in results}) == 1
        assert why in results[0].skipped
        (after, *_) = ask(ranks, "weights")
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), why
    assert ask(ranks, "update", make_batch(3))[0].skipped is None
    (resumed, *_) = ask(ranks, "weights")
    close(ranks)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_gspo_without_truncated_answers_equals_a_hand_written_loop(model_dir: Path):
    """The second update is left with nothing, and takes a step of momentum alone."""
    algorithm = {"loss": "gspo", "updates_per_batch": 2, "mask_truncated": True}
    optimizer_config = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 100.0}
    config = make_config(algorithm=algorithm, optimizer=optimizer_config, micro_batch_tokens=30)
    truncated = {1, 3, 4, 5, 6}
    samples = tuple(
        dataclasses.replace(
            sample,
            trajectory=dataclasses.replace(
                sample.trajectory, finish_reason="length" if index in truncated else "stop"
            ),
        )
        for index, sample in enumerate(make_batch().samples)
    )
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    # At a ratio of 1 the gradient is that of the mean over the sequence, as its weight is.
    for sample in (samples[0], samples[2]):
        logprobs = plain_logprobs(model, sample)
        rollout = torch.tensor(sample.trajectory.rollout_logprobs[sample.trajectory.loss_mask])
        weight = (logprobs.detach() - rollout).exp().clamp(max=2.0)
        # Three sequences are in the update, of which one is truncated.
        (-weight.mean() * sample.advantage * logprobs.mean() / 3).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad.zero_()
    optimizer.step()

    ranks = open_ranks(config, model_dir)
    (result,) = ask(ranks, "update", TrainBatch(1, samples))
    (weights,) = ask(ranks, "weights")
    close(ranks)
    assert result.mismatches.keys() == {0, 2}
    assert result.grad_norm == pytest.approx(norm / 2, rel=1e-4)
    for name, expected in model.named_parameters():
        # AdamW's first step is as large where a gradient is next to nothing, and all rounding.
        is_known = gradients[name].abs() > 1e-5
        assert is_known.any(), name
        assert (weights[name] - expected)[is_known].abs().max() < 1e-4, name


def test_lora_trains_and_its_merged_weights_are_those_of_peft(model_dir: Path, tmp_path: Path):
    lora = {"rank": 4, "alpha": 8}
    ranks = open_ranks(make_config(lora=lora, zero_stage=3), model_dir)
    for step in (1, 2):
        ask(ranks, "update", make_batch(step))
    (weights,) = ask(ranks, "weights")
    (expected,) = ask(ranks, "merged_by_peft")
    ask(ranks, "save", tmp_path)
    close(ranks)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    stored = load_file(model_dir / "model.safetensors")
    assert weights.keys() == expected.keys() == stored.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
        is_adapted = "_proj" in name
        assert ((tensor - stored[name]).abs().max() > 1e-3) == is_adapted, name


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_keeps_float32_master_weights(model_dir: Path, stage: int):
    """Steps of 1e-4 on weights near 0.3 round to nothing in bfloat16, one by one, but add up."""
    optimizer = {"learning_rate": 1e-4, "weight_decay": 0.0}
    ranks = open_ranks(
        make_config(dtype="bfloat16", zero_stage=stage, optimizer=optimizer), model_dir
    )
    (before,) = ask(ranks, "weights")
    for _ in range(20):
        ask(ranks, "update", make_batch())
    (after,) = ask(ranks, "weights")
    close(ranks)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.down_proj.weight"
    large = before[name].abs() > 0.26
    moved = (after[name] - before[name])[large].abs()
    assert (moved > 0).float().mean() > 0.5


def open_cluster_for(config: Config) -> Cluster:
    placement = place(config)
    return Cluster(placement, placement_group([b.resources for b in placement.bundles]))


async def resume_and_lose_a_rank(config: Config, model_dir: Path, first: Path, end: Path) -> None:
    """Continue from `first` with the batch of step 2, save to `end`, then lose rank 1."""
    cluster = open_cluster_for(config)
    learner = RayLearner(config, model_dir, cluster)
    await learner.start()
    await learner.load(first)
    update = await learner.update(make_batch(2))
    assert all(math.isfinite(mismatch) for mismatch in update.mismatches)
    metrics = update.metrics
    assert metrics["optim/learning_rate"] == 1e-2
    assert metrics["policy/grad_norm"] > 0.5
    assert 0 < metrics["policy/entropy"] < np.log(VOCABULARY)
    assert metrics["rollout/mismatch_kl"] > 0
    assert metrics["perf/learner_tokens_per_second"] > 0
    await learner.save(end)
    ray.kill(learner.ranks[1])
    with pytest.raises(RuntimeError, match="learner rank 1 died in update"):
        await learner.update(make_batch(3))
    await learner.close()
    remove_placement_group(cluster.group)


@pytest.mark.usefixtures("local_ray")
def test_a_resumed_learner_continues_bit_for_bit(
    zero3_pair: list[Rank], model_dir: Path, tmp_path: Path
):
    first, straight, resumed = (tmp_path / name for name in ("first", "straight", "resumed"))
    for directory in (first, straight, resumed):
        directory.mkdir()
    ask(zero3_pair, "update", make_batch(1))
    ask(zero3_pair, "save", first)
    ask(zero3_pair, "update", make_batch(2))
    ask(zero3_pair, "save", straight)
    config = make_config(ranks=2, zero_stage=3, gradient_checkpointing=True)
    asyncio.run(resume_and_lose_a_rank(config, model_dir, first, resumed))

    before, expected, got = (
        load_file(directory / "model" / "model.safetensors")
        for directory in (first, straight, resumed)
    )
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
        assert not torch.equal(tensor, before[name]), name
    served = AutoModelForCausalLM.from_pretrained(straight / "model")
    assert torch.equal(served.lm_head.weight, expected["lm_head.weight"])


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("bfloat16", 3)])
def test_an_adapter_resumes_bit_for_bit_from_a_checkpoint_without_its_base(
    model_dir: Path, tmp_path: Path, dtype: str, stage: int
):
    config = make_config(lora={"rank": 4, "alpha": 8}, dtype=dtype, zero_stage=stage)
    ranks = open_ranks(config, model_dir)
    ask(ranks, "update", make_batch(1))
    ask(ranks, "save", tmp_path)
    ask(ranks, "update", make_batch(2))
    (straight,) = ask(ranks, "weights")
    close(ranks)
    states = [torch.load(path, weights_only=False) for path in tmp_path.rglob("*model_states.pt")]
    assert all("lora_" in name for state in states for name in state["module"])
    assert not any(state.get("frozen_param_fragments") for state in states)

    ranks = open_ranks(config, model_dir)
    ask(ranks, "load", tmp_path)
    (first,) = ask(ranks, "weights")
    ask(ranks, "update", make_batch(2))
    (resumed,) = ask(ranks, "weights")
    close(ranks)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())
    assert any(not torch.equal(first[name], tensor) for name, tensor in straight.items())


def test_a_checkpoint_that_lacks_a_trained_weight_is_no_checkpoint():
    model = torch.nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    weights = {"weight": torch.ones(3, 2)}
    load_trained(weights, model)
    assert torch.equal(model.weight, weights["weight"])
    with pytest.raises(RuntimeError, match=r"\['weight'\] are only on one side"):
        load_trained({}, model)
    with pytest.raises(RuntimeError, match=r"\['other'\] are only on one side"):
        load_trained(weights | {"other": torch.ones(1)}, model)


@ray.remote(num_cpus=0)
class RecordingWorker:
    """Stands where a rollout worker stands in a publish, and keeps what it is told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._init_info: dict[str, object] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, object]) -> None:
        self._init_info = init_info

    def start_weight_update(self) -> None:
        time.sleep(self._seconds)

    def told(self) -> dict[str, object]:
        return self._init_info


@pytest.mark.usefixtures("local_ray")
def test_every_vllm_process_of_every_engine_gets_an_nccl_rank_of_its_own() -> None:
    workers = [RecordingWorker.remote() for _ in range(3)]
    EngineClient(workers, 30, processes_per_worker=2).init_weight_transfer_engine(
        {"rank_offset": 1, "world_size": 7}
    )
    told = ray.get([worker.told.remote() for worker in workers])
    assert [info["rank_offset"] for info in told] == [1, 3, 5]


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_does_not_answer_a_publish_is_named_in_time() -> None:
    workers = [RecordingWorker.remote(), RecordingWorker.remote(seconds=600)]
    ray.get([worker.__ray_ready__.remote() for worker in workers], timeout=DEADLINE_S)
    client = EngineClient(workers, deadline_s=6, processes_per_worker=1)
    with pytest.raises(TimeoutError, match=r"rollout workers \[1\] did not finish start_weight"):
        client.start_weight_update()
