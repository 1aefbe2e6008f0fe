"""A pass from start to end: its iterations, what the gate decides of each, and what is kept.

    policy -> sample -> divide -> judge -> pair -> learn -> measure -> gate        an iteration

Each stage is a function of values in a module of its own. Here alone its result is written to the
file of the stage, and a stage whose file is there is not done again. What models answer one by one
is kept as it comes. So, killed at any moment, the same command does only what is missing.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from policy.dpo import DpoPair, train_dpo
from rl.align.assistants import Assistants, check_assistants
from rl.align.claims.files import read_stage, write_stage
from rl.align.claims.label_cache import LabelCache
from rl.align.claims.types import DividedResponse, JudgedResponse, PreferencePair, Response
from rl.align.console import AlignmentConsole, listed
from rl.align.curves import draw_alignment
from rl.align.directory import CLAIMS, LABELS, AlignmentDirectory, IterationFiles, Origin
from rl.align.gate import (
    Measurement,
    as_measurement,
    as_responses,
    gate_config,
    hallucination_rates,
    refusals,
)
from rl.align.judging import divide, judge, refuse_unfit_labeller
from rl.align.pairing import mine_pairs, newest_rows, refuse_no_pairs, select_pairs
from rl.align.sampling import sample, sampling_requests
from rl.assembly import RunInputs, SamplingServices, gather_inputs, open_engines
from rl.config.run import Config
from rl.data.fingerprint import stamp, stamp_of_model
from rl.data.media.store import MediaStore
from rl.evaluate.directory import open_evaluation
from rl.evaluate.evaluation import Sample, answered_before, evaluate, questions
from rl.loop.stages import Prompt
from rl.run.checkpoints import MANIFEST, Checkpoint
from rl.run.directory import CHECKPOINT_BYTES, NEEDED_BYTES, RunDirectory
from rl.run.files import stack_versions, write_text
from rl.run.jsonl import Journal
from rl.run.ledger import LedgerRow
from rl.run.sinks import Sinks, read_metrics
from rl.system.cluster import Cluster, open_cluster
from rl.system.memory_estimate import count_parameters

# Two checkpoints of DPO, the result and its copy in checkpoints/, in sizes of a checkpoint.
COPIES = 4


async def run_pass(
    config: Config, run: RunDirectory, checkpoint: Checkpoint | None, console: AlignmentConsole
) -> None:
    """Run the pass, or what is left of it.

    run: where its directory lies. checkpoint: of the run, whose policy is aligned; None aligns
    `policy.model`. Raises ValueError for input that cannot be aligned, before any engine starts.
    """
    directory = AlignmentDirectory(run.root)
    # The pass is a run of its own, in a directory within the run's. It asks for no rewards but
    # accuracy, and a preference model would take memory from it.
    config = config.without_preference().model_copy(update={"run": str(directory.root)})
    inputs = gather_inputs(config)
    if checkpoint is None:
        name = config.policy.model
        identity = {"model": name, "weights": stamp_of_model(inputs.model)}
        untrained = {"progress": {"trained_tokens": {}}, "before": {}}
        origin = Origin(inputs.model, identity, untrained, 0, run.ledger_path)
    else:
        name, progress = str(checkpoint.path), checkpoint.progress
        # The manifest has the digest of every file of the checkpoint.
        manifest = (checkpoint.path / MANIFEST).read_text(encoding="utf-8")
        identity = {"step": checkpoint.step, "weights": stamp(manifest)}
        model, step = checkpoint.path / "model", checkpoint.step
        origin = Origin(model, identity, progress, step, run.ledger_path)
    assistants = await check_assistants(config, origin.model)
    with directory.open(config, origin.identity):
        size = (count_parameters(str(inputs.model)) or 0) * CHECKPOINT_BYTES
        run.check_room(NEEDED_BYTES + COPIES * size)
        console.note(f"aligning {name}; all of it is left in {directory.root}")
        numbers = range(1, config.align.iterations + 1)
        if not all(directory.iteration(number).gate.exists() for number in numbers):
            # One for the whole pass: engines, labeller and learner take turns on the places that it
            # reserves, which no other job can take in between.
            with (
                closing(open_cluster(config)) as cluster,
                closing(Sinks(config.log, RunDirectory(directory.root), console.note)) as sinks,
            ):
                for number in numbers:
                    files = directory.iteration(number)
                    if not files.gate.exists():
                        console.note(f"iteration {number} of {config.align.iterations}")
                        await _run_iteration(
                            number, inputs, origin, assistants, directory, console, cluster, sinks
                        )
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
        write_text(directory.summary, json.dumps(summary, indent=1) + "\n")
        console.note(f"curves: {draw_alignment(directory, verdicts)}")


async def _run_iteration(
    number: int,
    inputs: RunInputs,
    origin: Origin,
    assistants: Assistants,
    directory: AlignmentDirectory,
    console: AlignmentConsole,
    cluster: Cluster,
    sinks: Sinks,
) -> None:
    """Go from the policy that was accepted last to the verdict on the next one."""
    # What came before is read from the disk and not remembered, so a resumed pass sees the same.
    config, align = inputs.config, inputs.config.align
    files = directory.iteration(number)
    files.root.mkdir(exist_ok=True)
    accepted = [n for n in range(1, number) if directory.iteration(n).verdict()["is_accepted"]]
    policy = directory.checkpoints.path(accepted[-1]) / "model" if accepted else origin.model
    heldout = inputs.stream.heldout(align.gate.prompts)

    def open_policy(model: Path) -> AbstractAsyncContextManager[SamplingServices]:
        return open_engines(inputs, console.note, model, origin.progress.get("scorer"), cluster)

    async def judged(responses: Mapping[Path, Sequence[Response]]) -> None:
        # As an assistant the policy is always the one before the pass, so that rates compare.
        await _divide_and_judge(
            config, responses, assistants, origin.model, cluster, directory.labels, console
        )

    samples = align.mine is None
    if not samples:
        # Needs no model, so a ledger without a usable pair is refused before any is started.
        _pair(inputs, origin, files, console)
    if number > 1 and not files.before.exists():
        # The iteration that gave the policy measured it last. A copy that was cut short must not
        # pass for a whole one, so it gets its name at the end.
        last, aside = directory.iteration(number - 1), files.root / ".before.partial"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(last.after if last.verdict()["is_accepted"] else last.before, aside)
        aside.rename(files.before)
    needs_responses = samples and not files.responses.exists()
    if needs_responses or not _is_answered(files.before):
        async with open_policy(policy) as system:
            # One start of the engines may have to answer one of the two only.
            if not _is_answered(files.before):
                await _answer_heldout(inputs, system, heldout, files.before, console)
            if needs_responses:
                await _sample(inputs, system, number, files, console)
    # One start of the assistants serves both, because an engine takes minutes to start.
    responses = {files.before: _heldout_responses(files.before, heldout)}
    if samples:
        responses[files.root] = read_stage(files.responses, Response)
    await judged(responses)
    pairs = _pair(inputs, origin, files, console)
    aligned = await _learn(number, inputs, policy, pairs, directory, console, cluster, sinks)
    if not _is_answered(files.after):
        async with open_policy(aligned) as system:
            await _answer_heldout(inputs, system, heldout, files.after, console)
    await judged({files.after: _heldout_responses(files.after, heldout)})
    before, after = _measurement(files.before), _measurement(files.after)
    sinks.write(number * align.dpo.steps, after.as_metrics())
    reasons = refusals(before, after, align.gate)
    verdict = {
        "is_accepted": not reasons,
        "reasons": reasons,
        "pairs": len(pairs),
        "before": asdict(before),
        "after": asdict(after),
    }
    if not reasons:
        gate = gate_config(config).eval.model_dump(mode="json")
        told = {"accepted": len(accepted) + 1, "origin": dict(origin.identity), "asked": gate}
        progress = {**origin.progress, "align": verdict | told}
        with directory.checkpoints.writer(number, progress, align.iterations) as path:
            shutil.copytree(aligned, path / "model")
    # Last, because an iteration that has a verdict is over.
    write_text(files.gate, json.dumps(verdict, indent=1) + "\n")


async def _sample(
    inputs: RunInputs,
    system: SamplingServices,
    number: int,
    files: IterationFiles,
    console: AlignmentConsole,
) -> None:
    """Leave the responses to the training prompts of this iteration."""
    config = inputs.config
    requests = sampling_requests(config, inputs.stream, inputs.encode, number)
    if len(requests) < config.align.prompts:
        console.note(f"there are {len(requests)} of align.prompts={config.align.prompts}")
    with (
        Journal(files.root / "responses.jsonl") as journal,
        console.stage("prompts sampled", len(requests)) as advance,
    ):
        responses, failures = await sample(config, requests, system.engine, journal, advance)
        if not responses:
            raise RuntimeError(f"no prompt was answered; failures: {dict(failures)}")
        # The file first: killed between the two, the next process finds it and asks for nothing.
        write_stage(files.responses, Response, responses)
        journal.remove()
    console.note_counts("prompts without responses", failures)


async def _divide_and_judge(
    config: Config,
    responses: Mapping[Path, Sequence[Response]],
    assistants: Assistants,
    policy: Path,
    cluster: Cluster,
    labels: Path,
    console: AlignmentConsole,
) -> None:
    """Leave claims and labels beside the responses of each directory, unless they are there.

    policy: what answers as an assistant where none other is named.
    """
    if undivided := [root for root in responses if not (root / CLAIMS).exists()]:
        source = assistants.divider
        async with source.open(policy, cluster) if source else nullcontext() as assistant:
            for root in undivided:
                name, count = f"responses divided ({root.name})", len(responses[root])
                with (
                    Journal(root / "claims.jsonl") as journal,
                    console.stage(name, count) as advance,
                ):
                    divided = await divide(config, responses[root], assistant, journal, advance)
                    write_stage(root / CLAIMS, DividedResponse, divided)
                    journal.remove()
                fallbacks = Counter(each.fallback for each in divided if each.fallback)
                console.note_counts("responses divided by rules instead", fallbacks)
                if not any(each.claims for each in divided):
                    console.note(f"none of the {count} responses states a fact")
    if unjudged := [root for root in responses if not (root / LABELS).exists()]:
        # The labels of all iterations in one file: equal questions come again.
        cache, media = LabelCache(labels), MediaStore(config.data)
        async with assistants.labeller.open(policy, cluster) as labeller:
            for root in unjudged:
                divided = read_stage(root / CLAIMS, DividedResponse)
                num_claims = sum(len(each.claims) for each in divided)
                with console.stage(f"claims judged ({root.name})", num_claims) as advance:
                    judged, reasons = await judge(config, divided, labeller, media, cache, advance)
                console.note_counts("claims without a label", reasons)
                refuse_unfit_labeller(labeller.name, judged, reasons)
                write_stage(root / LABELS, JudgedResponse, judged)


def _pair(
    inputs: RunInputs, origin: Origin, files: IterationFiles, console: AlignmentConsole
) -> list[PreferencePair]:
    """Make the pairs, unless they are there; raises ValueError where there are none."""
    align, seed = inputs.config.align, inputs.config.seed
    if files.pairs.exists():
        return read_stage(files.pairs, PreferencePair)
    if align.mine is None:
        judged = read_stage(files.root / LABELS, JudgedResponse)
        selection = select_pairs(judged, seed, align.gap, align.pairs_per_prompt)
    else:

        def encode(row: LedgerRow) -> tuple[int, ...]:
            return inputs.chat.response_token_ids(row.text, row.finish_reason == "stop")

        rows = newest_rows(origin.ledger, origin.step, align.prompts)
        selection = mine_pairs(rows, encode, seed, align.gap, align.mine, align.pairs_per_prompt)
    # Written before the refusal, because these counts say what to change.
    counts = {"counts": dict(selection.counts), "balance": selection.balance}
    write_text(files.pair_counts, json.dumps(counts, indent=1) + "\n")
    console.note(f"pairs: {listed(selection.counts)}")
    refuse_no_pairs(selection.counts)
    write_stage(files.pairs, PreferencePair, selection.pairs)
    return list(selection.pairs)


async def _learn(
    number: int,
    inputs: RunInputs,
    policy: Path,
    pairs: Sequence[PreferencePair],
    directory: AlignmentDirectory,
    console: AlignmentConsole,
    cluster: Cluster,
    sinks: Sinks,
) -> Path:
    """Return the directory of the policy that has learned from the pairs."""
    # The tokens that were sampled, and no text tokenised anew: another spelling of the same text in
    # tokens is another response to the policy.
    examples = [
        DpoPair(
            id=pair.id,
            prompt_token_ids=inputs.encode(pair.prompt, pair.mode),
            media=pair.prompt.media,
            chosen_token_ids=pair.chosen.response.token_ids,
            rejected_token_ids=pair.rejected.response.token_ids,
        )
        for pair in pairs
    ]
    steps = inputs.config.align.dpo.steps
    # The curves of all iterations stand in one file, each behind the one before it.
    first = (number - 1) * steps
    # An earlier process may have logged steps before it was killed.
    logged = max(read_metrics(directory.metrics), default=0)
    with console.stage(f"DPO steps on {len(pairs):,} pairs", steps) as advance:

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            advance()
            if first + step > logged:
                sinks.write(first + step, metrics)

        target = directory.iteration(number).dpo
        return await train_dpo(inputs.config, policy, examples, target, cluster, on_step)


def _is_answered(root: Path) -> bool:
    return (root / "result.json").exists()


async def _answer_heldout(
    inputs: RunInputs,
    system: SamplingServices,
    prompts: Sequence[Prompt],
    root: Path,
    console: AlignmentConsole,
) -> None:
    """Leave held-out samples and their figures in `root`."""
    config = gate_config(inputs.config)
    settings = {"eval": config.eval.model_dump(mode="json"), "prompts": len(prompts)}
    asked = questions(config, prompts)
    with (
        open_evaluation(root, settings) as evaluation,
        console.stage(f"held-out responses {root.name}", len(asked)) as advance,
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


def _heldout_responses(root: Path, prompts: Sequence[Prompt]) -> list[Response]:
    """What `_answer_heldout` left in `root`."""
    settings = json.loads((root / "settings.json").read_text(encoding="utf-8"))
    with open_evaluation(root, settings) as evaluation:
        return as_responses(prompts, evaluation.samples)


def _measurement(root: Path) -> Measurement:
    """Of the policy whose judged held-out responses lie in `root`."""
    modes = json.loads((root / "result.json").read_text(encoding="utf-8"))["modes"]
    rates = hallucination_rates(read_stage(root / LABELS, JudgedResponse))
    return as_measurement({"modes": modes, "hallucination": rates})
