"""Rows from files as people have them: formats, folders with splits, cells of every type."""

import datetime
import decimal
import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence

from rl.config.data import PromptsConfig
from rl.data.tables import Table, heldout_location, read_table, train_location

ROWS = [{"question": f"q{n}", "answer": str(n)} for n in range(4)]


@pytest.fixture(autouse=True)
def _cache_apart(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, rows=None):
    """Rows that name their file, or `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_lines(rows or [{"question": path.name}]))
    return path


def table(path, **settings) -> Table:
    location = train_location(PromptsConfig(path=path, **settings))
    assert location is not None
    return read_table(location)


def questions(path, **settings) -> list:
    return list(table(str(path), **settings).column("question"))


def answers(path, name="answer") -> list:
    return list(table(str(path)).column(name))


# Formats


def parquet_bytes(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow_bytes(new) -> bytes:
    sink, rows = pa.BufferOutputStream(), pa.Table.from_pylist(ROWS)
    with new(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


CSV = b"question,answer\nq0,0\nq1,1\nq2,2\nq3,3\n"
CUT_SHORT = gzip.compress(as_lines(ROWS), mtime=0)[:30]
_SINK = pa.BufferOutputStream()
pq.write_table(pa.table([[1], [2]], names=["answer", "answer"]), _SINK)
TWO_ALIKE = _SINK.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", as_lines(ROWS)),
        ("a.JSONL", as_lines(ROWS)),
        ("a.ndjson", as_lines(ROWS)),
        ("windows.jsonl", b"\xef\xbb\xbf" + as_lines(ROWS).replace(b"\n", b"\r\n\r\n")),
        ("powershell.jsonl", as_lines(ROWS).decode().encode("utf-16")),
        ("unmarked.jsonl", as_lines(ROWS).decode().encode("utf-16-le")),
        ("unmarked.csv", CSV.decode().encode("utf-16-be")),
        ("lines.json", as_lines(ROWS)),
        ("array.json", json.dumps(ROWS).encode()),
        ("indented.json", json.dumps(ROWS, indent=2).encode()),
        ("under_a_key.json", json.dumps({"version": 1, "data": ROWS}).encode()),
        ("pandas.json", pd.DataFrame(ROWS).to_json().encode()),
        ("columns.json", json.dumps(pd.DataFrame(ROWS).to_dict("list")).encode()),
        ("a.jsonl.gz", gzip.compress(as_lines(ROWS), mtime=0)),
        ("a.jsonl.ZST", zst(as_lines(ROWS))),
        ("a.csv", CSV),
        ("excel.csv", b"\xef\xbb\xbf" + CSV.replace(b",", b";")),
        ("empty_columns.csv", CSV.replace(b"\n", b",,\n")),
        ("a.tsv", CSV.replace(b",", b"\t")),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.parquet", parquet_bytes(ROWS)),
        ("a.parquet.gz", gzip.compress(parquet_bytes(ROWS), mtime=0)),
        ("file.arrow", arrow_bytes(pa.ipc.new_file)),
        ("stream.arrow", arrow_bytes(pa.ipc.new_stream)),
        ("a.arrow.zst", zst(arrow_bytes(pa.ipc.new_file))),
    ],
)
def test_the_same_rows_in_every_format(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    rows = table(str(tmp_path / name))
    assert rows.rows(["question", "answer"], 0, len(rows)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": 1}\n{"q": }\n', r"a\.jsonl .* line 2: .* got \{\"q\": \}"),
        ("a.json", b'[{"q": 1},\n {"q": 2},]', r"a\.json .* line 2: "),
        ("words.json", b'["a", "b"]', "row 1 must be an object"),
        ("two.json", json.dumps({"train": ROWS, "test": ROWS}).encode(), "under train and test"),
        ("latin1.jsonl", '{"q": 1}\n{"q": "é"}\n'.encode("latin1"), "line 2 is not UTF-8"),
        ("a.csv", b"q,a\n1,2\n3,4,5\n", "line 3 has more fields than the header"),
        ("cut.jsonl.gz", CUT_SHORT, r"cut\.jsonl\.gz cannot be read"),
        ("not.jsonl.gz", as_lines(ROWS), r"not\.jsonl\.gz cannot be read"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (
            "a.jsonl",
            gzip.compress(as_lines(ROWS), mtime=0),
            r"a\.jsonl .* by gzip; put \.gz behind",
        ),
        ("a.csv", parquet_bytes(ROWS), r"a\.csv .* it is a parquet file"),
        ("a.csv", b"PK\3\4 and more", "zip archive or a spreadsheet; unpack it"),
        ("a.json", b"<!DOCTYPE html>", "a web page"),
        ("rows.xlsx", b"PK\3\4", r"must end in \.json.*got '\.xlsx'; unpack or convert it"),
        (
            "indented.jsonl",
            2 * (json.dumps(ROWS[0], indent=1) + "\n").encode(),
            "one object a line",
        ),
        ("a.csv", b"question,answer,,, answer\n1,2,3\n", "several columns are called answer"),
        ("a.parquet", TWO_ALIKE, "several columns are called answer"),
        ("b.parquet", b"PAR1", r"b\.parquet cannot be read as parquet"),
        ("empty.json", b"[]", "no rows"),
        ("head.csv", b"question,answer\n", "no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        table(str(tmp_path / name))


def test_a_file_that_was_changed_is_read_anew(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert len(answers(path)) == 4
    write(path, [*ROWS, {"question": "q4", "answer": "4"}])
    assert answers(path)[-1] == "4"


def test_keys_may_come_late_and_change_their_type(tmp_path):
    late = [*({"n": i} for i in range(600)), {"n": "text", "new": {"deep": [1]}}]
    rows = table(str(write(tmp_path / "a.jsonl", late)))
    assert rows.names == ("n", "new")
    assert [rows.cell("n", 599), rows.cell("n", 600)] == [599, "text"]
    assert [rows.cell("new", 0), rows.cell("new.deep", 600)] == [None, [1]]


# Cells


def test_text_formats_keep_cells_as_they_are_written(tmp_path):
    cells = ["2024-05-28", "2024-05-28T00:00:00Z", 3, 3.5, True, 2**60, "1,000", ["a", "b"]]
    path = write(tmp_path / "a.jsonl", [{"answer": cell} for cell in cells])
    assert answers(path) == cells
    (tmp_path / "a.csv").write_text('answer\n007\n2024-05-28\nNA\n"a\nb"\n1.50\n')
    assert answers(tmp_path / "a.csv") == ["007", "2024-05-28", "NA", "a\nb", "1.50"]


def test_nan_is_empty(tmp_path):
    pd.DataFrame({"answer": [1.0, float("nan")]}).to_parquet(tmp_path / "a.parquet")
    assert answers(tmp_path / "a.parquet") == [1.0, None]
    (tmp_path / "a.jsonl").write_text('{"answer": NaN}\n{"answer": [1, NaN]}\n')
    assert answers(tmp_path / "a.jsonl") == [None, [1, None]]


def test_dates_decimals_and_categories_are_what_they_say(tmp_path):
    frame = pd.DataFrame(
        {
            "day": [datetime.date(2024, 5, 28)],
            "read_by_pandas": [pd.Timestamp("2024-05-28")],
            "time": [pd.Timestamp("2024-05-28 14:30")],
            "price": [decimal.Decimal("1.50")],
            "kind": pd.Categorical(["b"]),
            "list": [[datetime.date(2024, 5, 28)]],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    row = table(str(tmp_path / "a.parquet")).rows(list(frame), 0, 1)[0]
    days = dict.fromkeys(("day", "read_by_pandas"), "2024-05-28") | {"list": ["2024-05-28"]}
    assert row == days | {"time": "2024-05-28 14:30:00", "price": "1.50", "kind": "b"}
    many = pd.DataFrame({"answer": pd.Categorical([f"kind {n}" for n in range(700)])})
    many.to_parquet(tmp_path / "many.parquet", row_group_size=100)
    assert answers(tmp_path / "many.parquet") == [f"kind {n}" for n in range(700)]


def test_a_class_is_its_name(tmp_path):
    letters = ClassLabel(names=list("ABCD"))
    features = {"answer": letters, "all": Sequence(letters), "in": {"deep": letters}}
    rows = [{"answer": n, "all": [n, 0], "in": {"deep": n}} for n in (2, -1)]
    saved = Dataset.from_list(rows, features=Features(features))
    saved.to_parquet(str(tmp_path / "a.parquet"))
    saved.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert answers(path) == ["C", None]
        assert answers(path, "all")[0] == ["C", "A"]
        assert answers(path, "in.deep")[0] == "C"


def test_a_dotted_name_is_a_field_of_a_struct_or_a_column_of_that_name(tmp_path):
    rows = [{"a": {"b": n, "c": n}, "list": [{"x": n}, {"x": 0}], "a.b": "own"} for n in (1, 2)]
    for name, content in (("a.jsonl", as_lines(rows)), ("a.parquet", parquet_bytes(rows))):
        (tmp_path / name).write_bytes(content)
        read = table(str(tmp_path / name))
        assert list(read.column("a.b")) == ["own", "own"]
        assert list(read.column("list.x")) == [[1, 0], [2, 0]]
        assert list(read.column("a.c")) == [1, 2]
        assert read.has_column("list.x") and not read.has_column("list.y")
        assert not read.has_column("b")


def test_a_struct_may_be_written_as_json(tmp_path):
    rows = [{"answer": json.dumps({"value": n, "all": [{"x": n}]})} for n in (1, 2)]
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(rows))
    assert answers(tmp_path / "a.parquet", "answer.value") == [1, 2]
    assert answers(tmp_path / "a.parquet", "answer.all.x") == [[1], [2]]
    assert answers(tmp_path / "a.parquet") == [row["answer"] for row in rows]


def test_numbers_of_few_bits_are_what_was_written(tmp_path):
    numbers = pa.array([0.1, 3.14, None, float("nan")], pa.float32())
    deep = pa.array([[{"x": 0.1}]] * 4, pa.list_(pa.struct([("x", pa.float32())])))
    rows = pa.table({"answer": numbers, "deep": deep})
    pq.write_table(rows, tmp_path / "a.parquet")
    Dataset(rows).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert answers(path) == [0.1, 3.14, None, None]
        assert answers(path, "deep.x") == [[0.1]] * 4


def test_a_map_is_a_struct(tmp_path):
    gold = pa.array([[("gold", "4"), ("style", "rule")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"answer": gold}), tmp_path / "a.parquet")
    assert answers(tmp_path / "a.parquet") == [{"gold": "4", "style": "rule"}]
    assert answers(tmp_path / "a.parquet", "answer.gold") == ["4"]


def test_half_a_character_is_read_as_one_that_is_missing(tmp_path):
    # Whoever cuts a text after so many units of UTF-16 leaves such halves, and JSON keeps them.
    (tmp_path / "a.jsonl").write_text('{"answer": "\\ud83d\\ude00 caf\u00e9 \\ud83d"}\n')
    assert answers(tmp_path / "a.jsonl") == ["\U0001f600 caf\u00e9 \ufffd"]


# Folders


def test_a_split_of_a_folder_is_read_alone(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "more/dev.jsonl", "more/train-2.jsonl"):
        write(tmp_path / name)
    assert questions(tmp_path) == ["train-2.jsonl", "train.jsonl"]
    assert questions(tmp_path, split="test") == ["test.jsonl"]
    assert questions(tmp_path, split="validation") == questions(tmp_path, split="val")
    with pytest.raises(
        ValueError, match=r"no split other; it has .*train.*name one in data\.split"
    ):
        questions(tmp_path, split="other")


def test_files_of_a_folder_that_name_no_split_are_for_training(tmp_path):
    names = ["a.jsonl", "devices.jsonl", "v1.0.jsonl"]
    for name in (*names, "v1.0.test.jsonl", "v1.0_dev.jsonl"):
        write(tmp_path / name)
    assert questions(tmp_path) == names
    assert questions(tmp_path, split="test") == ["v1.0.test.jsonl"]


def test_a_folder_with_another_split_alone_is_no_training_data(tmp_path):
    write(tmp_path / "test" / "a.jsonl")
    with pytest.raises(ValueError, match=r"no split train; it has test \(1 files\)"):
        questions(tmp_path)
    location = heldout_location(PromptsConfig(path="x", heldout_path=str(tmp_path)))
    assert location is not None and len(read_table(location)) == 1


def test_shards_name_their_split_in_full(tmp_path):
    for split in ("train_sft", "train_gen", "test_sft"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.jsonl")
    assert questions(tmp_path, split="train_sft") == ["train_sft-00000-of-00001.jsonl"]
    with pytest.raises(ValueError, match=r"several splits train; it has .*train_gen"):
        questions(tmp_path)


def test_a_subset_is_a_folder(tmp_path):
    for subset in ("main", "socratic"):
        for split in ("train", "test"):
            write(tmp_path / subset / f"{split}.jsonl", [{"question": f"{subset} {split}"}])
    assert questions(tmp_path, subset="main", split="test") == ["main test"]
    for subset in (None, "other"):
        with pytest.raises(ValueError, match=r"main, socratic.*data\.subset"):
            questions(tmp_path, subset=subset)


def test_a_card_names_the_files_of_subsets_and_splits(tmp_path):
    for name in ("x/one.jsonl", "x/two.jsonl", "y/three.jsonl"):
        write(tmp_path / name)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  default: true\n  data_files:\n"
        "  - split: train\n    path: x/one*\n  - split: rl\n    path: [x/t*.jsonl]\n"
        "- config_name: b\n  data_files: y/*.jsonl\n---\n# Rows\n"
    )
    assert questions(tmp_path) == ["one.jsonl"]
    assert questions(tmp_path, split="rl") == ["two.jsonl"]
    assert questions(tmp_path, subset="b") == ["three.jsonl"]
    with pytest.raises(ValueError, match="no subset c; it has a, b"):
        questions(tmp_path, subset="c")
    with pytest.raises(ValueError, match=r"no split test; it has train .*rl"):
        questions(tmp_path, split="test")


def test_a_card_may_map_splits_to_files_and_is_quoted_in_one_line_where_it_is_broken(tmp_path):
    for name in ("one.jsonl", "two.jsonl"):
        write(tmp_path / name)
    card = tmp_path / "README.md"
    card.write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n    train: one.jsonl\n"
        "    test: [two.jsonl]\n---\n"
    )
    assert questions(tmp_path) == ["one.jsonl"]
    assert questions(tmp_path, split="test") == ["two.jsonl"]
    card.write_text("---\nconfigs:\n- config_name: [a\n  b: : c\n---\n")
    with pytest.raises(ValueError, match=r"README\.md is not readable YAML: [^\n]+\Z"):
        questions(tmp_path)


def test_what_save_to_disk_wrote_is_named_where_it_is_not_whole(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "a"), num_shards=2)
    shard = tmp_path / "a" / "data-00001-of-00002.arrow"
    for change in (lambda: shard.write_bytes(shard.read_bytes()[:200]), shard.unlink):
        change()
        with pytest.raises(ValueError, match=r"a cannot be read as what save_to_disk wrote"):
            questions(tmp_path / "a")


def test_what_save_to_disk_wrote_has_its_splits(tmp_path):
    both = {name: Dataset.from_list([{"question": name}]) for name in ("train", "test")}
    DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    both["train"].save_to_disk(str(tmp_path / "alone"))
    assert questions(tmp_path / "both") == ["train"]
    assert questions(tmp_path / "both", split="test") == ["test"]
    assert questions(tmp_path / "alone") == ["train"]
    for path in ("both", "alone"):
        with pytest.raises(ValueError, match="no split dev; it has train"):
            questions(tmp_path / path, split="dev")


def test_shards_and_links_that_lead_nowhere_are_missed(tmp_path):
    write(tmp_path / "a" / "train-00000-of-00002.jsonl")
    with pytest.raises(ValueError, match=r"a has 1 of the 2 files train-\*-of-00002; download"):
        questions(tmp_path / "a")
    (tmp_path / "a" / "train-00001-of-00002.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.jsonl cannot be read"):
        questions(tmp_path / "a")
    # Named by themselves they are meant.
    assert questions(tmp_path / "a" / "train-00000*") == ["train-00000-of-00002.jsonl"]


def test_a_folder_without_rows_says_what_it_holds(tmp_path):
    for name in ("train-000.tar", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"but notes\.txt, train-000\.tar; unpack or convert"):
        questions(tmp_path)


@pytest.mark.parametrize("path", ["https://example.org/rows.jsonl", "s3://bucket/rows.parquet"])
def test_an_address_is_told_to_be_downloaded(path):
    with pytest.raises(ValueError, match=f"{path} is an address.*download it"):
        questions(path)


def test_hidden_files_and_checkpoints_are_passed_over(tmp_path):
    write(tmp_path / "a.jsonl")
    others = (
        ".ipynb_checkpoints/a-checkpoint .cache/b checkpoint-500/c checkpoints/d ._a __MACOSX/e"
    )
    for name in others.split():
        write(tmp_path / f"{name}.jsonl")
    for name in ("dataset_infos.json", "notes.json"):
        (tmp_path / name).write_text("{}")
    for path in (tmp_path, tmp_path / "**" / "*.jsonl"):
        assert questions(path) == ["a.jsonl"]
    # A folder that is named itself is meant.
    assert questions(tmp_path / "checkpoint-500") == ["c.jsonl"]
    assert questions(tmp_path / "checkpoint-500" / "*.jsonl") == ["c.jsonl"]


def test_a_single_file_has_no_other_split(tmp_path):
    path = write(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"one file and has no split test; leave data\.split out"):
        questions(path, split="test")
    with pytest.raises(ValueError, match="has no subset main"):
        questions(path, subset="main")
    heldout = heldout_location(PromptsConfig(path=str(path), heldout_split="test"))
    assert heldout is not None
    with pytest.raises(ValueError, match=r"has no split test; leave data\.heldout_split out"):
        read_table(heldout)


def test_lists_patterns_and_the_home_directory(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name)
    (tmp_path / "c.csv").write_text("question\nc.csv\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    both = ["a.jsonl", "b.jsonl"]
    assert questions(tmp_path / "*.jsonl") == both == questions("~/[ab].jsonl")
    several = table([str(tmp_path / "c.csv"), "~/a.jsonl"])
    assert list(several.column("question")) == ["c.csv", "a.jsonl"]
    assert several.where(1) == "a.jsonl row 1"
    with pytest.raises(ValueError, match="files of one kind, got csv, json"):
        questions(tmp_path)
    with pytest.raises(ValueError, match=r"none\*\.csv matches no file"):
        questions(tmp_path / "none*.csv")
    write(tmp_path / "test.jsonl")
    assert questions(tmp_path / "*.jsonl") == both


def test_only_the_first_rows(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, ROWS)
    assert len(table(str(tmp_path), max_rows=5)) == 5
    assert list(table(str(tmp_path), max_rows=5).column("answer")) == ["0", "1", "2", "3", "0"]
