"""ONNX files of other tools: `adopt` runs each once, and brings its ends to a contract's form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.version_converter import convert_version
from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
from PIL import Image
from torch.nn import functional

import segdeploy
from segdeploy.adoption.statement import Statement
from segdeploy.errors import InputError
from segdeploy.onnx_graph.input_normalization import input_normalization
from segdeploy.onnx_graph.model_file import load_onnx, opset_of
from segdeploy.onnx_graph.opset import with_opset
from segdeploy.profiles import Profile
from segdeploy.proof.graph_session import run_graph

from .conftest import Ran, check_one_line

SIZE, CLASSES = (24, 32), 5
HALF = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
WEIGHT = np.random.default_rng(1).normal(0, 1, (CLASSES, 3, 3, 3)).astype(np.float32)
PLANES = {"strides": [1, 1], "pads": [2, 2, 2, 2], "dilations": [2, 2]}


def expected() -> np.ndarray:
    """The labels of PyTorch's convolution for the normalized image."""
    planes = torch.from_numpy((IMAGE.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5).float()
    scores = functional.conv2d(planes, torch.from_numpy(WEIGHT), padding=2, dilation=2)
    return scores[0].argmax(0).numpy()


LABELS = expected()


def value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    before: list[onnx.NodeProto],
    after: list[onnx.NodeProto],
    taken: tuple[int, list[Any]] = (TensorProto.FLOAT, [1, 3, *SIZE]),
    given: tuple[int, list[Any] | None] = (TensorProto.FLOAT, [1, CLASSES, *SIZE]),
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A dilated convolution from `planes` to `scores`, with nodes before and after."""
    conv = helper.make_node("Conv", ["planes", "w"], ["scores"], "conv", **PLANES)
    nodes = [*before, conv, *after]
    held = {"w": WEIGHT, **(weights or {})}
    graph = helper.make_graph(
        nodes,
        "foreign",
        [value("image", *taken)],
        [value(nodes[-1].output[0], *given)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(operator: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose last name is its output."""
    return helper.make_node(operator, list(names[:-1]), [names[-1]], names[-1], **attributes)


START = [node("Identity", "image", "planes")]
NORMALIZED = {"scale": np.float32(2 / 255), "shift": np.float32(1)}
NORMALIZE = [node("Mul", "floats", "scale", "scaled"), node("Sub", "scaled", "shift", "planes")]


def plain() -> onnx.ModelProto:
    return model_of(START, [node("Identity", "scores", "y")])


def old_ir() -> onnx.ModelProto:
    """IR version 3 lists every weight as an input."""
    model = model_of(START, [node("Identity", "scores", "y")], opset=8)
    model.ir_version = 3
    model.graph.input.append(value("w", TensorProto.FLOAT, list(WEIGHT.shape)))
    return model


def unsorted() -> onnx.ModelProto:
    model = plain()
    nodes = list(model.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def several() -> onnx.ModelProto:
    model = plain()
    model.graph.node.append(node("Relu", "planes", "aux"))
    model.graph.output.append(value("aux", TensorProto.FLOAT, [1, 3, *SIZE]))
    return model


def labels_of(kind: int, **attributes: int) -> onnx.ModelProto:
    after = [node("ArgMax", "scores", "best", axis=1, **attributes)]
    after.append(node("Cast", "best", "y", to=kind))
    shape = [1, *SIZE] if attributes.get("keepdims") == 0 else [1, 1, *SIZE]
    return model_of(START, after, given=(kind, shape))


def channels_last() -> onnx.ModelProto:
    before = [node("Transpose", "image", "planes", perm=[0, 3, 1, 2])]
    after = [node("Transpose", "scores", "y", perm=[0, 2, 3, 1])]
    return model_of(
        before,
        after,
        (TensorProto.FLOAT, [1, *SIZE, 3]),
        (TensorProto.FLOAT, [1, *SIZE, CLASSES]),
    )


def bytes_first() -> onnx.ModelProto:
    """uint8 `(N, C, H, W)`, normalized in the graph."""
    before = [node("Cast", "image", "floats", to=TensorProto.FLOAT), *NORMALIZE]
    after = [node("Identity", "scores", "y")]
    return model_of(before, after, (TensorProto.UINT8, [1, 3, *SIZE]), weights=NORMALIZED)


def bytes_last() -> onnx.ModelProto:
    """uint8 `(N, H, W, C)` with the Transpose before the Cast, which TensorRT refuses."""
    before = [
        node("Transpose", "image", "turned", perm=[0, 3, 1, 2]),
        node("Cast", "turned", "floats", to=TensorProto.FLOAT),
        *NORMALIZE,
    ]
    after = [node("Identity", "scores", "y")]
    return model_of(before, after, (TensorProto.UINT8, [1, *SIZE, 3]), weights=NORMALIZED)


def half() -> onnx.ModelProto:
    conv = helper.make_node("Conv", ["image", "w"], ["y"], "conv", **PLANES)
    weight = numpy_helper.from_array(WEIGHT.astype(np.float16), "w")
    kind = TensorProto.FLOAT16
    graph = helper.make_graph(
        [conv],
        "half",
        [value("image", kind, [1, 3, *SIZE])],
        [value("y", kind, [1, CLASSES, *SIZE])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def without_shape() -> onnx.ModelProto:
    return model_of(START, [node("Identity", "scores", "y")], given=(TensorProto.FLOAT, [None] * 4))


def space_to_batch() -> onnx.ModelProto:
    """The atrous convolution of TensorFlow: a convolution of maps of every second pixel."""
    exchanged = {"perm": [1, 0, 2, 3]}
    before = [
        node("Transpose", "image", "turned", **exchanged),
        node("Pad", "turned", "around", "padded"),
        node("SpaceToDepth", "padded", "split", blocksize=2),
        node("Transpose", "split", "planes", **exchanged),
    ]
    after = [
        node("Transpose", "scores", "phases", **exchanged),
        node("DepthToSpace", "phases", "merged", blocksize=2),
        node("Transpose", "merged", "y", **exchanged),
    ]
    around = np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    model = model_of(before, after, weights={"around": around})
    del next(one for one in model.graph.node if one.op_type == "Conv").attribute[:]
    return model


def softmax() -> onnx.ModelProto:
    return model_of(START, [node("Softmax", "scores", "y", axis=1)])


def normalized(*steps: tuple[str, list[float] | float]) -> onnx.ModelProto:
    """Float `(N, C, H, W)`, normalized in the graph by `steps`, one constant each."""
    before, weights, last = [], {}, "image"
    for at, (operator, constant) in enumerate(steps):
        name = "planes" if at == len(steps) - 1 else f"step{at}"
        values = np.asarray(constant, np.float32)
        weights[f"k{at}"] = values.reshape(1, -1, 1, 1) if values.ndim else values
        before.append(node(operator, last, f"k{at}", name))
        last = name
    return model_of(before, [node("Identity", "scores", "y")], weights=weights)


def batch_normalized(mean: float, deviation: float) -> onnx.ModelProto:
    """Float `(N, C, H, W)`; a BatchNormalization that makes -1 to 1 of the images' range."""
    top = 255 if mean > 2 else 1
    gain, shift = np.full(3, 2 * deviation / top), np.full(3, 2 * mean / top - 1)
    weights = {"gain": gain, "shift": shift, "mean": np.full(3, mean),
               "var": np.full(3, deviation**2)}  # fmt: skip
    before = [node("BatchNormalization", "image", "gain", "shift", "mean", "var", "planes",
                   epsilon=0.0)]  # fmt: skip
    held = {name: one.astype(np.float32) for name, one in weights.items()}
    return model_of(before, [node("Identity", "scores", "y")], weights=held)


def integers() -> onnx.ModelProto:
    """int32 `(N, C, H, W)`, normalized in the graph."""
    before = [node("Cast", "image", "floats", to=TensorProto.FLOAT), *NORMALIZE]
    after = [node("Identity", "scores", "y")]
    return model_of(before, after, (TensorProto.INT32, [1, 3, *SIZE]), weights=NORMALIZED)


KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...], str, str]] = {
    "plain": (plain, HALF, "logits", ""),
    "old IR": (old_ir, HALF, "logits", "raised its IR version from 3 to 4"),
    "unsorted": (unsorted, HALF, "logits", "sorted its nodes"),
    "several outputs": (
        *(several, (*HALF, "--take", "y"), "logits"),
        "took the output y; cut off aux",
    ),
    "int64 labels": (
        lambda: labels_of(TensorProto.INT64, keepdims=0),
        *(HALF, "labels", "converted its labels from int64 to uint8"),
    ),
    "int32 labels with a channel axis": (
        lambda: labels_of(TensorProto.INT32, keepdims=1),
        *(HALF, "labels", "removed the channel axis of its labels"),
    ),
    "labels as floats": (
        lambda: labels_of(TensorProto.FLOAT, keepdims=0),
        *(HALF, "labels", "converted its labels from float32 to uint8"),
    ),
    "float NHWC in and out": (
        *(channels_last, HALF, "logits"),
        "transposed its scores (N, H, W, C) to (N, C, H, W)",
    ),
    "uint8 NCHW": (bytes_first, (), "logits", "converted its uint8 input to float32"),
    "uint8 NHWC": (bytes_last, (), "logits", "exchanged a Transpose and the Cast after it"),
    "int32 NCHW": (integers, (), "logits", "converted its int32 input to float32"),
    "float16": (half, HALF, "logits", ""),
    "output without shape": (without_shape, HALF, "logits", ""),
    "0 to 255": (
        lambda: normalized(("Sub", 127.5), ("Div", [127.5] * 3)),
        *((), "logits", "(arithmetic: mean 127.5,127.5,127.5, std 127.5,127.5,127.5), and so"),
    ),
    "0 to 255, scaled": (
        lambda: normalized(("Mul", 1 / 255), ("Add", -0.5), ("Mul", [2.0] * 3)),
        *((), "logits", "and so takes images of 0 to 255"),
    ),
    "0 to 1": (
        lambda: normalized(("Sub", [0.5] * 3), ("Div", 0.5)),
        *((), "logits", "std 0.5,0.5,0.5), and so takes images of 0 to 1"),
    ),
    "BatchNormalization of 0 to 255": (
        lambda: batch_normalized(110, 60),
        *((), "logits", "(BatchNormalization: mean 110,110,110, std 60,60,60), and so takes image"),
    ),
    "BatchNormalization of 0 to 1": (
        lambda: batch_normalized(0.45, 0.25),
        *((), "logits", "and so takes images of 0 to 1"),
    ),
    "space-to-batch": (space_to_batch, HALF, "logits", "conv: dilation 2x2, instead of a split"),
    "softmax": (softmax, HALF, "probabilities", "its output is taken as probabilities"),
}


@pytest.mark.parametrize("name", KINDS)
def test_foreign_onnx_gives_the_labels_of_pytorch(
    run: Callable[..., Ran], name: str, tmp_path: Path, tensorrt_rtx: object
) -> None:
    make, words, output, said = KINDS[name]
    (tmp_path / "x.onnx").write_bytes(make().SerializeToString())
    out = tmp_path / "adopted.onnx"
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *words, "-o", out)
    assert ran.code == 0, ran.err
    assert said in ran.err
    assert segdeploy.inspect(out).contract.output == output
    onnx.checker.check_model(load_onnx(out), full_check=True)
    assert segdeploy.inspect(out).dilations == (2,)
    with segdeploy.load(out) as network:
        least = 0.99 if name == "float16" else 1
        assert np.mean(network.predict(IMAGE) == LABELS) >= least
    if name == "float16":
        assert segdeploy.inspect(out).contract.precision == "fp16"
    else:
        segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86"])


def test_foreign_onnx_inspect_says_what_adopt_needs(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    for make, lines in (
        (several, ("input image: float (1, 3, 24, 32)", "output aux: float (1, 3, 24, 32)",
                   "--take NAME; --mean and --std, or --normalization none", "opset 18")),
        (bytes_last, ("input image: uint8 (1, 24, 32, 3)", "needs --data DIR or --num-classes")),
    ):  # fmt: skip
        (tmp_path / "x.onnx").write_bytes(make().SerializeToString())
        ran = run("inspect", tmp_path / "x.onnx")
        for line in lines:
            assert line in ran.out


@pytest.mark.parametrize("alignment", ["half-pixel", "align-corners"])
def test_foreign_onnx_smaller_maps_are_enlarged_in_the_graph(
    run: Callable[..., Ran], alignment: str, tmp_path: Path
) -> None:
    after = [node("AveragePool", "scores", "y", kernel_shape=[2, 2], strides=[2, 2])]
    small = (TensorProto.FLOAT, [1, CLASSES, SIZE[0] // 2, SIZE[1] // 2])
    (tmp_path / "x.onnx").write_bytes(model_of(START, after, given=small).SerializeToString())
    words = ("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "-o")
    ran = run(*words, tmp_path / "m.onnx")
    check_one_line(ran, "gives maps of 12x16 for an input of 24x32", "--upsampling half-pixel")
    ran = run(*words, tmp_path / "m.onnx", "--upsampling", alignment)
    assert ran.code == 0, ran.err
    planes = torch.from_numpy((IMAGE.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5).float()
    scores = functional.conv2d(planes, torch.from_numpy(WEIGHT), padding=2, dilation=2)
    wide = functional.interpolate(
        functional.avg_pool2d(scores, 2),
        SIZE,
        mode="bilinear",
        align_corners=alignment == "align-corners",
    )
    with segdeploy.load(tmp_path / "m.onnx") as network:
        np.testing.assert_allclose(network.logits(IMAGE), wide[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "QOperator", "QDQ"])
def test_foreign_onnx_quantized_files_are_int8(
    run: Callable[..., Ran], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(plain().SerializeToString())
    if kind == "dynamic":
        quantize_dynamic(tmp_path / "x.onnx", tmp_path / "q.onnx")
    else:

        class Reader:
            def __init__(self) -> None:
                rng = np.random.default_rng(0)
                self.left = [rng.normal(0, 1, (1, 3, *SIZE)).astype(np.float32) for _ in range(3)]

            def get_next(self) -> dict[str, np.ndarray] | None:
                return {"image": self.left.pop()} if self.left else None

        quantize_static(
            *(tmp_path / "x.onnx", tmp_path / "q.onnx", Reader()),
            quant_format=getattr(QuantFormat, kind),
        )
    out = tmp_path / "m.onnx"
    ran = run("adopt", tmp_path / "q.onnx", "--num-classes", CLASSES, *HALF, "-o", out)
    assert ran.code == 0, ran.err
    assert segdeploy.inspect(out).contract.precision == "int8"
    with segdeploy.load(out) as network:
        assert np.mean(network.predict(IMAGE) == LABELS) > 0.9


def test_foreign_onnx_what_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    numbers = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def refused(model: onnx.ModelProto, reason: str, **stated: Any) -> None:
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        stated = {"num_classes": CLASSES, "preprocessing": numbers, **stated}
        with pytest.raises(InputError, match=reason) as caught:
            segdeploy.adopt(tmp_path / "x.onnx", Statement(**stated), out=tmp_path / "m.onnx")
        assert "export" not in str(caught.value)  # the user has the file alone
        assert not (tmp_path / "m.onnx").exists()

    refused(several(), r"has 2 outputs \(y \(1, 5, 24, 32\), aux .*--take NAME")
    refused(several(), "--take z: no such output; the graph has y", take="z")
    refused(plain(), r"gives an output of shape \(1, 5, 24, 32\), and 4 channels", num_classes=4)
    ids = labels_of(TensorProto.INT64, keepdims=0)
    refused(ids, "are the largest of 5 scores, and 4 classes are stated", num_classes=4)
    refused(
        ids,
        "which its own threshold has decided; leave --threshold out",
        preprocessing={**numbers, "head": "multilabel", "threshold": 0.3},
    )
    refused(ids, "gives labels .* not logits; leave --output out", output="logits")
    refused(softmax(), "so its output is probabilities", output="logits")
    refused(plain(), "so its output is logits", output="probabilities")
    refused(plain(), "gives scores .* not labels", output="labels")
    refused(bytes_first(), "--normalization none: has no mean")
    refused(plain(), "cannot be run on an image", size=(25, 32))
    with pytest.raises(InputError, match="is 60000x60000, more than 100000000 pixels"):
        segdeploy.adopt(
            tmp_path / "x.onnx",
            Statement(num_classes=CLASSES, preprocessing=numbers, size=(60000, 60000)),
            out=tmp_path / "m.onnx",
        )
    four = model_of(
        START,
        [node("Identity", "scores", "y")],
        (TensorProto.FLOAT, [4, 3, *SIZE]),
        (TensorProto.FLOAT, [4, CLASSES, *SIZE]),
    )
    refused(four, "takes batches of 4 alone")
    brain = model_of(
        [node("Cast", "image", "planes", to=TensorProto.FLOAT)],
        [node("Identity", "scores", "y")],
        (TensorProto.BFLOAT16, [1, 3, *SIZE]),
    )
    refused(brain, "its input is bfloat16; an image is one of float, ")
    endless = model_of(START, [node("Log", "scores", "y")])
    refused(endless, "gives NaN or infinity for an image of noise")


# --- older opsets ---------------------------------------------------------------------------------


def enlarged(opset: int, mode: str) -> onnx.ModelProto:
    """A graph of an old opset, which enlarges a map by two: by Upsample, or by a Resize."""
    pool = node("AveragePool", "scores", "small", kernel_shape=[2, 2], strides=[2, 2])
    factors = {"factors": np.array([1, 1, 2, 2], np.float32)}
    if opset < 10:
        last = node("Upsample", "small", "factors", "y", mode=mode)
    elif opset < 11:
        last = node("Resize", "small", "factors", "y", mode=mode)
    else:
        last = node("Resize", "small", "region", "factors", "y", mode=mode)
        factors["region"] = np.zeros(8, np.float32)
    return model_of(START, [pool, last], weights=factors, opset=opset)


def image_folder(root: Path) -> Path:
    """A folder of smooth images."""
    folder = root / "frames"
    folder.mkdir()
    for at in range(6):
        coarse = np.random.default_rng(at).integers(0, 256, (4, 5, 3)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        smooth.save(folder / f"{at}.png")
    return folder


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("opset", [9, 10, 11, 13, 16, 19])
def test_foreign_onnx_an_older_opset_is_converted_for_int8_with_equal_output(
    opset: int, mode: str, tmp_path: Path
) -> None:
    """ONNX Runtime runs the file before and after; onnx's converter alone moves linear pixels."""
    before = enlarged(opset, mode)
    after = with_opset(before, 20)
    assert opset_of(after) == 20
    onnx.checker.check_model(after, full_check=True)
    planes = np.random.default_rng(0).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    found = [run_graph(one, [planes])[0] for one in (before, after)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_foreign_onnx_of_an_older_opset_goes_to_int8_and_to_an_engine(
    run: Callable[..., Ran], tmp_path: Path, tensorrt_rtx: object
) -> None:
    (tmp_path / "x.onnx").write_bytes(enlarged(9, "linear").SerializeToString())
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF,
              "-o", tmp_path / "a.onnx")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = run("calibrate", tmp_path / "a.onnx", "--data", image_folder(tmp_path),
              "-o", tmp_path / "q.onnx")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "converted from opset 9 to 20, with equal output" in ran.out + ran.err
    assert opset_of(load_onnx(tmp_path / "q.onnx")) == 20
    segdeploy.build_engine(tmp_path / "q.onnx", tmp_path / "m.engine", targets=["sm86"])


def test_foreign_onnx_a_conversion_that_fails_or_changes_the_output_is_refused(
    run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = enlarged(9, "linear")
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    adopted, out = tmp_path / "a.onnx", tmp_path / "q.onnx"
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "-o", adopted)
    assert ran.code == 0, ran.err
    words = ("calibrate", adopted, "--data", image_folder(tmp_path), "-o", out)
    told = "has opset 9, int8 needs opset 20, and the conversion failed ("
    with monkeypatch.context() as patched:  # onnx's converter alone moves the pixels by a half
        patched.setattr("segdeploy.commands.calibrate.with_opset", convert_version)
        check_one_line(run(*words), told, "use --precision fp16, which needs no conversion")
    graph = load_onnx(adopted)
    graph.graph.node[-1].op_type = "Unknown"
    with pytest.raises(ValueError, match="Unknown"):
        with_opset(graph, 20)
    assert not out.exists()


@pytest.mark.parametrize(
    "model",
    [
        batch_normalized(0.0, 1.0),
        batch_normalized(-0.15, 1.2),
        batch_normalized(-0.15, 0.5),
        normalized(("Mul", [0.458, 0.448, 0.45]), ("Add", [-0.03, -0.088, -0.188])),
        normalized(("Mul", 0.25)),
        normalized(("Mul", -1 / 127.5), ("Add", 1.0)),
    ],
)
def test_foreign_onnx_a_normalization_of_normalized_images_tells_nothing(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    """Mean 0 and deviation 1 are those of images that were normalized before, by any constants."""
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="its normalization is unknown; give --mean and --std"):
        segdeploy.adopt(
            tmp_path / "x.onnx", Statement(num_classes=CLASSES), out=tmp_path / "m.onnx"
        )


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (normalized(("Sub", 127.5), ("Div", 2.0)), ((127.5,), (2.0,))),
        (normalized(("Add", [1.0, 2, 3]), ("Mul", 0.5)), ((-1, -2, -3), (2, 2, 2))),
        (batch_normalized(0.5, 0.0), None),
        (plain(), None),
        (bytes_last(), ((127.5,), (127.5,))),
    ],
)
def test_foreign_onnx_the_arithmetic_at_the_input_is_read(
    model: onnx.ModelProto, found: tuple | None
) -> None:
    read = input_normalization(model)
    if found is None:
        assert read is None
    else:
        assert read is not None
        np.testing.assert_allclose((read.mean, read.std), found, rtol=1e-6)


# --- dynamic sizes --------------------------------------------------------------------------------


def dynamic(kind: str) -> onnx.ModelProto:
    """A graph that states dynamic axes; but for `sound` it holds what its trace saw."""
    taken = (TensorProto.FLOAT, ["b", 3, "h", "w"])
    given = (TensorProto.FLOAT, ["b", CLASSES, "h", "w"])
    after, weights = [node("Identity", "scores", "y")], {}
    if kind == "even":  # halved, and doubled again
        after = [
            node("AveragePool", "scores", "small", kernel_shape=[2, 2], strides=[2, 2]),
            node("Resize", "small", "", "factors", "y", mode="nearest"),
        ]
        weights = {"factors": np.array([1, 1, 2, 2], np.float32)}
    if kind == "size":
        after = [node("Resize", "scores", "", "", "size", "y", mode="nearest")]
        weights = {"size": np.array([1, CLASSES, *SIZE], np.int64)}
    if kind == "first":  # every image gets the scores of the first
        after = [
            node("Gather", "scores", "axes", "first", axis=0),
            node("Shape", "scores", "shape"),
            node("Expand", "first", "shape", "y"),
        ]
        weights = {"axes": np.array([0], np.int64)}
    if kind == "fourteen":  # patches of 14, as of ViT-14
        after = [
            node("AveragePool", "scores", "small", kernel_shape=[14, 14], strides=[14, 14]),
            node("Resize", "small", "", "factors", "y", mode="nearest"),
        ]
        weights = {"factors": np.array([1, 1, 14, 14], np.float32)}
    if kind == "batch":  # the mean of all images
        after = [
            node("ReduceMean", "scores", "axes", "mean", keepdims=1),
            node("Sub", "scores", "mean", "y"),
        ]
        weights = {"axes": np.array([0], np.int64)}
    return model_of(START, after, taken, given, weights)


def test_foreign_onnx_dynamic_sizes_are_stated_run_and_built(
    run: Callable[..., Ran], tmp_path: Path, tensorrt_rtx: object
) -> None:
    sizes = ("--min", "1x16x16", "--opt", f"1x{SIZE[0]}x{SIZE[1]}", "--max", "2x47x64")
    for kind, bounds, multiple in (("sound", ((16, 16), (47, 64), 2), 1),
                                   ("even", ((16, 16), (46, 64), 2), 2)):  # fmt: skip
        (tmp_path / "x.onnx").write_bytes(dynamic(kind).SerializeToString())
        words = ("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF)
        ran = run(*words, *sizes, "-o", tmp_path / "m.onnx")
        assert ran.code == 0, ran.err
        assert "ran at sizes from 16x16 to" in ran.err
        contract = segdeploy.inspect(tmp_path / "m.onnx").contract
        assert (contract.size, contract.bounds, contract.multiple) == (SIZE, bounds, multiple)
        built = segdeploy.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", targets=["sm86"])
        assert len(built.profiles) == 1
        ran = run(*words, "--size", "24x32", "-o", tmp_path / "n.onnx")
        assert "is dynamic in h, w; --min, --opt and --max state the sizes" in ran.err


def test_foreign_onnx_a_dynamic_batch_alone_is_built_for_one_image(
    run: Callable[..., Ran], tmp_path: Path, tensorrt_rtx: object
) -> None:
    """As Keras exports: the size is static, and the batch is not."""
    model = model_of(
        START,
        [node("Identity", "scores", "y")],
        (TensorProto.FLOAT, ["b", 3, *SIZE]),
        (TensorProto.FLOAT, ["b", CLASSES, *SIZE]),
    )
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "m.onnx"
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "-o", out)
    assert ran.code == 0, ran.err
    assert "--min" not in ran.err
    built = segdeploy.build_engine(out, tmp_path / "m.engine", targets=["sm86"])
    one = (1, *SIZE)
    assert built.profiles == (Profile(one, one, one),)
    more = Profile(one, (2, *SIZE), (4, *SIZE))
    built = segdeploy.build_engine(out, tmp_path / "n.engine", targets=["sm86"], profiles=[more])
    assert built.profiles == (more,)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("size", "at 2x16x16 its output is 1x5x24x32"),
        ("batch", "an image of a batch has other scores than alone"),
        ("first", "an image of a batch has other scores than alone"),
    ],
)
def test_foreign_onnx_a_graph_that_is_dynamic_in_name_alone_is_refused(
    run: Callable[..., Ran], kind: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(dynamic(kind).SerializeToString())
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "--min", "1x16x16",
              "--opt", "1x24x32", "--max", "2x48x64", "-o", tmp_path / "m.onnx")  # fmt: skip
    check_one_line(ran, "does not take all sizes from --min to --max", told)
    assert not (tmp_path / "m.onnx").exists()


def test_foreign_onnx_sizes_of_a_static_graph_are_refused(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(plain().SerializeToString())
    words = ("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF,
             "-o", tmp_path / "m.onnx")  # fmt: skip
    sizes = ("--min", "1x16x16", "--opt", "1x24x32", "--max")
    check_one_line(run(*words, *sizes, "1x48x64"), "its height and width are not both dynamic")
    check_one_line(run(*words, *sizes, "1x48x64", "--size", "32x32"), "leave --size out")
    twice = (*sizes, "1x48x64", *sizes, "1x48x64")
    check_one_line(run(*words, *twice), "give --min, --opt and --max once")
    (tmp_path / "x.onnx").write_bytes(dynamic("sound").SerializeToString())
    check_one_line(run(*words, *sizes, "1x48x16"), "--min, --opt and --max: the width 16, 32, 16")


# --- what one image of noise does not tell --------------------------------------------------------


def one_channel(*after: onnx.NodeProto) -> onnx.ModelProto:
    """Logits of one channel that lie within 0 and 1: every pixel is of the foreground."""
    graph = helper.make_graph(
        [node("Conv", "image", "w", "b", "scores"), *after],
        "binary",
        [value("image", TensorProto.FLOAT, [1, 3, *SIZE])],
        [value(after[-1].output[0] if after else "scores", TensorProto.FLOAT, [1, 1, *SIZE])],
        [numpy_helper.from_array(np.full((1, 3, 1, 1), 0.03, np.float32), "w"),
         numpy_helper.from_array(np.array([0.3], np.float32), "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("output", [None, "logits", "probabilities"])
def test_foreign_onnx_scores_within_one_without_a_sigmoid_are_logits(
    run: Callable[..., Ran], output: str | None, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(one_channel().SerializeToString())
    words = ("adopt", tmp_path / "x.onnx", "--num-classes", 1, *HALF, "-o", tmp_path / "m.onnx")
    ran = run(*words, *(("--output", output) if output else ()))
    assert ran.code == 0, ran.err
    assert segdeploy.inspect(tmp_path / "m.onnx").contract.output == (output or "logits")
    assert ("no sigmoid is at its end" in ran.err) == (output is None)
    with segdeploy.load(tmp_path / "m.onnx") as network:
        assert network.predict(IMAGE).all() == (output != "probabilities")


def test_foreign_onnx_a_sigmoid_at_the_end_gives_probabilities(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    model = one_channel(node("Sigmoid", "scores", "s"), node("Identity", "s", "y"))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    words = ("adopt", tmp_path / "x.onnx", "--num-classes", 1, *HALF, "-o", tmp_path / "m.onnx")
    assert run(*words).code == 0
    assert segdeploy.inspect(tmp_path / "m.onnx").contract.output == "probabilities"
    check_one_line(run(*words, "--output", "logits"), "so its output is probabilities")


def ids(offset: int) -> onnx.ModelProto:
    """Labels minus one, or labels of which the first is 255."""
    after = [node("ArgMax", "scores", "best", axis=1, keepdims=0)]
    if offset < 0:
        after.append(node("Sub", "best", "one", "y"))
    else:
        after += [node("Equal", "best", "zero", "is"), node("Where", "is", "void", "best", "y")]
    weights = {"one": 1, "zero": 0, "void": 255}
    held = {name: np.array(number, np.int64) for name, number in weights.items()}
    return model_of(START, after, given=(TensorProto.INT64, [1, *SIZE]), weights=held)


@pytest.mark.parametrize(
    ("model", "classes", "told"),
    [
        (ids(-1), CLASSES, "gives the label -1 for pixels that it ignores"),
        (ids(0), CLASSES, "gives the label 255 for pixels that it ignores"),
        (
            labels_of(TensorProto.INT64, keepdims=0),
            CLASSES + 2,
            "its labels are the largest of 5 scores, and 7 classes are stated",
        ),
        (
            model_of(START, [node("RandomNormalLike", "scores", "n"),
                             node("Add", "scores", "n", "y")]),
            CLASSES,
            "gives another output for the same image in a second run",
        ),
        (
            model_of(START, [node("SequenceConstruct", "scores", "y")]),
            CLASSES,
            "its output is no tensor of numbers",
        ),
    ],
)  # fmt: skip
def test_foreign_onnx_what_no_contract_describes_is_refused(
    run: Callable[..., Ran], model: onnx.ModelProto, classes: int, told: str, tmp_path: Path
) -> None:
    if "no tensor" in told:
        kind = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
        model.graph.output[0].CopyFrom(kind)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", classes, *HALF,
              "-o", tmp_path / "m.onnx")  # fmt: skip
    check_one_line(ran, told)
    assert not (tmp_path / "m.onnx").exists()


def test_foreign_onnx_names_of_added_nodes_do_not_collide(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    names = ("image_as_given", "image_transposed", "y_as_given", "labels_squeezed",
             "labels_squeezed_axes", "labels_uint8", "scores_shape", "scores_zero", "scores_size",
             "scores_upsampled", "scores_two", "scores_head", "scores_sides")  # fmt: skip
    taken = {name: np.zeros(1, np.float32) for name in names}
    before = [node("Cast", "image", "floats", to=TensorProto.FLOAT), *NORMALIZE]
    after = [node("ArgMax", "scores", "best", axis=1), node("Identity", "best", "y")]
    labels = model_of(before, after, (TensorProto.INT32, [1, 3, *SIZE]),
                      (TensorProto.INT64, [1, 1, *SIZE]), {**NORMALIZED, **taken})  # fmt: skip
    pooled = [node("AveragePool", "scores", "y", kernel_shape=[2, 2], strides=[2, 2])]
    small = model_of(START, pooled, given=(TensorProto.FLOAT, [1, CLASSES, 12, 16]), weights=taken)
    for model, words in ((labels, ()), (small, (*HALF, "--upsampling", "half-pixel"))):
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *words,
                  "-o", tmp_path / "m.onnx")  # fmt: skip
        assert ran.code == 0, ran.err
        onnx.checker.check_model(load_onnx(tmp_path / "m.onnx"), full_check=True)


def test_foreign_onnx_sizes_of_any_common_multiple_are_found(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(dynamic("fourteen").SerializeToString())
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "--min", "1x28x28",
              "--opt", "1x56x56", "--max", "2x112x112", "-o", tmp_path / "m.onnx")  # fmt: skip
    assert ran.code == 0, ran.err
    assert segdeploy.inspect(tmp_path / "m.onnx").contract.multiple == 14


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("channels_last", [False, True])
def test_foreign_onnx_an_input_without_a_batch_axis_gets_one(
    run: Callable[..., Ran], opset: int, channels_last: bool, tmp_path: Path
) -> None:
    axes = {"axes": np.array([0], np.int64)}
    perm = [node("Transpose", "image", "turned", perm=[2, 0, 1])] if channels_last else []
    last = "turned" if channels_last else "image"
    if opset < 13:
        added, removed = node("Unsqueeze", last, "planes", axes=[0]), None
        removed = node("Squeeze", "scores", "y", axes=[0])
    else:
        added = node("Unsqueeze", last, "axes", "planes")
        removed = node("Squeeze", "scores", "axes", "y")
    taken = [*SIZE, 3] if channels_last else [3, *SIZE]
    model = model_of([*perm, added], [removed], (TensorProto.FLOAT, taken),
                     (TensorProto.FLOAT, [CLASSES, *SIZE]), axes, opset=opset)  # fmt: skip
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "m.onnx"
    ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "-o", out)
    assert ran.code == 0, ran.err
    assert "added a batch axis to its input" in ran.err
    with segdeploy.load(out) as network:
        assert np.mean(network.predict(IMAGE) == LABELS) == 1


def test_foreign_onnx_what_no_upsampling_mends_is_refused(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    pooled = model_of(START, [node("GlobalAveragePool", "scores", "y")],
                      given=(TensorProto.FLOAT, [1, CLASSES, 1, 1]))  # fmt: skip
    pads = {"pads": np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)}
    larger = model_of(START, [node("Pad", "scores", "pads", "y")],
                      given=(TensorProto.FLOAT, [1, CLASSES, 28, 36]), weights=pads)  # fmt: skip
    for model, told in (
        (pooled, "gives one score for each class and image, as a classifier"),
        (larger, "gives maps of 28x36, larger than its input of 24x32"),
    ):
        (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
        ran = run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, "--upsampling",
                  "half-pixel", "-o", tmp_path / "m.onnx")  # fmt: skip
        check_one_line(ran, told)
    assert not (tmp_path / "m.onnx").exists()


# --- advice and doubts ----------------------------------------------------------------------------


def test_foreign_onnx_red_constants_on_blue_are_doubted(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(plain().SerializeToString())
    words = ("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, "--channels", "B,G,R", "-o",
             tmp_path / "m.onnx")  # fmt: skip
    ran = run(*words, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    assert ran.code == 0
    assert "so that red's constants are applied to blue" in ran.err
    ran = run(*words, "--mean", "0.406,0.456,0.485", "--std", "0.225,0.224,0.229")
    assert "red's constants" not in ran.err


def test_foreign_onnx_nobody_is_told_to_export_a_file_of_others(
    run: Callable[..., Ran], tmp_path: Path, dataset: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(dynamic("sound").SerializeToString())
    out = tmp_path / "m.onnx"
    sizes = ("--min", "1x16x16", "--opt", "1x24x32", "--max", "2x47x64")
    assert run("adopt", tmp_path / "x.onnx", "--num-classes", CLASSES, *HALF, *sizes,
               "-o", out).code == 0  # fmt: skip
    image = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(image)
    for words in (
        ("predict", out, image, "--size", "96x96", "-o", tmp_path / "o.png"),
        ("build-engine", out, "--target", "sm86", "--min", "1x8x8", "--opt", "1x24x32", "--max",
         "1x64x64", "-o", tmp_path / "m.engine"),
    ):  # fmt: skip
        check_one_line(run(*words), "adopt the file again with another --min and --max")
