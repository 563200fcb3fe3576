"""Share of training time that is spent waiting for data, on generated frames of CamVid's size.

`python benchmarks/data_loading.py [DATA]` prints JSON; the share should stay under 0.1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.models import scenes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "scenes"
        if len(sys.argv) == 1:
            list(scenes.write_scenes(data, {"train": 96}, (360, 480)))
        for workers in (0, 1):
            for width, stride in ((16, 4), (32, 4), (16, 2)):
                spec = ModelSpec(
                    "deeplabv3", arguments={"width": width, "stride": stride}, size=(180, 240)
                )
                out = Path(folder) / "model.safetensors"
                report = segdeploy.train(spec, data, out, epochs=1, workers=workers)
                row = {
                    "workers": workers,
                    "width": width,
                    "stride": stride,
                    "images_per_second": round(report.images / report.seconds, 2),
                    "loading_share": round(report.loading_share, 4),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
