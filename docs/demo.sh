#!/usr/bin/env bash
# The whole path on one data set; `make demo` calls it. Variables: RUN, DATA, EPOCHS.
set -euo pipefail
RUN=${RUN:-runs/demo}
DATA=${DATA:-}
EPOCHS=${EPOCHS:-8}

mkdir -p "$RUN"
if [ -z "$DATA" ]; then
    DATA=$RUN/scenes
    [ -d "$DATA" ] || segdeploy data scenes "$DATA"
fi

step() { printf '\n$ %s\n' "$*"; "$@"; }

step segdeploy train deeplabv3 --data "$DATA" --size 180x240 --width 32 --stride 4 \
    --epochs "$EPOCHS" -o "$RUN/model.safetensors"
step segdeploy evaluate "$RUN/model.safetensors" --data "$DATA" --split val
step segdeploy export "$RUN/model.safetensors" -o "$RUN/model.onnx"
step segdeploy calibrate "$RUN/model.onnx" --data "$DATA" --split train -o "$RUN/model.int8.onnx"
for target in sm86 sm89; do
    step segdeploy build-engine "$RUN/model.onnx" --target $target -o "$RUN/model.$target.engine"
    step segdeploy build-engine "$RUN/model.int8.onnx" --target $target \
        -o "$RUN/model.int8.$target.engine"
done
step segdeploy bench "$RUN/model.onnx" "$RUN/model.int8.onnx" \
    --reference "$RUN/model.safetensors" --data "$DATA" --report "$RUN/report"
