"""`segdeploy predict`: segment one image, and write an overlay."""

from __future__ import annotations

from pathlib import Path

from segdeploy.errors import InputError
from segdeploy.files import check_output, write_atomically
from segdeploy.model_spec import ModelSpec
from segdeploy.models.errors import ModelInputError
from segdeploy.models.files import check_regular
from segdeploy.models.images import encoded, read_image
from segdeploy.models.metrics import pixels_of_classes
from segdeploy.output_lock import one_writer
from segdeploy.runtime.inference_options import ONE_RUN, InferenceOptions
from segdeploy.runtime.postprocess import label_colors, overlay, rgb_preview
from segdeploy.runtime.predictor import as_image, load

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@one_writer
def predict_file(
    model: str | Path | ModelSpec,
    image: Path,
    out: Path,
    *,
    labels: Path | None = None,
    backend: str | None = None,
    options: InferenceOptions = ONE_RUN,
) -> dict[str, float]:
    """Segment an image, write the overlay, and return each class's share of the pixels, 0..1.

    Raises:
        InputError, ModelInputError: for a model, image or output path that cannot be used.
    """
    check_output(out, tuple(_FORMATS), read_from=image)
    if labels is not None:
        check_output(labels, ".png", read_from=image)
        if labels.resolve() == out.resolve():
            raise InputError(f"{labels}: is also the path of the overlay; give two files")
    check_regular(image)
    spec = ModelSpec.of(model)
    with load(spec, backend=backend, default_size=size_for(spec, image)) as predictor:
        contract = predictor.contract
        pixels = as_image(image, contract)
        found = predictor.predict(pixels, options)
        ids = predictor.with_label_ids(found)
    write_atomically(
        out,
        encoded(
            overlay(
                rgb_preview(pixels),
                found,
                label_colors(contract.palette, bit_planes=contract.has_bit_planes),
            ),
            _FORMATS[out.suffix.lower()],
        ),
    )
    if labels is not None:
        write_atomically(labels, encoded(ids, "PNG"))
    counts = pixels_of_classes(found, len(contract.classes), bit_planes=contract.has_bit_planes)
    return {
        name: float(count / found.size)
        for name, count in zip(contract.classes, counts, strict=True)
    }


def size_for(spec: ModelSpec, image: Path) -> tuple[int, int] | None:
    """Return the image's size (H, W) for a network's name, which has no size of its own.

    None for an image that cannot be read as RGB: a network that takes others says so.
    """
    if spec.is_file or spec.size is not None:
        return None
    try:
        height, width, _ = read_image(image).shape
    except ModelInputError:  # told later, when the network's channels and dtype are known
        return None
    return height, width
