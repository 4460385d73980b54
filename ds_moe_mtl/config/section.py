"""What every section of a configuration is, and the types that its values have."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$")]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy's and PyTorch's generators take
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[
    float, Field(gt=0, le=1e6)
]  # losses are float32: what a weight makes of them too


def as_tuple(value: Any) -> Any:
    """Return YAML's list as the tuple that a frozen section holds."""
    return tuple(value) if isinstance(value, list) else value


def as_columns(value: Any) -> Any:
    """Return column names as a tuple; one name may stand without brackets."""
    return (value,) if isinstance(value, str) else as_tuple(value)


class Section(BaseModel):
    """A part of a run's configuration: frozen, with no unknown keys and no coerced types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
