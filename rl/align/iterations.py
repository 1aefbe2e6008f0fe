"""A pass from start to end: its iterations, what the gate decides of each, and what is kept.

    policy -> sample -> judge -> pair -> learn -> sample, judge -> measure, refusals   an iteration

A stage whose file is there is not done again, and what models answer one by one is kept as it
comes. So, killed at any moment, the same command does only what is missing.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from policy.dpo import DpoPair, train_dpo
from rewards.preference.preference import final_answer
from rl.align.assistants import Assistants, check_assistants
from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import DividedResponse, JudgedResponse, PreferencePair, Response
from rl.align.directory import CLAIMS, LABELS, AlignmentDirectory, IterationFiles, Origin
from rl.align.gate import (
    Measurement,
    as_measurement,
    gate_config,
    hallucination_rates,
    refusals,
)
from rl.align.judging import divide, judge, refuse_unfit_labeller
from rl.align.pairing import mine_pairs, newest_rows, refuse_no_pairs, select_pairs
from rl.align.report import AlignmentConsole, draw_alignment, listed
from rl.align.sampling import sample, sampling_requests
from rl.assembly import RunInputs, SamplingServices, gather_inputs, open_engines
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.store import MediaStore
from rl.evaluate.directory import open_evaluation
from rl.evaluate.evaluation import Sample, answered_before, evaluate, questions
from rl.run.checkpoints import MANIFEST, Checkpoint
from rl.run.directory import NEEDED_BYTES, RunDirectory
from rl.run.files import stack_versions, write_text
from rl.run.jsonl import Journal, read_records
from rl.run.ledger import LedgerRow
from rl.run.sinks import Sinks, read_metrics
from rl.system.cluster import Cluster, open_cluster
from rl.system.memory_estimate import checkpoint_bytes

# Two checkpoints of DPO, the result and its copy in checkpoints/, in sizes of a checkpoint.
COPIES = 4
# What a checkpoint would know of a training that did not take place here.
UNTRAINED = {"progress": {"trained_tokens": {}}, "before": {}}


async def run_pass(
    config: Config, run: RunDirectory, checkpoint: Checkpoint | None, console: AlignmentConsole
) -> None:
    """Run the pass, or what is left of it, in the directory of a run.

    checkpoint: of the run; None aligns `policy.model`. Raises ValueError as run_alignment does.
    """
    directory = AlignmentDirectory(run.root)
    # The pass is a run of its own, in a directory within the run's. It asks for no rewards but
    # accuracy, and a preference model would take memory from it.
    config = config.without_preference().model_copy(update={"run": str(directory.root)})
    inputs = gather_inputs(config)
    for note in inputs.notes:
        console.note(note)
    if checkpoint is None:
        name, step, progress = config.policy.model, 0, UNTRAINED
        model, identity = inputs.model, {"model": name, "weights": stamp_of_model(inputs.model)}
    else:
        name, step, progress = str(checkpoint.path), checkpoint.step, checkpoint.progress
        # The manifest has the digest of every file of the checkpoint.
        manifest = (checkpoint.path / MANIFEST).read_text(encoding="utf-8")
        model, identity = checkpoint.path / "model", {"step": step, "weights": stamp(manifest)}
    origin = Origin(model, identity, progress, step, run.ledger_path)
    assistants = await check_assistants(config, origin.model)
    with directory.open_pass(config, origin.identity):
        size = checkpoint_bytes(str(inputs.model), config.policy)
        run.check_room(NEEDED_BYTES + COPIES * size)
        console.note(f"aligning {name}; all of it is left in {directory.root}")
        numbers = range(1, config.align.iterations + 1)
        if not all(directory.iteration(number).gate.exists() for number in numbers):
            # One for the whole pass: engines, labeller and learner take turns on the places that it
            # reserves, which no other job can take in between.
            with (
                closing(open_cluster(config)) as cluster,
                closing(Sinks(config.log, directory, console.note)) as sinks,
            ):
                stages = Stages(inputs, origin, assistants, directory, console, cluster, sinks)
                for number in numbers:
                    files = directory.iteration(number)
                    if not files.gate.exists():
                        console.note(f"iteration {number} of {config.align.iterations}")
                        await stages.iterate(number)
                    if files.verdict()["is_accepted"]:
                        # The checkpoint has a copy. Removed here and not right after the verdict,
                        # because a kill between the two would leave it for good.
                        shutil.rmtree(files.dpo / "model", ignore_errors=True)
        verdicts = [directory.iteration(number).verdict() for number in numbers]
        for number, verdict in zip(numbers, verdicts, strict=True):
            console.verdict(number, verdict)
        accepted = [verdict for verdict in verdicts if verdict["is_accepted"]]
        kept = ("is_accepted", "reasons", "pairs")
        summary = {
            "origin": dict(origin.identity),
            "before": verdicts[0]["before"],
            "after": accepted[-1]["after"] if accepted else verdicts[0]["before"],
            "iterations": [{key: verdict[key] for key in kept} for verdict in verdicts],
            "versions": stack_versions(),
        }
        write_text(directory.summary_path, json.dumps(summary, indent=1) + "\n")
        console.note(f"curves: {draw_alignment(directory, verdicts)}")


@dataclass(frozen=True)
class Stages:
    """The stages of an open pass. Each leaves what it makes in a file, unless it is there."""

    inputs: RunInputs
    origin: Origin
    assistants: Assistants
    directory: AlignmentDirectory
    console: AlignmentConsole
    cluster: Cluster
    sinks: Sinks

    async def iterate(self, number: int) -> None:
        """Go from the policy that was accepted last to the verdict on the next one."""
        directory, align = self.directory, self.inputs.config.align
        files = directory.iteration(number)
        files.root.mkdir(exist_ok=True)
        # What came before is read from the disk and not remembered: a resumed pass sees the same.
        accepted = [n for n in range(1, number) if directory.iteration(n).verdict()["is_accepted"]]
        checkpoints = directory.checkpoints
        policy = checkpoints.path(accepted[-1]) / "model" if accepted else self.origin.model
        if number > 1 and not files.before.exists():
            # The iteration that gave the policy measured it last. A copy that was cut short must
            # not pass for a whole one, so it gets its name at the end.
            last, aside = directory.iteration(number - 1), files.root / ".before.partial"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(last.after if last.verdict()["is_accepted"] else last.before, aside)
            aside.rename(files.before)
        # One start of the engines serves the held-out and the training prompts, and one start of
        # the assistants the responses to both, because an engine takes minutes to start.
        if align.mine is None:
            await self.sample(number, policy, files.before, with_training=True)
            await self.judge(files.before, files.root)
            pairs = self.pair(files)
        else:
            # Pairs first: they need no model, so a ledger without any is refused before one starts.
            pairs = self.pair(files)
            await self.sample(number, policy, files.before)
            await self.judge(files.before)
        aligned = await self.learn(number, policy, pairs)
        await self.sample(number, aligned, files.after)
        await self.judge(files.after)
        before, after = self.measure(files.before), self.measure(files.after)
        self.sinks.write(number * align.dpo.steps, after.as_metrics())
        reasons = refusals(before, after, align.gate)
        verdict = {
            "is_accepted": not reasons,
            "reasons": reasons,
            "pairs": len(pairs),
            "before": asdict(before),
            "after": asdict(after),
        }
        if not reasons:
            gate = gate_config(self.inputs.config).eval.model_dump(mode="json")
            origin = dict(self.origin.identity)
            told = {"accepted": len(accepted) + 1, "origin": origin, "asked": gate}
            progress = {**self.origin.progress, "align": verdict | told}
            with checkpoints.writer(number, progress, align.iterations) as path:
                shutil.copytree(aligned, path / "model")
        # Last, because an iteration that has a verdict is over.
        write_text(files.gate, json.dumps(verdict, indent=1) + "\n")

    async def sample(
        self, number: int, policy: Path, heldout: Path, with_training: bool = False
    ) -> None:
        """Leave a policy's answers to the held-out prompts, scored, in the directory `heldout`.

        with_training: have it answer the training prompts of the iteration too.
        """
        inputs, console, files = self.inputs, self.console, self.directory.iteration(number)
        needs_heldout = not (heldout / "result.json").exists()
        needs_training = with_training and not files.responses.exists()
        if not needs_heldout and not needs_training:
            return
        scorer = self.origin.progress.get("scorer")
        async with open_engines(inputs, console.note, policy, scorer, self.cluster) as system:
            if needs_heldout:
                await self._answer_heldout(system, heldout)
            if not needs_training:
                return
            requests = sampling_requests(inputs.config, inputs.stream, inputs.encode, number)
            if len(requests) < (wanted := inputs.config.align.prompts):
                console.note(f"there are {len(requests)} of align.prompts={wanted}")
            with (
                Journal(files.root / "responses.jsonl") as journal,
                console.stage("prompts sampled", len(requests)) as advance,
            ):
                responses, failures = await sample(
                    inputs.config, requests, system.engine, journal, advance
                )
                if not responses:
                    raise RuntimeError(f"no prompt was answered; failures: {dict(failures)}")
                # The file first: killed in between, the next process finds it and asks nothing.
                write_stage(files.responses, Response, responses)
                journal.remove()
            console.note_counts("prompts without responses", failures)

    async def _answer_heldout(self, system: SamplingServices, root: Path) -> None:
        inputs, config = self.inputs, gate_config(self.inputs.config)
        prompts = inputs.stream.heldout(config.eval.prompts)
        settings = {"eval": config.eval.model_dump(mode="json"), "prompts": len(prompts)}
        asked = questions(config, prompts)
        with (
            open_evaluation(root, settings) as evaluation,
            self.console.stage(f"held-out responses {root.name}", len(asked)) as advance,
        ):
            # A row of the data may have been edited since; then its old sample does not count.
            known = answered_before(asked, evaluation.samples).values()
            for _ in known:
                advance()

            def keep(sample: Sample) -> None:
                evaluation.add(sample)
                advance()

            results = await evaluate(
                config, inputs.encode, system.engine, system.scorer, prompts, known, keep
            )
            evaluation.write_result({"modes": {mode: asdict(r) for mode, r in results.items()}})

    def _responses(self, root: Path) -> list[Response]:
        """What `sample` left in the directory of an iteration, or of held-out answers."""
        if (sampled := root / "responses.parquet").exists():
            return read_stage(sampled, Response)
        heldout = self.inputs.stream.heldout(self.inputs.config.align.gate.prompts)
        prompts = {prompt.id: prompt for prompt in heldout}
        samples = [Sample(**record) for record in read_records(root / "samples.jsonl")]
        responses = []
        # Samples come in the order in which they were answered, which differs from run to run.
        for each in sorted(samples, key=lambda each: each.key):
            # A response that failed was asked for again. No tokens: these are not trained on.
            if each.text is not None:
                tags = self.inputs.config.policy.think_tags
                answer = final_answer(each.answer, each.finish_reason, tags)
                asked = prompts[each.prompt_id], each.mode, each.sample
                responses.append(Response(*asked, (), each.text, answer))
        return responses

    async def judge(self, *roots: Path) -> None:
        """Leave claims and labels beside the responses in each of these directories."""
        config, console, cluster = self.inputs.config, self.console, self.cluster
        # As an assistant the policy is always the one before the pass, so that rates compare.
        policy = self.origin.model
        if undivided := [root for root in roots if not (root / CLAIMS).exists()]:
            source = self.assistants.divider
            async with source.open(policy, cluster) if source else nullcontext() as assistant:
                for root in undivided:
                    responses = self._responses(root)
                    name, count = f"responses divided ({root.name})", len(responses)
                    with (
                        Journal(root / "claims.jsonl") as journal,
                        console.stage(name, count) as advance,
                    ):
                        divided = await divide(config, responses, assistant, journal, advance)
                        write_stage(root / CLAIMS, DividedResponse, divided)
                        journal.remove()
                    fallbacks = Counter(each.fallback for each in divided if each.fallback)
                    console.note_counts("responses divided by rules instead", fallbacks)
                    if not any(each.claims for each in divided):
                        console.note(f"none of the {count} responses states a fact")
        if unjudged := [root for root in roots if not (root / LABELS).exists()]:
            # The labels of all iterations in one file: equal questions come again.
            cache, media = LabelCache(self.directory.labels), MediaStore(config.data)
            async with self.assistants.labeller.open(policy, cluster) as labeller:
                for root in unjudged:
                    divided = read_stage(root / CLAIMS, DividedResponse)
                    count = sum(len(each.claims) for each in divided)
                    with console.stage(f"claims judged ({root.name})", count) as advance:
                        judged, reasons = await judge(
                            config, divided, labeller, media, cache, advance
                        )
                    console.note_counts("claims without a label", reasons)
                    refuse_unfit_labeller(labeller.name, judged, reasons)
                    write_stage(root / LABELS, JudgedResponse, judged)

    def pair(self, files: IterationFiles) -> list[PreferencePair]:
        """Make the pairs; raises ValueError where there are none."""
        align, seed = self.inputs.config.align, self.inputs.config.seed
        if files.pairs.exists():
            return read_stage(files.pairs, PreferencePair)
        if align.mine is None:
            judged = read_stage(files.root / LABELS, JudgedResponse)
            selection = select_pairs(judged, seed, align.gap, align.pairs_per_prompt)
        else:

            def encode(row: LedgerRow) -> tuple[int, ...]:
                chat, is_ended = self.inputs.chat, row.finish_reason == "stop"
                return chat.response_token_ids(row.text, is_ended, row.end_token)

            rows = newest_rows(self.origin.ledger, self.origin.step, align.prompts)
            selection = mine_pairs(
                rows, encode, seed, align.gap, align.mine, align.pairs_per_prompt
            )
        # Written before the refusal, because these counts say what to change.
        counts = {"counts": dict(selection.counts), "balance": selection.balance}
        write_text(files.pair_counts, json.dumps(counts, indent=1) + "\n")
        self.console.note(f"pairs: {listed(selection.counts)}")
        refuse_no_pairs(selection.counts)
        write_stage(files.pairs, PreferencePair, selection.pairs)
        return list(selection.pairs)

    async def learn(self, number: int, policy: Path, pairs: Sequence[PreferencePair]) -> Path:
        """Return the directory of the policy that has learned from the pairs."""
        config, sinks = self.inputs.config, self.sinks
        # The tokens that were sampled, and no text tokenised anew: another spelling of the same
        # text in tokens is another response to the policy.
        examples = [
            DpoPair(
                id=pair.id,
                prompt_token_ids=self.inputs.encode(pair.prompt, pair.mode),
                media=pair.prompt.media,
                chosen_token_ids=pair.chosen.response.token_ids,
                rejected_token_ids=pair.rejected.response.token_ids,
            )
            for pair in pairs
        ]
        steps, target = config.align.dpo.steps, self.directory.iteration(number).dpo
        # The curves of all iterations stand in one file, each behind the one before it.
        first = (number - 1) * steps
        # An earlier process may have logged steps before it was killed.
        logged = max(read_metrics(self.directory.metrics_path), default=0)
        with self.console.stage(f"DPO steps on {len(pairs):,} pairs", steps) as advance:

            def on_step(step: int, metrics: Mapping[str, float]) -> None:
                advance()
                if first + step > logged:
                    sinks.write(first + step, metrics)

            return await train_dpo(config, policy, examples, target, self.cluster, on_step)

    def measure(self, root: Path) -> Measurement:
        """The figures of the policy whose judged held-out responses lie in `root`."""
        modes = json.loads((root / "result.json").read_text(encoding="utf-8"))["modes"]
        judged, mix = read_stage(root / LABELS, JudgedResponse), self.inputs.config.data.mix
        rates = hallucination_rates(judged, mix)
        return as_measurement({"modes": modes, "hallucination": rates})
