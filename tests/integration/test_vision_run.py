"""A run on image files, good and bad, with a tiny random MiniCPM-V: through the command line, on
CPU with real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from rl.config.recipe import load
from rl.data.media.names import MediaFile, from_json
from rl.data.media.store import MediaStore
from tests.integration.command import finish
from tests.integration.test_run import launch, metrics_of
from tests.minicpmv_tiny import noise_image, save_tiny

STEPS, PROMPTS, GROUP = 3, 6, 4
GOOD = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps over twelve good rows, six that look bad, and one with a broken body."""
    root = tmp_path_factory.mktemp("vision")
    policy = root / "policy"
    policy.mkdir()
    save_tiny(policy)
    write_rows(root)
    output = finish(
        launch(
            root / "run",
            "scale=cpu_tiny",
            f"policy.model={policy}",
            "policy.lora.rank=4",
            "policy.train=[llm,resampler]",
            "data.kind=dataset",
            f"data.path={root / 'rows.jsonl'}",
            "data.columns.images=images",
            "data.columns.id=id",
            f"data.heldout_path={root / 'heldout.jsonl'}",
            f"steps={STEPS}",
            f"rollout.prompts_per_step={PROMPTS}",
            f"rollout.group_size={GROUP}",
            "rollout.max_model_length=512",
            "reward.preference=null",
            "eval.prompts=4",
        )
    )
    (root / "output.txt").write_text(output)
    return root / "run"


def write_rows(root: Path) -> None:
    rows = []
    for n in range(GOOD):
        # Some are cut into slices.
        noise_image(40 + 13 * n, 60, seed=n).save(root / f"{n}.png")
        rows.append({"id": f"good{n}", "images": [f"{n}.png"], "answer": str(n)})
    (root / "text.png").write_text("no image")
    Image.new("RGB", (8000, 20)).save(root / "narrow.png")
    content = bytearray((root / "11.png").read_bytes())
    content[2000:2200] = bytes(200)
    (root / "broken.png").write_bytes(content)
    (root / "cut.png").write_bytes((root / "11.png").read_bytes()[:-2000])
    rows += [
        {"id": "missing", "images": ["gone.png"], "answer": "1"},
        {"id": "text", "images": ["text.png"], "answer": "1"},
        {"id": "narrow", "images": ["narrow.png"], "answer": "1"},
        {"id": "places", "images": ["0.png"], "question": "<image><image>?", "answer": "1"},
        {"id": "address", "images": ["https://example.org/a.png"], "answer": "1"},
        {"id": "cut", "images": ["cut.png"], "answer": "1"},
        {"id": "broken", "images": ["broken.png"], "answer": "1"},
    ]
    rows = [{"question": "what?"} | row for row in rows]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    heldout = [row | {"question": "and this?", "id": f"held{row['id']}"} for row in rows[:4]]
    (root / "heldout.jsonl").write_text("\n".join(map(json.dumps, heldout)))


def test_engine_and_learner_agree_on_images_at_every_step(run: Path):
    steps = metrics_of(run)
    assert len(steps) == STEPS
    assert max(abs(step["rollout/mismatch_kl"]) for step in steps) <= 1e-5
    # The canary shows an image too: its prompt is the first held-out one.
    assert max(step["sync/canary_max_abs_diff"] for step in steps) <= 1e-4
    # Engines sample responses together, which those of tests/integration/test_run.py do not.
    assert min(step["engine/running"] for step in steps) > 1
    assert all(0 <= step["engine/prefix_hits"] <= 1 for step in steps)


def test_bad_rows_are_counted_and_named_and_the_run_goes_on(run: Path):
    lines = (run / "quarantine.jsonl").read_text().splitlines()
    left_out = {
        row["id"].split("/")[-1]: row["reason"].split(":")[0] for row in map(json.loads, lines)
    }
    assert left_out == {
        "missing": "missing",
        "text": "not_an_image",
        "narrow": "too_large",
        "places": "places_differ",
        "address": "missing",
        "cut": "unreadable",
    }
    assert "6 rows are left out" in (run.parent / "output.txt").read_text()


def test_an_image_that_fails_only_when_decoded_is_replaced(run: Path):
    """Eighteen places and thirteen rows: the broken one is asked at least once."""
    dropped = sum(
        step.get(key, 0)
        for step in metrics_of(run)
        for key in step
        if key.startswith("rollout/dropped/") and key.endswith("bad_media")
    )
    assert dropped >= 1
    assert len(ledger(run)) == STEPS * PROMPTS * GROUP
    assert not any("broken" in row["prompt_id"] for row in ledger(run))


def test_the_ledger_names_what_was_shown(run: Path):
    store = MediaStore(load([f"config={run / 'config.yaml'}"]).config.data)
    for row in ledger(run)[::GROUP]:
        (medium,) = from_json(row["media"])
        assert isinstance(medium, MediaFile)
        assert Path(medium.path).is_file()
        assert row["media_digests"] == [store.read(medium).digest]


def test_only_the_named_parts_are_trained(run: Path):
    policy = run.parent / "policy"
    before = load_file(policy / "model.safetensors")
    after = load_file(run / "checkpoints" / f"step_{STEPS:06d}" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    # Adapters are merged into the decoder's linear layers, the resampler is trained itself.
    assert not any(name.startswith("vpm.") for name in changed)
    assert "resampler.query" in changed or "resampler.proj" in changed
    assert "llm.model.layers.0.self_attn.q_proj.weight" in changed
    assert "llm.lm_head.weight" not in changed


def ledger(run: Path) -> list[dict]:
    return [
        row
        for path in sorted((run / "ledger").glob("step_*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
