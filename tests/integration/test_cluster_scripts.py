"""What scripts/ has for clusters: the image, the SLURM job and the Kubernetes job."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from rl.config.recipe import load

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SBATCH = SCRIPTS / "slurm.sbatch"


def job() -> dict:
    return yaml.safe_load((SCRIPTS / "kuberay.yaml").read_text())


def pods(spec: dict) -> list[dict]:
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_ray_job_takes_what_the_scale_takes_and_its_command_is_one_that_loads():
    spec = job()["spec"]
    assert (job()["apiVersion"], job()["kind"]) == ("ray.io/v1", "RayJob")
    python, dash_m, module, *settings = shlex.split(spec["entrypoint"])
    assert [python, dash_m, module] == ["python", "-m", "rl.launch"]
    config = load(settings).config
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(pods(spec)[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert workers["replicas"] == config.resources.nodes
    assert workers["replicas"] * gpus == config.resources.gpus
    # Another try is a resume only where the run's directory outlives the pods.
    assert spec["backoffLimit"] > 0
    mounted = [m["mountPath"] for m in pods(spec)[0]["containers"][0]["volumeMounts"]]
    assert any(config.run.startswith(f"{path}/") for path in mounted)


def test_every_pod_has_the_same_image_and_volumes_and_ray_is_the_pinned_one():
    spec = job()["spec"]
    assert len({pod["containers"][0]["image"] for pod in pods(spec)}) == 1
    for pod in pods(spec):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert volumes == {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    (pinned,) = re.findall(r'"ray\[.*\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert spec["rayClusterSpec"]["rayVersion"] == pinned


def test_the_image_is_made_of_files_that_exist():
    text = (SCRIPTS / "Dockerfile").read_text()
    instructions = re.sub(r"\\\n(\s*#.*\n)*", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    copied = re.findall(r"^COPY (.*) \S+$", instructions, re.M)
    assert copied
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
    assert instructions.startswith("FROM python:3.11")
    assert "RUN mkdir -p rl rewards rollout policy configs" in instructions


def sbatch_options() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SBATCH.read_text(), re.M)
    return dict(found)


def test_the_slurm_job_has_the_nodes_of_the_scale_and_comes_back():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    options = sbatch_options()
    config = load(["config=hybrid_50_50.yaml", "scale=cluster"]).config
    assert int(options["nodes"]) == config.resources.nodes
    gpus = int(options["gpus-per-node"]) * int(options["nodes"])
    assert gpus == config.resources.gpus
    assert "requeue" in options
    # Before the job is killed the run has its time to save.
    to, _, seconds = options["signal"].partition("@")
    assert to == "B:TERM" and int(seconds) > config.checkpoint.grace_s


COMMANDS = {
    "scontrol": """
        if [ "$1" = show ]; then echo node1; echo node2; else echo "scontrol $*" >>"$SEEN"; fi""",
    "srun": """
        case "$*" in *hostname*) echo 10.0.0.1 ;; *) echo "srun $*" >>"$SEEN"; sleep 60 ;; esac""",
    "ray": "exit 0",
    # Asked for the number of nodes, and as the driver.
    "python": """
        if [ "$1" = -c ]; then echo 2; exit; fi
        echo "python $*" >>"$SEEN"
        trap 'sleep 0.3; echo saved >>"$SEEN"; exit $CODE' TERM
        echo started >>"$SEEN"
        for _ in $(seq 100); do sleep 0.1; done""",
}


@pytest.mark.parametrize(("code", "is_queued_again"), [(143, True), (1, False)])
def test_sigterm_reaches_the_driver_and_a_run_that_was_stopped_is_queued_again(
    tmp_path: Path, code: int, is_queued_again: bool
):
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (commands / name).chmod(0o755)
    seen = tmp_path / "seen"
    seen.touch()
    environment = os.environ | {
        "SEEN": str(seen),
        "CODE": str(code),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    started = subprocess.Popen(
        ["bash", SBATCH, "config=mine.yaml", "run=/shared/run"],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while "started" not in seen.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        # To the script alone, as SLURM does with B:.
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=60) == code
    finally:
        os.killpg(started.pid, signal.SIGKILL)
    lines = seen.read_text().splitlines()
    assert "saved" in lines
    assert ("scontrol requeue 7" in lines) == is_queued_again
    (launched,) = [line for line in lines if line.startswith("python -m")]
    assert launched == (
        "python -m rl.launch scale=cluster config=mine.yaml run=/shared/run "
        "resources.ray_address=10.0.0.1:6379"
    )
    head, others = sorted(line for line in lines if line.startswith("srun"))
    assert "--exclude=node1" in head and "--address=10.0.0.1:6379" in head
    assert "--nodelist=node1" in others and "--head" in others
