"""What a user's files, settings and machine are safe from; pages that escape: unit/rl/show."""

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from rl.config.recipe import dump
from rl.config.run import Config
from rl.evaluate.__main__ import EvaluateKeys
from tests.fakes import config

ROOT = Path(__file__).parents[2]
SOURCES = [
    p for room in ("rl", "rollout", "policy", "rewards") for p in (ROOT / room).rglob("*.py")
]


def calls(path):
    """Dotted names of what a file calls, with the keyword arguments that are constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            constants = {
                k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
            }
            yield ast.unparse(node.func), constants


def test_no_file_is_unpickled():
    """Except what processes of this project wrote themselves: samples for the killable reward
    workers, and the optimizer's state in a checkpoint, whose manifest is checked first."""
    readers = {"pickle.load", "pickle.loads", "torch.load", "np.load", "numpy.load", "joblib.load"}
    readers |= {"cloudpickle.load", "cloudpickle.loads", "pd.read_pickle", "yaml.unsafe_load"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for name, constants in calls(path)
        if name in readers and not constants.get("weights_only")
    }
    assert found == {"rewards/text/workers.py", "policy/learner/reshard.py"}


def test_no_code_of_a_model_or_a_data_set_is_run():
    given = [
        constants["trust_remote_code"]
        for path in SOURCES
        for _, constants in calls(path)
        if "trust_remote_code" in constants
    ]
    assert len(given) > 10
    assert not any(given)
    texts = [path.read_text(encoding="utf-8") for path in SOURCES]
    assert not any("trust_remote_code=True" in text for text in texts)


def with_endpoint(url):
    return config(align={"labeller": {"endpoint": url}})


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@host:8000/v1", "http://hunter2@host/v1", "https://host/v1?api_key=hunter2"],
)
def test_a_password_in_an_address_is_refused_without_being_shown(url):
    for refused in (with_endpoint, lambda url: EvaluateKeys(endpoint=url, config="evaluate.yaml")):
        with pytest.raises(ValidationError, match="OPENAI_API_KEY") as error:
            refused(url)
        assert "hunter2" not in error.value.errors()[0]["msg"]
    assert with_endpoint("http://127.0.0.1:8000/v1").align.labeller.endpoint


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout__engine": {"hf_token": "hunter2"}},
        {"policy__deepspeed": {"monitor": {"wandb_api_key": "hunter2"}}},
        {"data__settings": {"password": "hunter2"}},
    ],
)
def test_a_secret_among_the_settings_is_refused_and_never_stored(changes):
    with pytest.raises(ValidationError, match="environment") as error:
        config(**changes)
    assert "hunter2" not in error.value.errors()[0]["msg"]


def test_what_is_stored_of_the_settings_has_nothing_from_the_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    whole = with_endpoint("http://127.0.0.1:8000/v1")
    assert isinstance(whole, Config)
    assert "hunter2" not in dump(whole)
