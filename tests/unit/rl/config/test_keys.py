"""What `--help` can say about the configuration."""

from rl.config.keys import all_keys
from rl.config.run import Config
from rl.sweep.arms import SweepConfig


def test_every_key_of_the_configuration_has_a_help():
    keys = [*all_keys(Config), *all_keys(SweepConfig)]
    assert len(keys) > 150
    assert [key.name for key in keys if not key.help] == []


def test_every_section_says_what_it_is():
    sections = {key.section for key in all_keys(Config) if key.section is not None}
    assert [section.__name__ for section in sections if not section.__doc__] == []
