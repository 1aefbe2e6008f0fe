"""Keeps what a refactoring must not change: `python scripts/freeze_evidence.py OUT`.

Run it before and after, then compare: `diff -r BEFORE AFTER`. It writes to OUT

    dry_runs/       the resolved configuration, placement and memory of every recipe and scale
    run/            metrics and ledger of a seeded tiny run, its evaluation, and its proven export
    verdicts.jsonl  what the rule audit says of every labelled answer of the tests
    tests.txt       the names of the tests that are collected

Times, speeds and paths are left out, because they differ between two runs of the same code. The
run asks its commands as a user does, so the evidence does not know how the source is laid out.
About three minutes on two cores, and longer where the built-in models must be made first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
# Figures that measure the machine and not the code.
MEASURED = ("time/", "perf/", "memory/", "idle/", "engine/", "_seconds", "/seconds", "seconds")
# The size of a batch depends on timing, and the last bits of a log-probability on the batch.
DECIMALS = 4
SETTINGS = (
    "config=hybrid_50_50.yaml",
    "scale=cpu_tiny",
    "steps=3",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "rollout.max_staleness=0",
    "rollout.seed_requests=true",
    "policy.threads=1",
    "eval.prompts=16",
    "checkpoint.every=3",
    "log.tensorboard=false",
)
GREEDY = ("eval.temperature=0", "eval.prompts=32")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(arguments[0])
    out.mkdir(parents=True)
    for step in (keep_dry_runs, keep_verdicts, keep_tests, keep_run):
        print(step.__name__.replace("_", " "), flush=True)
        step(out)
    print(f"written to {out}")
    return 0


def command(module: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What `python -m module` prints; raises RuntimeError where it ends with another code."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode not in codes:
        raise RuntimeError(
            f"{module} {' '.join(arguments)} ended with {done.returncode}:\n"
            f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return done.stdout


def keep_dry_runs(out: Path) -> None:
    """Every recipe at every scale; where the two do not go together, that they do not."""
    (out / "dry_runs").mkdir()
    scales = [None, *(path.stem for path in sorted((CONFIGS / "scale").glob("*.yaml")))]
    for recipe in sorted(CONFIGS.glob("*.yaml")):
        module = "rl.sweep" if "sweep" in recipe.stem else "rl.launch"
        for scale in scales if module == "rl.launch" else [None]:
            chosen = [f"scale={scale}"] if scale else []
            # 1 says that this machine lacks something, such as a model that it cannot download.
            asked = f"config={recipe.name}", *chosen, "dry_run=true"
            said = command(module, *asked, codes=(0, 1, 2))
            name = f"{recipe.stem}.{scale or 'default'}.txt"
            (out / "dry_runs" / name).write_text(said)


def keep_verdicts(out: Path) -> None:
    answers = ROOT / "tests" / "data" / "answer_pairs.jsonl"
    target = out / "verdicts.jsonl"
    command("rewards.audit", f"in={answers}", f"out={target}")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    write_rows(target, [{k: v for k, v in row.items() if k != "seconds"} for row in rows])


def keep_tests(out: Path) -> None:
    """Names alone, since a test may move to another file."""
    said = command("pytest", "tests", "--collect-only", "-q", "-p", "no:cacheprovider")
    names = sorted(line.split("::", 1)[1] for line in said.splitlines() if "::" in line)
    (out / "tests.txt").write_text("\n".join(names) + "\n")


def keep_run(out: Path) -> None:
    kept = out / "run"
    kept.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        run, exported = Path(directory) / "run", Path(directory) / "exported"
        command("rl.launch", *SETTINGS, f"run={run}")
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        write_rows(kept / "metrics.jsonl", metrics)
        for path in sorted((run / "ledger").glob("*.parquet")):
            rows = pq.read_table(path).to_pylist()
            # The samples of a group come back in any order.
            rows.sort(key=lambda row: (row["group_id"], row["text"]))
            write_rows(kept / f"ledger_{path.stem}.jsonl", rows)
        command("rl.export", f"run={run}", f"out={exported}")
        files = sorted(path.relative_to(exported) for path in exported.rglob("*"))
        said = command("rl.evaluate", f"model={exported}", f"run={run}", *GREEDY)
        (kept / "export.txt").write_text("\n".join(map(str, files)) + "\n" + without_noise(said))
        said = command("rl.evaluate", f"run={run}", *GREEDY)
        (kept / "evaluation.txt").write_text(without_noise(said))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, without what was measured and with numbers rounded."""
    kept = [
        {key: rounded(value) for key, value in sorted(row.items()) if not is_measured(key)}
        for row in rows
    ]
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))


def is_measured(key: str) -> bool:
    return key.startswith(MEASURED[:2]) or key.endswith(MEASURED[2:])


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items() if not is_measured(key)}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return value


def without_noise(text: str) -> str:
    """The table alone: the lines before it name paths and durations."""
    return "\n".join(line for line in text.splitlines() if line[:1] in "┏┃┡│└") + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
