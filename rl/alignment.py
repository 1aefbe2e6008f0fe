"""The RLAIF-V pass (https://arxiv.org/abs/2405.17220) on Ray, vLLM and DeepSpeed.

    policy -> responses -> claims -> labels -> pairs -> DPO -> gate -> checkpoint      an iteration

Each stage leaves a file (rl/alignment_directory.py); what is there is not done again, and of a
stage that was cut short only the rest is. Engines, labeller and learner run one after the other on
the same places, which stay reserved.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy.dpo import DpoPair, train_dpo
from rewards.claims import language_model, rules
from rewards.claims.label_cache import LabelCache, label_key
from rewards.claims.pairs import PairSelection, mine_pairs, select_pairs
from rewards.preference import final_answer
from rl.alignment_console import AlignmentConsole
from rl.alignment_curves import draw_alignment
from rl.alignment_directory import AlignmentDirectory, claims_path, labels_path
from rl.alignment_gate import Measurement, as_modes, refusals
from rl.alignment_stages import (
    divide,
    judge,
    listed,
    refuse_no_pairs,
    refuse_unfit_labeller,
    sample,
)
from rl.assembly import Material, System, start_system
from rl.assistants import DIVIDER_TOKENS, AssistantSource
from rl.atomic_write import write_text
from rl.claims import (
    Assistant,
    DividedResponse,
    JudgedResponse,
    PreferencePair,
    Response,
    hallucination_rates,
    read_divided,
    read_judged,
    read_pairs,
    read_responses,
    write_divided,
    write_judged,
    write_pairs,
    write_responses,
)
from rl.cluster import Cluster, open_cluster
from rl.config import Config, EvalConfig
from rl.evaluation import Sample, answered_before, evaluate, questions
from rl.evaluation_directory import open_evaluation
from rl.interfaces import GenerationFailed
from rl.journal import Journal
from rl.ledger import LedgerRow, read_rows
from rl.loop import sampling_seed
from rl.media_store import MediaStore
from rl.modes import draw_step
from rl.run_directory import RunDirectory
from rl.sinks import Sinks, read_metrics
from rl.stack_versions import stack_versions
from rl.stages import Prompt, RolloutRequest

POLL_S = 1.0
LABELLING = "question/1"
"""How a labeller is asked, which its labels depend on."""


@dataclass(frozen=True)
class Origin:
    """The policy that a pass begins with."""

    model: Path
    name: str
    identity: Mapping[str, Any]
    """What tells it from any other."""
    progress: Mapping[str, Any]
    """What its checkpoint knows of its training."""
    step: int
    """RL steps it was trained for here."""
    ledger: Path
    """Where its run kept trajectories, if it did."""


@dataclass(frozen=True)
class Parts:
    """What every iteration works with."""

    material: Material
    origin: Origin
    labeller: AssistantSource
    divider: AssistantSource | None
    """None where rules divide."""
    directory: AlignmentDirectory
    console: AlignmentConsole


async def align(parts: Parts) -> None:
    """Run the pass, or what is left of it."""
    directory = parts.directory
    numbers = range(1, parts.material.config.align.iterations + 1)
    if not all(directory.iteration(number).gate.exists() for number in numbers):
        await _iterate(parts, numbers)
    verdicts = [_verdict(directory, number) for number in numbers]
    for number, verdict in zip(numbers, verdicts, strict=True):
        parts.console.verdict(number, verdict)
    accepted = [verdict for verdict in verdicts if verdict["is_accepted"]]
    summary = {
        "origin": dict(parts.origin.identity),
        "before": verdicts[0]["before"],
        "after": accepted[-1]["after"] if accepted else verdicts[0]["before"],
        "iterations": [
            {key: verdict[key] for key in ("is_accepted", "reasons", "pairs")}
            for verdict in verdicts
        ],
        "versions": stack_versions(),
    }
    write_text(directory.summary, json.dumps(summary, indent=1) + "\n")
    parts.console.note(f"curves: {draw_alignment(directory, verdicts)}")


async def _iterate(parts: Parts, numbers: Iterable[int]) -> None:
    """Every iteration that is not over, each from the last policy that was accepted."""
    config, directory = parts.material.config, parts.directory
    cluster = open_cluster(config)
    model, num_accepted = parts.origin.model, 0
    sinks = None
    try:
        sinks = Sinks(config.log, RunDirectory(directory.root), parts.console.note)
        for number in numbers:
            if not directory.iteration(number).gate.exists():
                parts.console.note(f"iteration {number} of {config.align.iterations}")
                await _Iteration(parts, cluster, sinks, number, model, num_accepted).run()
            if _verdict(directory, number)["is_accepted"]:
                num_accepted += 1
                model = directory.checkpoints.path(number) / "model"
                # A kill right after the verdict leaves the copy that the checkpoint was made of.
                shutil.rmtree(directory.iteration(number).dpo / "model", ignore_errors=True)
    finally:
        if sinks is not None:
            sinks.close()
        cluster.close()


def _verdict(directory: AlignmentDirectory, number: int) -> dict[str, Any]:
    return json.loads(directory.iteration(number).gate.read_text(encoding="utf-8"))


class _Iteration:
    """From a policy to the one that may take its place."""

    def __init__(
        self,
        parts: Parts,
        cluster: Cluster,
        sinks: Sinks,
        number: int,
        model: Path,
        num_accepted: int,
    ) -> None:
        """number: from 1. model: the policy that answers, and the reference of DPO.

        num_accepted: iterations before it that were.
        """
        self._parts = parts
        self._config = parts.material.config
        self._align = self._config.align
        self._console = parts.console
        self._cluster = cluster
        self._sinks = sinks
        self._number = number
        self._model = model
        self._num_accepted = num_accepted
        self._files = parts.directory.iteration(number)
        self._store = MediaStore(self._config.data)

    async def run(self) -> None:
        self._files.root.mkdir(exist_ok=True)
        if self._align.mine is not None:
            # Nothing is asked where there are none.
            self._pairs()
        self._take_over_measurement()
        await self._ask_policy()
        await self._ask_assistants(self._files.before)
        pairs = self._pairs()
        aligned = await self._learn(pairs)
        await self._ask_aligned(aligned)
        await self._ask_assistants(self._files.after)
        before, after = (
            self._measurement(root) for root in (self._files.before, self._files.after)
        )
        reasons = refusals(before, after, self._align.gate)
        verdict = {
            "is_accepted": not reasons,
            "reasons": reasons,
            "pairs": len(pairs),
            "before": before.as_record(),
            "after": after.as_record(),
        }
        self._sinks.write(self._last_step, after.as_metrics())
        if not reasons:
            self._keep(aligned, verdict)
        # Last: with it the iteration is over.
        write_text(self._files.gate, json.dumps(verdict, indent=1) + "\n")

    def _take_over_measurement(self) -> None:
        """The policy was measured already, when the iteration before this one ended."""
        if self._number == 1 or self._files.before.exists():
            return
        last = self._parts.directory.iteration(self._number - 1)
        is_accepted = _verdict(self._parts.directory, self._number - 1)["is_accepted"]
        aside = self._files.root / ".before.partial"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(last.after if is_accepted else last.before, aside)
        aside.rename(self._files.before)

    # Sample

    async def _ask_policy(self) -> None:
        """Its responses to held-out prompts, for the gate, and to those that pairs come from."""
        is_sampled = self._align.mine is not None or self._files.responses.exists()
        if is_sampled and _is_evaluated(self._files.before):
            return
        async with self._engines(self._model) as system:
            await self._evaluate(system, self._files.before, "held-out responses before")
            if not is_sampled:
                await self._sample(system)

    async def _sample(self, system: System) -> None:
        requests = self._requests()
        if len(requests) < self._align.prompts:
            self._console.note(f"there are {len(requests)} of align.prompts={self._align.prompts}")
        with (
            Journal(self._files.root / "responses.jsonl") as journal,
            self._console.stage("prompts sampled", len(requests)) as advance,
        ):
            responses, failures = await sample(
                self._config,
                requests,
                system.engine,
                lambda trajectory: final_answer(trajectory.answer, trajectory.finish_reason),
                journal,
                advance,
            )
            if not responses:
                raise RuntimeError(f"no prompt was answered; failures: {dict(failures)}")
            write_responses(self._files.responses, responses)
            journal.remove()
        self._note_counts("prompts without responses", failures)

    def _requests(self) -> list[RolloutRequest]:
        """One per prompt; each prompt once, those first that RL would have asked next."""
        config, stream = self._config, self._parts.material.stream
        wanted = min(self._align.prompts, stream.num_train or self._align.prompts)
        num_steps = -(-wanted // config.rollout.prompts_per_step)
        shares = self._align.mix or {name: mode.share for name, mode in config.modes.items()}
        asked: dict[str, tuple[Prompt, str]] = {}
        step = config.steps + (self._number - 1) * num_steps
        while len(asked) < wanted:
            prompts = stream.prompts(step)
            pinned = [prompt.mode for prompt in prompts]
            modes = draw_step(config.seed, step, shares, pinned, "stratified")
            for prompt, mode in zip(prompts, modes, strict=True):
                asked.setdefault(prompt.id, (prompt, mode))
            step += 1
        return [self._request(*one) for one in list(asked.values())[:wanted]]

    def _request(self, prompt: Prompt, mode: str) -> RolloutRequest:
        group_id = f"align/{self._number}/{prompt.id}"
        return RolloutRequest(
            group_id=group_id,
            prompt=prompt,
            mode=mode,
            prompt_token_ids=self._parts.material.encode(prompt, mode),
            n=self._align.responses,
            max_tokens=self._config.modes[mode].max_tokens,
            temperature=self._align.temperature,
            top_p=self._align.top_p,
            # Always: a pass that was cut short must sample what it would have sampled.
            seed=sampling_seed(self._config.seed, group_id),
        )

    @asynccontextmanager
    async def _engines(self, model: Path) -> AsyncIterator[System]:
        """The run's engines with these weights, and its reward service."""
        material, note = self._parts.material, self._console.note
        system = await start_system(material, note, train=False, model=model, cluster=self._cluster)
        try:
            if scorer := self._parts.origin.progress.get("scorer"):
                system.scorer.load(scorer)
            yield system
        finally:
            await system.close()

    # Held-out responses

    async def _ask_aligned(self, aligned: Path) -> None:
        if _is_evaluated(self._files.after):
            return
        async with self._engines(aligned) as system:
            await self._evaluate(system, self._files.after, "held-out responses after")

    async def _evaluate(self, system: System, root: Path, name: str) -> None:
        """Leave held-out samples and their figures in `root`, unless they are there."""
        if _is_evaluated(root):
            return
        config, prompts = self._gate_config, self._heldout
        asked = questions(config, prompts)
        settings = {"eval": config.eval.model_dump(mode="json"), "prompts": len(prompts)}
        with (
            open_evaluation(root, settings) as directory,
            self._console.stage(name, len(asked)) as advance,
        ):
            known = answered_before(asked, directory.samples)
            for _ in known:
                advance()

            def keep(one: Sample) -> None:
                directory.add(one)
                advance()

            encode = self._parts.material.encode
            results = await evaluate(
                config, encode, system.engine, system.scorer, prompts, known.values(), keep
            )
            modes = {mode: dataclasses.asdict(result) for mode, result in results.items()}
            directory.write_result({"modes": modes})

    @property
    def _gate_config(self) -> Config:
        """The run's configuration with the gate's prompts in place of the evaluation's."""
        gate, asked = self._align.gate, self._config.eval
        settings = EvalConfig(
            prompts=gate.prompts,
            samples=gate.samples,
            temperature=asked.temperature,
            top_p=asked.top_p,
        )
        return self._config.model_copy(update={"eval": settings})

    @property
    def _heldout(self) -> list[Prompt]:
        return self._parts.material.stream.heldout(self._align.gate.prompts)

    def _heldout_responses(self, root: Path) -> list[Response]:
        prompts = {prompt.id: prompt for prompt in self._heldout}
        with open_evaluation(root, json.loads((root / "settings.json").read_text())) as directory:
            samples = sorted(directory.samples, key=lambda one: one.key)
        return [_response(prompts[one.prompt_id], one) for one in samples]

    def _measurement(self, root: Path) -> Measurement:
        stored = json.loads((root / "result.json").read_text(encoding="utf-8"))["modes"]
        return Measurement(as_modes(stored), hallucination_rates(read_judged(labels_path(root))))

    # Claims, questions, labels

    async def _ask_assistants(self, heldout: Path) -> None:
        """Claims and labels of the held-out responses of one policy and, with those before
        alignment, of the responses that pairs come from."""
        roots = {heldout: self._heldout_responses(heldout)}
        if heldout == self._files.before and self._align.mine is None:
            roots[self._files.root] = read_responses(self._files.responses)
        if undivided := [root for root in roots if not claims_path(root).exists()]:
            async with self._open_divider() as divider:
                for root in undivided:
                    await self._divide(root, roots[root], divider)
        if unjudged := [root for root in roots if not labels_path(root).exists()]:
            async with self._parts.labeller.open(self._first, self._cluster) as labeller:
                for root in unjudged:
                    await self._judge(root, read_divided(claims_path(root)), labeller)

    @property
    def _first(self) -> Path:
        """The policy as an assistant: always the one before the pass, so that rates compare."""
        return self._parts.origin.model

    @asynccontextmanager
    async def _open_divider(
        self,
    ) -> AsyncIterator[Callable[[Response], Awaitable[DividedResponse]]]:
        source = self._parts.divider
        if source is None:

            async def by_rules(response: Response) -> DividedResponse:
                return rules.divide(response)

            yield by_rules
            return
        async with source.open(self._first, self._cluster) as assistant:

            async def by_model(response: Response) -> DividedResponse:
                try:
                    return await language_model.divide(
                        response, lambda messages: assistant.reply(messages, DIVIDER_TOKENS)
                    )
                except GenerationFailed as failure:
                    reason = str(failure).partition(":")[0]
                    return rules.divide(response, fallback=f"claims/{reason}")

            yield by_model

    async def _divide(
        self,
        root: Path,
        responses: Sequence[Response],
        divider: Callable[[Response], Awaitable[DividedResponse]],
    ) -> None:
        with (
            Journal(root / "claims.jsonl") as journal,
            self._console.stage(f"responses divided ({root.name})", len(responses)) as advance,
        ):
            divided = await divide(self._config, responses, divider, journal, advance)
            write_divided(claims_path(root), divided)
            journal.remove()
        fallbacks = Counter(one.fallback for one in divided if one.fallback)
        self._note_counts("responses divided by rules instead", fallbacks)
        if not any(one.claims for one in divided):
            self._console.note(f"none of the {len(divided)} responses states a fact")

    async def _judge(
        self, root: Path, divided: Sequence[DividedResponse], labeller: Assistant
    ) -> None:
        num_claims = sum(len(one.claims) for one in divided)
        name = f"{labeller.name}/{LABELLING}"

        def key_of(prompt: Prompt, question: str) -> str:
            digests = [self._store.read(medium).digest for medium in prompt.media]
            return label_key(name, digests, question)

        labels = LabelCache(self._parts.directory.labels)
        with self._console.stage(f"claims judged ({root.name})", num_claims) as advance:
            judged, reasons = await judge(
                self._config, divided, labeller.label, key_of, labels, advance
            )
        self._note_counts("claims without a label", reasons)
        refuse_unfit_labeller(labeller.name, judged, reasons)
        write_judged(labels_path(root), judged)

    # Pairs and DPO

    def _pairs(self) -> list[PreferencePair]:
        path = self._files.pairs
        if not path.exists():
            selection = self._mined() if self._align.mine else self._selected()
            balance = selection.balance and dataclasses.asdict(selection.balance)
            counts = {"counts": dict(selection.counts), "balance": balance}
            write_text(self._files.pair_counts, json.dumps(counts, indent=1) + "\n")
            self._console.note(f"pairs: {listed(selection.counts)}")
            refuse_no_pairs(selection.counts)
            write_pairs(path, selection.pairs)
        return read_pairs(path)

    def _selected(self) -> PairSelection:
        judged: list[JudgedResponse] = read_judged(labels_path(self._files.root))
        return select_pairs(
            judged, self._config.seed, self._align.gap, self._align.pairs_per_prompt
        )

    def _mined(self) -> PairSelection:
        chat = self._parts.material.chat

        def encode(row: LedgerRow) -> tuple[int, ...]:
            return chat.response_token_ids(row.text, is_ended=row.finish_reason == "stop")

        assert self._align.mine is not None
        return mine_pairs(
            self._ledger_rows(),
            encode,
            self._config.seed,
            self._align.gap,
            self._align.mine,
            self._align.pairs_per_prompt,
        )

    def _ledger_rows(self) -> list[LedgerRow]:
        """Of the newest steps of the policy, as many groups as an iteration asks prompts."""
        rows: list[LedgerRow] = []
        for path in sorted(self._parts.origin.ledger.glob("step_*.parquet"), reverse=True):
            if int(path.stem.removeprefix("step_")) > self._parts.origin.step:
                continue
            rows += read_rows(path)
            if len({row.group_id for row in rows}) >= self._align.prompts:
                break
        return rows

    async def _learn(self, pairs: Sequence[PreferencePair]) -> Path:
        """The directory of the aligned policy."""
        encode = self._parts.material.encode
        listed = [
            DpoPair(
                id=pair.id,
                prompt_token_ids=encode(pair.prompt, pair.mode),
                media=pair.prompt.media,
                chosen_token_ids=pair.chosen.response.token_ids,
                rejected_token_ids=pair.rejected.response.token_ids,
            )
            for pair in pairs
        ]
        dpo, target = self._align.dpo, self._files.dpo
        learning = asyncio.create_task(
            asyncio.to_thread(
                train_dpo, self._config, dpo, self._model, listed, target, self._cluster
            )
        )
        with self._console.stage(f"DPO steps on {len(pairs):,} pairs", dpo.steps) as advance:
            shown, done = 0, set()
            while not done:
                done, _ = await asyncio.wait([learning], timeout=POLL_S)
                shown = self._pass_on(shown, advance)
        return learning.result()

    def _pass_on(self, shown: int, advance: Callable[[], None]) -> int:
        """Show and log the steps that DPO has made since step `shown`; return the last one."""
        logged = max(read_metrics(self._parts.directory.metrics), default=0)
        first = (self._number - 1) * self._align.dpo.steps
        steps = read_metrics(self._files.dpo / "metrics.jsonl")
        for step in range(shown + 1, max(steps, default=0) + 1):
            advance()
            # An earlier process may have logged it before it was killed.
            if first + step > logged:
                self._sinks.write(first + step, steps[step])
        return max(steps, default=0)

    # Gate

    def _keep(self, aligned: Path, verdict: Mapping[str, Any]) -> None:
        origin = self._parts.origin
        alignment = {
            **verdict,
            "accepted": self._num_accepted + 1,
            "origin": dict(origin.identity),
            "asked": self._gate_config.eval.model_dump(mode="json"),
        }
        progress = {**origin.progress, "align": alignment}
        checkpoints = self._parts.directory.checkpoints
        with checkpoints.writer(self._number, progress, self._align.iterations) as path:
            shutil.copytree(aligned, path / "model")

    @property
    def _last_step(self) -> int:
        return self._number * self._align.dpo.steps

    def _note_counts(self, what: str, counts: Counter[Any]) -> None:
        if counts:
            self._console.note(f"{what}: {listed(counts)}")


def _response(prompt: Prompt, one: Sample) -> Response:
    """A held-out sample as a response; it is judged and not trained on, so it has no tokens."""
    assert one.text is not None, "an open evaluation holds what was answered"
    answer = final_answer(one.answer, one.finish_reason)
    return Response(prompt, one.mode, one.sample, (), one.text, answer)


def _is_evaluated(root: Path) -> bool:
    return (root / "result.json").exists()
