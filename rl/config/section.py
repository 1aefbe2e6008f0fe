"""What every section of the configuration is: a frozen pydantic model that refuses unknown keys."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_SECRET = re.compile(r"(^|[_-])(api_?key|hf_token|access_token|auth_token|password|secret)$", re.I)
_IN_ENVIRONMENT = "set it in the environment (OPENAI_API_KEY, HF_TOKEN, WANDB_API_KEY)"


def _without_secret(address: str) -> str:
    """The address, unless it holds a password: settings are stored, printed and logged."""
    parts = urlsplit(address)
    in_query = [pair for pair in parts.query.split("&") if _SECRET.search(pair.partition("=")[0])]
    if parts.username or parts.password or in_query:
        shown = f"{parts.scheme}://***@{parts.hostname}"
        raise ValueError(
            f"holds a user, a password or a key ({shown}), which would be stored with the "
            f"settings; leave it out and {_IN_ENVIRONMENT}"
        )
    return address


def refuse_secrets(settings: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError for a key or a password among settings, without its value."""
    for key, value in settings.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            refuse_secrets(value, f"{name}.")
        elif value and isinstance(value, str) and _SECRET.search(str(key)):
            raise ValueError(
                f"{name} is a secret, which would be stored with the settings; leave it out and "
                f"{_IN_ENVIRONMENT}"
            )


Share = Annotated[float, Field(ge=0, le=1)]
Address = Annotated[str, AfterValidator(_without_secret)]
"""Of a server, without a password in it."""


class Section(BaseModel):
    """The string under a field is its help, which `--help=KEY` prints; else that of its section."""

    model_config = ConfigDict(
        frozen=True,
        # A mistyped key must stop the run: a setting that is silently ignored costs the whole run.
        extra="forbid",
        use_attribute_docstrings=True,
        # YAML has .inf and .nan, which pass many bounds and mean nothing here.
        allow_inf_nan=False,
        # YAML reads run=2024 as a number, and a directory may well be called so.
        coerce_numbers_to_str=True,
    )
