"""The network of an mmsegmentation configuration, built by the installed mmsegmentation 1.x."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.errors import InputError
from segdeploy.models.errors import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder")
# Entries of training, of weights in another file, and of the preprocessing, which the contract is;
# beside them the losses, and `_scope_`, by which mmengine imports a package of any name.
_NOT_BUILT = frozenset(
    ("auxiliary_head", "train_cfg", "init_cfg", "pretrained", "sampler", "data_preprocessor",
     "_scope_")
)  # fmt: skip
_FILES = (".pkl", ".pickle", ".pth", ".pt", ".bin", ".npy", ".npz", ".json", ".yaml", ".yml",
          ".safetensors", ".ckpt", ".txt", ".gz")  # fmt: skip
_LOG = logging.getLogger(__name__)


def is_installed() -> bool:
    """Return whether mmsegmentation is installed; it is not imported."""
    return find_spec("mmseg") is not None


def builder(
    model: Mapping[str, Any], state: Mapping[str, Tensor], config: Path, checkpoint: Path
) -> Callable[[int | None], nn.Module]:
    """Return the function that builds the network of the entry `model` of a configuration.

    The function takes another number of classes than the configuration's, or None. It loads the
    weights `state` of `checkpoint`; a classifier of other classes keeps random weights. Modules are
    taken from mmsegmentation's registry alone. No module may name a file or an address, since
    mmsegmentation reads pickles and fetches weights where its modules name some.

    Raises:
        InputError: for a segmentor or a decode head that gives no logits of every pixel.
    """
    kind = model.get("type")
    if kind not in _SEGMENTORS:
        raise InputError(
            f"{config}: the model {kind} is none of {', '.join(_SEGMENTORS)}; {_OWN_FACTORY}"
        )

    def build(classes: int | None) -> nn.Module:
        from segdeploy.models.checkpoint import load_weights

        network = _built(model, classes, config)
        given = dict(state)
        if classes is not None:
            wanted = network.state_dict()
            given |= {
                key: value
                for key, value in wanted.items()
                if key in state and state[key].shape != value.shape
            }
        for note in load_weights(network, given, str(checkpoint), f"mmseg:{kind}"):
            _LOG.info(note)
        return network

    return build


_OWN_FACTORY = "give your own factory: package.module:factory --from mmseg:CONFIG,CHECKPOINT"


def _built(model: Mapping[str, Any], classes: int | None, config: Path) -> nn.Module:
    """Build the backbone, the neck and the decode head without weights."""
    registry = _registry(config)
    described = _for_inference(model)
    known = {*registry.module_dict, *registry.parent.module_dict}
    for part in _parts(described):
        if isinstance(part, str):
            _check_text(part, config)
        # mmengine imports and calls any dotted name that it does not know.
        name = str(part["type"]) if isinstance(part, Mapping) and "type" in part else None
        if name is not None and name not in known:
            raise InputError(
                f"{config}: {name} is none of mmsegmentation's modules; {_OWN_FACTORY}"
            )
    if classes is not None:
        heads = described["decode_head"]
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            head |= {"num_classes": max(classes, 2), "out_channels": classes}
    try:
        whole = registry.build(described)
    except Exception as error:  # mmsegmentation raises what its modules raise
        raise InputError(
            f"{config}: mmsegmentation cannot build the network ({first_line(error)})"
        ) from error
    return _inference_network(whole, config)


def _check_text(text: str, config: Path) -> None:
    """Refuse a text that names a file or an address.

    Raises:
        InputError: as described.
    """
    if any(mark in text for mark in "/\\:") or text.lower().endswith(_FILES):
        raise InputError(
            f"{config}: a module of its network names the file or address {text!r:.80}, which is "
            f"not read; {_OWN_FACTORY}"
        )


def _registry(config: Path) -> Any:
    """Return mmsegmentation's registry of modules, filled.

    Raises:
        InputError: if mmsegmentation cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("mmseg.utils").register_all_modules(init_default_scope=True)
            return importlib.import_module("mmseg.registry").MODELS
    except Exception as error:  # mmsegmentation asserts the version of mmcv
        raise InputError(
            f"{config}: mmsegmentation is installed, and cannot be imported ({first_line(error)}); "
            f"install the mmcv that mmsegmentation needs, or {_OWN_FACTORY}"
        ) from error


def _for_inference(value: Any) -> Any:
    """Return a copy of a configuration with what the network needs for inference.

    Synchronized batch normalization becomes that of one device, which computes the same.
    """
    if isinstance(value, Mapping):
        kept = {
            key: _for_inference(inner)
            for key, inner in value.items()
            if key not in _NOT_BUILT and not str(key).startswith("loss_")
        }
        if kept.get("type") == "SyncBN":
            kept["type"] = "BN"
        if kept.get("type") == "TIMMBackbone":
            kept["pretrained"] = False  # True by default
        return kept
    if isinstance(value, (list, tuple)):
        return type(value)(map(_for_inference, value))
    return value


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value of a configuration, and every value and key inside."""
    yield value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _parts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _parts(inner)


def _inference_network(whole: Any, config: Path) -> nn.Module:
    """Return backbone, neck and decode head of mmsegmentation's segmentor as one network.

    The names of the parts stay, so the weights keep their keys.

    Raises:
        InputError: for a decode head that changes the logits after its last layer.
    """
    from torch import nn

    bases = [
        getattr(importlib.import_module(f"mmseg.models.decode_heads.{module}"), name)
        for module, name in (
            ("decode_head", "BaseDecodeHead"),
            ("cascade_decode_head", "BaseCascadeDecodeHead"),
        )
    ]
    heads = whole.decode_head if isinstance(whole.decode_head, nn.ModuleList) else None
    last = whole.decode_head if heads is None else heads[-1]
    own = [
        name
        for name in ("predict", "predict_by_feat")
        if getattr(type(last), name, None) not in [getattr(base, name) for base in bases]
    ]
    if own:
        raise InputError(
            f"{config}: the decode head {type(last).__name__} has a `{own[0]}` of its own, so its "
            f"last layer gives no logits of every pixel; {_OWN_FACTORY}"
        )

    class Segmentor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = whole.backbone
            if whole.with_neck:
                self.neck = whole.neck
            self.decode_head = whole.decode_head

        def forward(self, image: Tensor) -> Tensor:
            features = self.backbone(image)
            if whole.with_neck:
                features = self.neck(features)
            if heads is None:
                return self.decode_head(features)  # type: ignore[no-any-return]
            logits = heads[0](features)
            for head in heads[1:]:
                logits = head(features, logits)
            return logits  # type: ignore[no-any-return]

    return Segmentor()
