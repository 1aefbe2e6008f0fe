"""Which files of a directory are a subset and a split of a data set.

The names are those of the Hugging Face hub: a README.md may list the files of every subset and
split; otherwise folders and files are called after the split, as `test.jsonl`, `validation/a.csv`
or `data/train-00000-of-00002.parquet`. Files that say nothing are the training split.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from rl.config.keys import one_line
from rl.data.media.names import shortened

ENDINGS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **{f".{kind}": kind for kind in ("csv", "tsv", "parquet", "arrow")},
}
"""The endings of files with rows, and the kind of file that each means."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_KEYWORDS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
_SPLIT_OF = {word: split for split, words in _KEYWORDS.items() for word in words.split()}
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\b.*")
# Copies of notebooks, what a training saves, and what tools keep for themselves.
_PASSED_OVER = re.compile(r"[._].*|(.*_)?checkpoints?([-_]\d+)?|global_step_?\d+", re.IGNORECASE)
# What the `datasets` library writes beside rows.
_NO_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json"}


def file_kind(path: Path) -> tuple[str | None, str | None]:
    """Return the kind of a file with rows and its compression, by its ending in any case.

    Example: file_kind(Path("a.JSONL.gz")) == ("json", "gzip")
    """
    name = path.name.lower()
    compression = COMPRESSIONS.get(Path(name).suffix)
    if compression is not None:
        name = Path(name).stem
    return ENDINGS.get(Path(name).suffix), compression


def find_files(
    directory: Path, subset: str | None, split: str | None, split_key: str
) -> list[Path]:
    """Return the files of a subset and split; raises ValueError with those that exist.

    split: None takes the only one there is. split_key: the setting that names it, for errors.
    """
    described = _described_in_readme(directory)
    folders: dict[str, list[Path]]
    if described:
        listed = _choose_subset(directory, described, subset)
        splits = {name: files for name, files in listed.items() if files}
    else:
        files, folders = data_files(directory), {}
        for file in files:
            folder, *below = file.relative_to(directory).parts
            if below:
                folders.setdefault(folder, []).append(file)
        # A folder that is no split and has splits within it is a data set of its own.
        alike = [
            name
            for name, inside in folders.items()
            if _usual_name(name) is None
            and any(_split_in_name(file.relative_to(directory / name)) for file in inside)
        ]
        if subset not in (None, *folders) or (subset is None and len(alike) > 1):
            lacks = f"has no subset {subset}" if subset else "has several subsets"
            raise ValueError(
                f"{directory} {lacks}; it has {_listed(alike or folders)}; name one in "
                "data.subset, or their folders in data.path"
            )
        if subset is not None:
            files, directory = folders[subset], directory / subset
        splits = by_split(files, directory)
    if not splits:
        others = sorted(file.name for file in directory.rglob("*") if file.is_file())
        raise ValueError(
            f"{directory} holds no file that ends in {', '.join(ENDINGS)}, also with .gz or .zst, "
            f"but {', '.join(others[:3]) or 'nothing'}; unpack or convert what holds the rows"
        )
    chosen = choose_split(splits, split, f"{directory}", split_key)
    shards = Counter(
        (file.parent, *part.groups()) for file in chosen if (part := _SHARD.match(file.name))
    )
    for (folder, name, number), count in shards.items():
        if count < int(number):
            raise ValueError(
                f"{folder} has {count} of the {int(number)} files {name}-*-of-{number}; download "
                "the others too, or name those that are meant in data.path"
            )
    return chosen


def data_files(directory: Path) -> list[Path]:
    """Return the files with rows in order; hidden ones and checkpoints are passed over.

    Where there are rows in other formats too, .json files are taken for notes about them.
    """
    files = [
        file
        for file in sorted(directory.rglob("*"))
        if file_kind(file)[0] is not None
        and file.name not in _NO_ROWS
        and not is_passed_over(file, directory)
        # A link that leads nowhere is no reason to train on less: opening it says so.
        and (file.is_file() or (file.is_symlink() and not file.exists()))
    ]
    rows = [file for file in files if Path(file.name.lower()).suffix != ".json"]
    return rows or files


def is_passed_over(file: Path, within: Path | str) -> bool:
    """Whether a file is hidden or below a checkpoint, unless `within` says so itself."""
    named = Path(within).parts
    return any(_PASSED_OVER.fullmatch(part) and part not in named for part in file.parts)


def by_split(files: Sequence[Path], directory: Path) -> dict[str, list[Path]]:
    """Sort files by the split that their names say."""
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for file in files:
        name = _split_in_name(file.relative_to(directory))
        if name is None:
            unnamed.append(file)
        else:
            splits.setdefault(name, []).append(file)
    # Beside a named training split they are something else, such as lists of sources.
    return splits if "train" in splits or not unnamed else {"train": unnamed, **splits}


def choose_split(
    splits: Mapping[str, list[Path]], split: str | None, where: str, split_key: str
) -> list[Path]:
    """Return the files of a split, under any of its usual names; raises ValueError."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    usual = _SPLIT_OF.get(split or "", split)
    matching = [name for name in splits if _usual_name(name) == usual]
    if split is not None and split in splits:
        return splits[split]
    if split is not None and len(matching) == 1:
        return splits[matching[0]]
    # Never a guess: rows of a test split in training would pass for a better policy.
    lacks = "has several splits" if split is None else f"has no split {split}"
    if matching:
        lacks = f"has several splits {split}"
    listed = ", ".join(f"{name} ({len(files)} files)" for name, files in list(splits.items())[:20])
    raise ValueError(f"{where} {lacks}; it has {listed}; name one in {split_key}")


def _split_in_name(path: Path) -> str | None:
    """What a path below the data set's directory says: `train`, or a name such as `train_sft`."""
    stem = path.stem if file_kind(path)[1] is None else Path(path.stem).stem
    shard = _SHARD.fullmatch(stem)
    if shard is not None and _usual_name(shard[1]) is not None:
        return shard[1]
    # The file's own name is nearest to its rows, then the folder that it is in.
    for name in (stem, *reversed(path.parent.parts)):
        if (usual := _usual_name(name)) is not None:
            return usual
    return None


def _usual_name(name: str) -> str | None:
    """Example: _usual_name("gsm8k_dev") == "validation"; None for "devices"."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None)


def _described_in_readme(directory: Path) -> dict[str, Mapping[str, Any]]:
    """The subsets that a data set's card lists, by name; empty where it lists none."""
    readme = directory / "README.md"
    try:
        card = metadata_load(readme) if readme.is_file() else None
    except Exception as error:
        why = shortened(one_line(error), 200)
        raise ValueError(f"the head of {readme} is not readable YAML: {why}") from error
    listed = (card or {}).get("configs") or []
    return {str(config["config_name"]): config for config in listed if config.get("data_files")}


def _choose_subset(
    directory: Path, described: Mapping[str, Mapping[str, Any]], subset: str | None
) -> dict[str, list[Path]]:
    """The files of a subset in a card, by split."""
    default = [name for name, config in described.items() if config.get("default")]
    default += ["default"] if "default" in described else []
    default += list(described) if len(described) == 1 else []
    name = subset or next(iter(default), "")
    if name not in described:
        lacks = f"has no subset {subset}" if subset else "has several subsets"
        raise ValueError(
            f"{directory} {lacks}; it has {_listed(described)}; name one in data.subset"
        )
    listed = described[name]["data_files"]
    if isinstance(listed, dict):
        listed = [{"split": name, "path": paths} for name, paths in listed.items()]
    elif isinstance(listed, str) or not all(isinstance(entry, dict) for entry in listed):
        listed = [{"split": "train", "path": listed}]
    base = directory / (described[name].get("data_dir") or "")
    splits: dict[str, list[Path]] = {}
    for entry in listed:
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        matches = {match for p in patterns for match in glob(p, root_dir=base, recursive=True)}
        splits[entry["split"]] = [base / match for match in sorted(matches)]
    if not any(splits.values()):
        raise ValueError(f"{directory}: no file is there that README.md lists for subset {name}")
    return splits


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:20]) or "none"
