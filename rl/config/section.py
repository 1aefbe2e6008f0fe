"""What every section of the configuration is: a frozen pydantic model that refuses unknown keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


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
