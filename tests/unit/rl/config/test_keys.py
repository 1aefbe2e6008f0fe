"""What `--help` can say about the configuration."""

from rl.config.keys import keys_of
from rl.config.run import Config
from rl.sweep.arms import SweepConfig


def test_every_key_of_the_configuration_has_a_help():
    keys = [*keys_of(Config), *keys_of(SweepConfig)]
    assert len(keys) > 150
    assert [key.name for key in keys if not key.help] == []


def test_every_section_says_what_it_is():
    assert [key.name for key in keys_of(Config) if key.section == ""] == []
