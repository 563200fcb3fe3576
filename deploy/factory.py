"""Construction of a network from a registered name or the user's `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from segdeploy.errors import InputError

if TYPE_CHECKING:
    from torch import nn


Builder = Callable[[int | None, Mapping[str, Any], int], "nn.Module"]


def builder(model: str) -> Builder:
    """Return the function that builds the network from its classes, arguments and input channels.

    The number of classes is None for a user's network if it is not specified. A user's network
    takes the channels that it was written for.

    Raises:
        InputError, ModelInputError: if the name is not registered, or the factory is not found.
    """
    if ":" in model:
        factory = find_callable(model)
        return lambda classes, arguments, _: _call_factory(model, factory, classes, arguments)
    from segdeploy.models.registry import build, check_name

    check_name(model)
    return lambda classes, arguments, channels: build(model, classes or 0, arguments, channels)


def find_callable(reference: str) -> Callable[..., Any]:
    """Return the user's function `package.module:function`.

    Raises:
        InputError: if the module cannot be imported, or has no such function.
    """
    module_name, _, factory_name = reference.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        raise InputError(
            f"{reference}: module {module_name} cannot be imported "
            f"({type(error).__name__}: {error}); the current folder and PYTHONPATH are searched"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise InputError(f"{reference}: {module_name} has no callable '{factory_name}'")
    return cast("Callable[..., Any]", factory)


def _call_factory(
    reference: str,
    factory: Callable[..., Any],
    num_classes: int | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    from torch import jit, nn

    wanted = dict(arguments)
    if "num_classes" in wanted:
        raise InputError(f"{reference}: give num_classes as --num-classes, not as --arg")
    if num_classes is not None and _takes_num_classes(factory):
        wanted["num_classes"] = num_classes
    elif num_classes is None and _needs_num_classes(factory):
        raise InputError(
            f"{reference}: its num_classes has no default; give --num-classes N, or --data DIR"
        )
    try:
        network = factory(**wanted)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{reference}: the factory failed with {json.dumps(wanted)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if isinstance(network, jit.ScriptModule):
        raise InputError(
            f"{reference}: the factory returned a TorchScript module, whose code cannot be "
            "verified; return the nn.Module that it was made from"
        )
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{reference}: the factory returned {type(network).__name__}, not an nn.Module"
        )
    return network


def _needs_num_classes(factory: Callable[..., Any]) -> bool:
    try:
        wanted = inspect.signature(factory).parameters.get("num_classes")
    except (TypeError, ValueError):
        return False
    return wanted is not None and wanted.default is wanted.empty


def _takes_num_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a built-in callable may have no signature
        return False
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
