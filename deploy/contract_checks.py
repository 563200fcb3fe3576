"""The contradictions between the fields of a contract."""

from __future__ import annotations

from segdeploy.contract import (
    FIT_EXAMPLES,
    FITS,
    GRAY,
    LEAST,
    MOST,
    Contract,
    listed,
)
from segdeploy.models.bit_planes import IGNORED, MOST_PLANES


def contradiction(contract: Contract) -> str | None:
    """Return how fields of the contract contradict each other; None if they do not.

    The reason begins with the option that states the field.
    """
    checks = (
        *(_channel_contradiction, _normalization_contradiction),
        *(_fit_contradiction, _output_contradiction, _source_contradiction, _head_contradiction),
    )
    return next(filter(None, (check(contract) for check in checks)), None)


def _channel_contradiction(contract: Contract) -> str | None:
    channels = contract.channels
    shown = f"--channels {','.join(channels)}"
    if len(set(channels)) != len(channels):
        return f"{shown}: names a channel twice"
    missing = [name for name in channels if name not in contract.image_channels]
    if missing:
        return f"{shown}: the images lack {','.join(missing)} (--source-channels)"
    if contract.gray is not None and channels != GRAY:
        return f"--gray {contract.gray}: converts RGB to one channel; it goes with --channels gray"
    if contract.gray is not None and contract.source_channels is not None:
        return (
            f"--gray {contract.gray}: converts RGB images; leave --source-channels out, or leave "
            "--gray out if the images have the channel gray"
        )
    if contract.dtype != "uint8" and contract.resize.startswith("torchvision-uint8"):
        return (
            f"--resize {contract.resize}: resizes uint8 images, and the images are {contract.dtype}"
        )
    return None


def _normalization_contradiction(contract: Contract) -> str | None:
    count, kind = len(contract.channels), contract.normalization
    for name in ("mean", "std"):
        values = getattr(contract, name)
        if len(values) != count:
            return (
                f"--{name} {listed(values)}: has {len(values)} values, and the network takes "
                f"{count} channel{'s' * (count != 1)} ({','.join(contract.channels)})"
            )
    if not all(LEAST <= value <= MOST for value in contract.std):
        return f"--std {listed(contract.std)}: must be in {LEAST:g}..{MOST:g}"
    if not all(abs(value) <= MOST for value in contract.mean):
        return f"--mean {listed(contract.mean)}: must be in {-MOST:g}..{MOST:g}"
    if not LEAST <= contract.scale <= MOST:
        return f"--rescale {contract.scale:g}: must be in {LEAST:g}..{MOST:g}"
    trivial = set(contract.mean) <= {0} and set(contract.std) <= {1}
    if kind in ("none", "per-image") and not trivial:
        return f"--normalization {kind}: has no mean and no standard deviation; leave them out"
    if kind == "none" and contract.scale != 1:
        return "--normalization none: has no scale; leave --rescale out"
    largest = contract.scale * {"uint8": 255, "uint16": 65535}.get(contract.dtype, 0)
    for name in ("mean", "std") if largest else ():
        values = getattr(contract, name)
        # Values of another unit: a mean of 123.7 for values of 0..1, which would give labels
        # without meaning.
        if any(abs(value) > 2 * largest for value in values):
            return (
                f"--{name} {listed(values)}: is beyond the values, which the scale brings to "
                f"0..{largest:g}; give --{name}-255 for values of 0..255, or another --rescale"
            )
    return None


def _output_contradiction(contract: Contract) -> str | None:
    if contract.upsampling is not None and contract.output != "labels":
        return f"the upsampling {contract.upsampling} goes with --output labels"
    return None


def _source_contradiction(contract: Contract) -> str | None:
    if contract.source_size is None:
        return None
    shown = f"--source-size {contract.source_size[0]}x{contract.source_size[1]}"
    if contract.input_dtype != "uint8":
        return f"{shown}: goes with --preprocess, and with images of uint8"
    if contract.bounds is not None:
        return f"{shown}: a graph that resizes images of one size is static; leave --dynamic out"
    return None


def _head_contradiction(contract: Contract) -> str | None:
    threshold, least = contract.threshold, contract.min_confidence
    if contract.head == "multilabel":
        return _multilabel_contradiction(contract)
    if least is not None and not 0 < least < 1:
        return f"--min-confidence {least:g}: is a probability, above 0 and below 1"
    ids = contract.label_ids
    if ids is not None and contract.classes and len(ids) != len(contract.classes):
        return (
            f"--label-ids {listed(ids)}: has {len(ids)} ids for {len(contract.classes)} classes; "
            "state one for each class"
        )
    if ids is not None and contract.ignore_index in ids:
        return f"--label-ids {listed(ids)}: {contract.ignore_index} is the id of ignored pixels"
    if least is not None and contract.output == "labels":
        return (
            f"--min-confidence {least:g}: needs the probabilities, and the graph gives labels; "
            "leave --output labels out"
        )
    if contract.head != "binary":
        if threshold is None or not contract.classes:  # the network's output tells the head later
            return None
        return (
            f"--threshold {_listed(threshold)}: goes with a binary network (--num-classes 1, or "
            "--data and --foreground) or with --head multilabel"
        )
    if len(contract.classes) not in (0, 2):
        return (
            f"a binary network has two classes, and there are {len(contract.classes)}; give "
            "--data with --foreground, or --num-classes 1, or leave --head binary out"
        )
    if isinstance(threshold, tuple):
        return f"--threshold {_listed(threshold)}: a binary network has one threshold"
    return _threshold_contradiction(contract)


def _multilabel_contradiction(contract: Contract) -> str | None:
    threshold, count = contract.threshold, len(contract.classes)
    if count > MOST_PLANES:
        return (
            f"--head multilabel: the labels are bit planes in a byte, of at most {MOST_PLANES} "
            f"classes, and there are {count}"
        )
    if count and contract.ignore_index != IGNORED:
        return f"--head multilabel: its ignore index is {IGNORED}, and not {contract.ignore_index}"
    if isinstance(threshold, tuple) and count and len(threshold) != count:
        return (
            f"--threshold {listed(threshold)}: has {len(threshold)} values for {count} classes; "
            "give one for each class, or one for all"
        )
    for name in ("min_confidence", "label_ids"):
        if getattr(contract, name) is not None:
            return f"--{name.replace('_', '-')}: goes with one class for a pixel, not multilabel"
    return _threshold_contradiction(contract)


def _threshold_contradiction(contract: Contract) -> str | None:
    threshold = contract.threshold
    if threshold is None:
        return None
    if not all(0 < one < 1 for one in _as_tuple(threshold)):
        return f"--threshold {_listed(threshold)}: is a probability, above 0 and below 1"
    return None


def _as_tuple(threshold: float | tuple[float, ...]) -> tuple[float, ...]:
    return threshold if isinstance(threshold, tuple) else (threshold,)


def _listed(threshold: float | tuple[float, ...]) -> str:
    return listed(_as_tuple(threshold))


def _fit_contradiction(contract: Contract) -> str | None:
    fit, shown = contract.fit, f"{contract.size[0]}x{contract.size[1]}"
    for name, example in FIT_EXAMPLES.items():
        value, option = getattr(contract, name), f"--{name.replace('_', '-')}"
        if name in _fields_of(fit):
            if value is None and name in ("edge", "pad", "pad_multiple"):
                return f"--fit {fit}: needs {option}, such as {option} {example}"
        elif value is not None:
            if name == "pad" and contract.pad_normalized:
                option = "--pad-normalized"
            goes = " or ".join(one for one in FITS if name in _fields_of(one))
            given = listed(value) if isinstance(value, tuple) else str(value)
            return f"{option} {given}: goes with --fit {goes}"
    edge, limit, step = contract.edge or 0, contract.longest_edge, contract.pad_multiple
    side_step = contract.side_multiple or 1
    rounded = -(-edge // side_step) * side_step
    if limit is not None and limit < edge:
        return f"--longest-edge {limit}: is below --edge {edge}, the shorter one"
    if fit == "shortest-edge,center-crop" and rounded < min(contract.size):
        return f"--edge {edge}: is below the crop of {shown}, which would lie outside the image"
    if fit == "longest-edge,pad" and rounded > max(contract.size):
        made = f" becomes {rounded} pixels," if rounded != edge else ""
        return f"--edge {edge}:{made} is above the input of {shown}, so no image would fit"
    if step and any(side % step for side in contract.size):
        return f"--pad-multiple {step}: does not divide the input size {shown}"
    return _pad_contradiction(contract)


def _fields_of(fit: str) -> set[str]:
    """Return the fields that a fit takes."""
    steps = fit.split(",")
    found: set[str] = set()
    if steps[0].endswith("-edge"):
        found |= {"edge", "rounding", "side_multiple"}
    if steps[0] == "shortest-edge":
        found.add("longest_edge")
    if {"letterbox", "center-crop"} & set(steps):
        found.add("rounding")
    if {"letterbox", "pad", "pad-to-multiple"} & set(steps):
        found |= {"pad", "pad_side"}
    if "pad-to-multiple" in steps:
        found.add("pad_multiple")
    return found


def _pad_contradiction(contract: Contract) -> str | None:
    pad = contract.pad
    if pad is None:
        return "--pad-normalized: goes with a fit that pads" if contract.pad_normalized else None
    option = "--pad-normalized" if contract.pad_normalized else "--pad"
    shown = f"{option} {listed(pad)}"
    if len(pad) != len(contract.channels):
        return (
            f"{shown}: has {len(pad)} values, and the network takes {len(contract.channels)} "
            "channels"
        )
    if not all(abs(value) <= MOST for value in pad):
        return f"{shown}: must be in {-MOST:g}..{MOST:g}"
    if contract.pad_normalized:
        if contract.layout == "NHWC" and contract.source_size is None:
            return f"{shown}: the graph normalizes, so the padding lies before it; give --pad"
        return None
    most = {"uint8": 255, "uint16": 65535}.get(contract.dtype)
    if most and not all(0 <= one <= most for one in pad):
        return f"{shown}: must be in 0..{most}, before normalization"
    takes_padded = contract.input_dtype == "uint8" and contract.source_size is None
    if takes_padded and not all(float(one).is_integer() for one in pad):
        return f"{shown}: the graph takes uint8 images, so the padding is a whole number"
    return None
