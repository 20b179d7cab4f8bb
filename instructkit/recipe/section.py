"""What every section of a recipe is, and the kinds of values that several of them hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
MOST = 2**31  # no count in a recipe reaches it
Positive = Annotated[int, Field(gt=0, lt=MOST)]
Name = Annotated[str, Field(pattern=r"\S")]  # what names a thing is not empty


class Section(BaseModel):
    """A mapping of a recipe; keys it does not know are faults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
