"""The MODEL argument: a checkpoint, a registry name or `package.module:factory`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.contract_statement import (
    option_of,
)
from segdeploy.errors import InputError
from segdeploy.frameworks.read import is_source

if TYPE_CHECKING:
    pass

CHECKPOINT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelSpec:
    """The user's description of a network: MODEL, and the options that complete a network name."""

    model: str
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    size: tuple[int, int] | None = None
    take: str | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the contract that the user states. `contract_statement.read_statement` reads them
    from a file."""
    foreground: str | None = None
    """The class of a data set that a binary network finds; all others are the background."""
    source: str | None = None
    """Files of another framework that complete MODEL, as in `frameworks.read.read_network`."""

    @classmethod
    def of(cls, model: str | Path | ModelSpec) -> ModelSpec:
        """Return a spec unchanged, or create the spec of a bare MODEL."""
        return model if isinstance(model, ModelSpec) else cls(str(model))

    def refuse_options(self, *, may_restate: bool = False) -> None:
        """Refuse the options of a network's name for a file that defines these values itself.

        With `may_restate` the file's contract may be stated anew, as that of a checkpoint.

        Raises:
            InputError: if weights, classes, arguments or an output key are given with the file, or
                fields of the contract that cannot be restated.
        """
        named = ("weights", "num_classes", "take", "foreground")
        given = [option_of(name) for name in named if getattr(self, name)]
        given += [
            f"--{name}" if name in ("width", "stride") else "--arg" for name in self.arguments
        ]
        stated = () if may_restate else tuple(map(option_of, self.stated))
        if options := ", ".join(dict.fromkeys((*given, *stated))):
            mend = ""
            if stated and self.model.endswith(".onnx"):
                mend = (
                    f"; `segdeploy adopt {self.model} --like {self.model}` restates them in a copy"
                )
            raise InputError(
                f"{self.model}: the file defines its classes, weights and preprocessing; leave out "
                f"{options}{mend}"
            )

    @property
    def foreign_source(self) -> str | None:
        """The files of another framework that the network is read from, such as `hf:DIR`."""
        return self.source or (self.model if is_source(self.model) else None)

    @property
    def is_factory(self) -> bool:
        """Whether MODEL is `package.module:factory`."""
        is_name = ":" in self.model and not Path(self.model).exists()
        return is_name and self.model != self.foreign_source

    @property
    def has_own_network(self) -> bool:
        """Whether the network is the user's or a framework's, and not one of the registry."""
        return self.is_factory or is_source(self.model)

    @property
    def is_file(self) -> bool:
        """Whether MODEL is a checkpoint's path rather than a name.

        A bare name is never a path, even if the current folder has a file of that name.
        """
        if self.is_factory or self.model == self.foreign_source:
            return False
        return bool(Path(self.model).suffix) or os.sep in self.model
