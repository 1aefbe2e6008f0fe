import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet
import pytest

from rl.config.data import SourceConfig
from rl.config.recipe import load
from rl.data.tasks.chain_sum import is_heldout
from rl.loop.stages import Prompt
from rollout.prompts.dataset import DatasetSource
from rollout.prompts.sources import open_source
from rollout.prompts.stream import PromptStream

MODES = ("short", "long")


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, **more) -> list[dict]:
    return [{"question": f"{i}+1?", "answer": str(i + 1)} | more for i in range(count)]


def dataset(path: str, **settings) -> DatasetSource:
    return DatasetSource(SourceConfig(kind="dataset", path=path, **settings), MODES)


def questions(prompts) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts]


def numbers(prompts) -> list[int]:
    return [int(prompt.id.rpartition("/")[2]) for prompt in prompts]


class Numbered:
    """Six training prompts of which 4 and 5 are pinned, and two held out."""

    train_count = 6
    heldout_count = 2
    pins = (None, None, None, None, "short", "long")

    def train(self, index: int) -> Prompt:
        return Prompt(f"n/train/{index}", (), "1", mode=self.pins[index])

    def heldout(self, index: int) -> Prompt:
        return Prompt(f"n/heldout/{index}", (), "1")

    def rows_for(self, mode: str) -> list[int]:
        return [i for i, pin in enumerate(self.pins) if pin in (None, mode)]


# The stream


def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own():
    stream = PromptStream({"": Numbered()}, seed=0, prompts_per_step=4)
    asked = numbers(prompt for step in range(6) for prompt in stream.prompts(step))
    epochs = [asked[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_is_the_same_from_a_fresh_stream():
    walked = PromptStream({"": Numbered()}, 3, 4)
    steps = [walked.prompts(step) for step in range(9)]
    assert PromptStream({"": Numbered()}, 3, 4).prompts(7) == steps[7]
    others = [PromptStream({"": Numbered()}, 4, 4).prompts(step) for step in range(9)]
    assert others != steps


def test_replacements_may_be_asked_in_the_mode_and_do_not_depend_on_the_past():
    stream = PromptStream({"": Numbered()}, 0, 4)
    replaced = [stream.replacement(s, p, 1, "short") for s in range(3) for p in range(4)]
    assert {prompt.mode for prompt in replaced} == {None, "short"}
    assert set(numbers(replaced)) == {0, 1, 2, 3, 4}
    assert stream.replacement(2, 1, 1, "short") == replaced[9]
    assert PromptStream({"": Numbered()}, 0, 4).replacement(2, 1, 1, "short") == replaced[9]
    attempts = numbers(stream.replacement(0, 0, attempt, "short") for attempt in range(1, 20))
    assert len(set(attempts)) == 5


def test_a_mode_that_every_pin_excludes_has_no_replacement():
    source = Numbered()
    source.pins = ("long",) * 6
    with pytest.raises(ValueError, match="no row may replace a dropped group in mode short"):
        PromptStream({"": source}, 0, 4).replacement(0, 0, 1, "short")


def test_heldout_is_all_there_is_where_fewer_exist():
    stream = PromptStream({"": Numbered()}, 0, 4)
    assert numbers(stream.heldout(1)) == [0]
    assert numbers(stream.heldout(256)) == [0, 1]


def test_an_endless_source_repeats_no_prompt_and_replaces_from_beyond():
    source = open_source(SourceConfig(kind="chain_sum"), 0, MODES)
    stream = PromptStream({"": source}, 0, 4)
    asked = [prompt.id for step in range(3) for prompt in stream.prompts(step)]
    assert asked == [f"chain_sum/train/{i}" for i in range(12)]
    replaced = [stream.replacement(0, p, a, "long").id for p in range(4) for a in range(1, 20)]
    assert len(set(replaced) | set(asked)) == 12 + 76


# Procedural sources


def test_chain_sum_splits_and_references():
    source = open_source(
        SourceConfig(kind="chain_sum", settings={"lengths": [3]}, system_prompt="Add."), 5, MODES
    )
    train, heldout = source.train(0), source.heldout(0)
    assert [m["role"] for m in train.messages] == ["system", "user"]
    assert is_heldout(heldout.messages[-1]["content"])
    assert not is_heldout(train.messages[-1]["content"])
    digits = [int(c) for c in train.messages[-1]["content"] if c.isdigit()]
    assert (len(digits), str(sum(digits))) == (3, train.reference)


@pytest.mark.parametrize("kind", ["chain_sum", "reasoning_gym"])
def test_runs_with_other_seeds_train_on_other_prompts_but_share_the_heldout(kind):
    path = "gcd" if kind == "reasoning_gym" else None
    first, second = (
        open_source(SourceConfig(kind=kind, path=path), seed, MODES) for seed in (0, 1)
    )
    assert [first.heldout(i) for i in range(8)] == [second.heldout(i) for i in range(8)]
    assert [first.train(i) for i in range(8)] != [second.train(i) for i in range(8)]
    assert first.train(3) == open_source(SourceConfig(kind=kind, path=path), 0, MODES).train(3)


def test_reasoning_gym_splits_never_overlap_even_in_a_small_task():
    # Two one-digit terms and two operators: 200 questions at most, so draws repeat often.
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    source = open_source(
        SourceConfig(kind="reasoning_gym", path="chain_sum", settings=settings), 0, MODES
    )
    train = questions(source.train(i) for i in range(600))
    heldout = questions(source.heldout(i) for i in range(60))
    assert len(set(train)) < 200
    assert not set(train) & set(heldout)
    assert source.train(2**40 + 1).reference.lstrip("-").isdigit()


def test_reasoning_gym_names_what_is_wrong():
    for path, message in [("leg_count", "such as leg_counting"), (None, "got None")]:
        with pytest.raises(ValueError, match=message):
            open_source(SourceConfig(kind="reasoning_gym", path=path), 0, MODES)
    for settings in ({"colour": 1}, {"min_animals": -5}):
        config = SourceConfig(kind="reasoning_gym", path="leg_counting", settings=settings)
        with pytest.raises(ValueError, match=r"data\.settings do not suit"):
            open_source(config, 0, MODES)


def test_chain_sum_names_what_is_wrong():
    for settings, message in [({"length": 3}, "takes only lengths"), ({"lengths": [99]}, "99")]:
        with pytest.raises(ValueError, match=message):
            open_source(SourceConfig(kind="chain_sum", settings=settings), 0, MODES)


# Data sets


def test_rows_of_a_file_become_prompts(tmp_path):
    path = write_jsonl(
        tmp_path / "sums.jsonl",
        [
            {"q": f"{i}+1?", "a": i + 1, "uid": f"row-{i}", "m": "long" if i == 2 else None}
            for i in range(40)
        ],
    )
    columns = {"question": "q", "reference": "a", "id": "uid", "mode": "m"}
    source = dataset(path, columns=columns, system_prompt="Add.", heldout_share=0.2)
    prompts = {prompt.id: prompt for prompt in map(source.train, range(source.train_count))}
    heldout = [source.heldout(i) for i in range(source.heldout_count)]
    assert len(prompts) + len(heldout) == 40
    pinned = [p for p in [*prompts.values(), *heldout] if p.mode]
    assert [p.mode for p in pinned] == ["long"]
    prompt = next(iter(prompts.values()))
    number = int(prompt.id.removeprefix("sums/train/row-"))
    assert prompt.messages == (
        {"role": "system", "content": "Add."},
        {"role": "user", "content": f"{number}+1?"},
    )
    assert prompt.reference == str(number + 1)


def test_the_split_of_a_row_stays_when_rows_are_added(tmp_path):
    few = dataset(write_jsonl(tmp_path / "few.jsonl", rows(300)))
    many = dataset(write_jsonl(tmp_path / "many.jsonl", rows(600)))
    # 300 rows at a share of 0.05: 15 +- 3.8.
    assert 4 <= few.heldout_count <= 26
    first, second = (
        set(questions(source.heldout(i) for i in range(source.heldout_count)))
        for source in (few, many)
    )
    assert first == {q for q in second if int(q.split("+")[0]) < 300}


def test_equal_questions_fall_into_one_split(tmp_path):
    source = dataset(write_jsonl(tmp_path / "a.jsonl", rows(50) * 3), heldout_share=0.3)
    train = set(questions(map(source.train, range(source.train_count))))
    heldout = set(questions(map(source.heldout, range(source.heldout_count))))
    assert len(train) + len(heldout) == 50


def test_few_rows_still_hold_one_out(tmp_path):
    source = dataset(write_jsonl(tmp_path / "a.jsonl", rows(4)))
    assert (source.train_count, source.heldout_count) == (3, 1)
    with pytest.raises(ValueError, match="too few to hold out"):
        dataset(write_jsonl(tmp_path / "b.jsonl", rows(1)))


def test_directories_of_parquet_messages_and_named_heldout(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        messages = [[{"role": "user", "content": f"{part}{i}?"}] for i in range(3)]
        table = pa.table({"chat": messages, "answer": ["1"] * 3, "kind": ["number"] * 3})
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet")
    columns = {"messages": "chat", "task": "kind"}
    source = dataset(str(folder), heldout_path=str(folder / "1.parquet"), columns=columns)
    assert (source.train_count, source.heldout_count) == (3, 3)
    assert questions([source.train(2), source.heldout(0)]) == ["02?", "10?"]
    assert source.train(0).task == "number"


def test_nothing_is_left_to_train_on_where_all_rows_are_held_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(3))
    with pytest.raises(ValueError, match=r"every row of data\.path is among the held-out rows"):
        dataset(path, heldout_path=str(path))


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (
            rows(3),
            {"question": "problem", "task": "kind"},
            r"no column for data\.columns\.question=problem, data\.columns\.task=kind; "
            r"its columns are question, answer",
        ),
        (
            [*rows(3), {"question": "?", "answer": " "}, {"question": "?", "answer": None}],
            {},
            r"bad\.jsonl has 2 rows with nothing in column answer; .*columns\.reference=answer\); "
            r"the first is bad\.jsonl row 4, the first ids: 3, 4$",
        ),
        (
            [{"question": "", "answer": "1"}],
            {},
            r"has 1 rows with nothing in column question; .*columns\.question=question",
        ),
        (
            [row | {"uid": "x"} for row in rows(2)],
            {"id": "uid"},
            r"has 2 rows whose id is not unique.*data\.columns\.id=uid",
        ),
        (
            rows(2, m="medium"),
            {"mode": "m"},
            r"2 rows pinned to a mode that is none of short, long, got medium .*columns\.mode=m",
        ),
        (
            rows(2, chat="hello"),
            {"messages": "chat"},
            r"without a list of messages .* got 'hello' \(data\.columns\.messages=chat\)",
        ),
        (
            rows(2, picture=7),
            {"images": "picture"},
            "bad.jsonl row 1, column picture must hold paths, bytes or .*, got 7",
        ),
    ],
)
def test_bad_rows_are_counted_and_named(tmp_path, table, columns, message):
    path = write_jsonl(tmp_path / "bad.jsonl", table)
    with pytest.raises(ValueError, match=message):
        dataset(path, columns=columns)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"missing\.jsonl does not exist"):
        dataset(str(tmp_path / "missing.jsonl"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must end in .*\.jsonl.* got '\.txt'"):
        dataset(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="holds no file that ends in"):
        dataset(str(tmp_path))
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    with pytest.raises(ValueError, match=r"broken\.jsonl cannot be read as json"):
        dataset(str(tmp_path / "broken.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl cannot be read as json: no rows"):
        dataset(str(tmp_path / "empty.jsonl"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"someone/nothing is no file here, and as a Hugging Face"):
        dataset("someone/nothing")
    with pytest.raises(ValueError, match=r"data\.path is required"):
        DatasetSource(SourceConfig(kind="dataset"), MODES)


# Prompts whose reward is off


def recipe(*settings: str) -> PromptStream:
    return PromptStream.open(load(["config=hybrid_50_50.yaml", "scale=cpu_tiny", *settings]).config)


def test_a_sum_is_left_to_the_rules_where_the_probability_reward_is_off():
    tasks = Counter(prompt.task for prompt in recipe().checked())
    assert 16 < tasks["probability"] < 64
    by_rules = recipe("reward.probability=null")
    assert {prompt.task for prompt in by_rules.checked()} == {"auto"}
    # The questions stand where they stood.
    assert questions(by_rules.checked()) == questions(recipe().checked())


def test_rows_that_no_reward_scores_are_left_out_and_counted(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [row | {"task": "probability" if n % 4 == 0 else None} for n, row in enumerate(rows(40))],
    )
    data = ["data.kind=dataset", f"data.path={path}", "data.columns.task=task"]
    assert len(list(recipe(*data).checked())) + len(recipe(*data).heldout(40)) == 40
    without = recipe(*data, "reward.probability=null")
    asked = [*without.checked(), *without.heldout(40)]
    assert {prompt.task for prompt in asked} == {"auto"} and len(asked) == 30
    assert len(without.quarantined) == 10
    assert {row.reason.partition(":")[0] for row in without.quarantined} == {"unrewarded"}
    with pytest.raises(ValueError, match="no row that can be used; quarantined are 40 unrewarded"):
        recipe(*data, "data.task=probability", "data.columns.task=null", "reward.probability=null")
