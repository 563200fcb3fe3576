"""Files for the C++ tests, and what Python makes of each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import segdeploy
from segdeploy.device import Gpu
from segdeploy.engine.compatibility import check_host, check_version
from segdeploy.engine.manifest import manifest_path, read_engine
from segdeploy.errors import InputError
from segdeploy.onnx_graph.model_file import contract_of, load_onnx, save_onnx, set_contract
from segdeploy.proof.golden_vectors import golden_content, golden_images, make_vectors
from segdeploy.runtime.inference_options import InferenceOptions
from segdeploy.runtime.postprocess import label_colors, overlay

from .conftest import ROOT, skip

SOURCE = ROOT / "deploy" / "cpp"


def write_seeds(folder: Path) -> None:
    """Sound files for the fuzz target, which begins with what they are."""
    seeds = folder / "seeds"
    seeds.mkdir()
    with segdeploy.load(folder / "logits.onnx", threads=1) as network:
        contract = network.contract
        vectors = make_vectors(network, golden_images(contract)[:1])
    (seeds / "0.contract").write_text(contract.to_json())
    (seeds / "2.golden").write_bytes(golden_content(vectors, folder / "logits.onnx"))


def write_with_fp16_io(path: Path, out: Path) -> None:
    """The graph of half types without the Casts at its ends: it takes and gives half."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    casts = [node for node in graph.node if node.op_type == "Cast"]
    first = next(node for node in casts if node.input[0] == graph.input[0].name)
    last = next(node for node in casts if node.output[0] == graph.output[0].name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == first.output[0]:
                node.input[index] = first.input[0]
        for index, name in enumerate(node.output):
            if name == last.input[0]:
                node.output[index] = last.output[0]
    graph.node.remove(first)
    graph.node.remove(last)
    for end in (graph.input[0], graph.output[0]):
        end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, out)


def write_stepped(path: Path, out: Path) -> None:
    """The same network under a contract that takes multiples of 16 alone."""
    model = load_onnx(path)
    stepped = replace(contract_of(model, path), multiple=16, bounds=((32, 32), (480, 640), 4))
    set_contract(model, stepped)
    save_onnx(model, out)


def write_inference_options(folder: Path) -> None:
    """What Python gives for several scales, mirrored, in tiles, and as probabilities."""
    ways: list[dict] = [
        {"graph": "dynamic.onnx", "scales": [0.75, 1.0, 1.5]},
        {"graph": "dynamic.onnx", "scales": [2 / 3, 1.25], "flip": True},
        {"graph": "dynamic.onnx", "scales": [0.5, 1.0], "flip": True, "fuse": "max"},
        {"graph": "dynamic.onnx", "tile": True},
        # 48x64 times these is 43x57 and 67x89: each is run at the multiples of 16 below.
        {"graph": "stepped.onnx", "scales": [0.9, 1.4], "flip": True},
        {"graph": "stepped.onnx", "tile": True},
        {"graph": "logits.onnx", "flip": True},
        *({"graph": f"{name}.onnx", "tile": True} for name in ("logits", "labels", "late", "bgr")),
        {"graph": "dynamic.onnx", "scales": [0.75, 1.0], "probabilities": True},
        {"graph": "probabilities.onnx", "probabilities": True},
        {"graph": "logits.onnx", "tile": True, "probabilities": True},
    ]
    refused = [
        ({"graph": "logits.onnx", "scales": [0.5]}, "the graph is static at 48x64"),
        ({"graph": "fused.onnx", "flip": True}, "the graph fuses scales already"),
        ({"graph": "bytes.onnx", "flip": True}, "scales need float input and logits"),
        ({"graph": "dynamic.onnx", "tile": True, "flip": True}, "tiles go with one scale"),
        ({"graph": "dynamic.onnx", "scales": [0.001]}, "shrinks a 48x64 image to nothing"),
        (
            {"graph": "dynamic.onnx", "scales": [0.25]},
            "gives 12x16, outside what the network takes",
        ),
        ({"graph": "dynamic.onnx", "scales": [-1]}, "must be positive, and below 100"),
        (
            {"graph": "stepped.onnx", "scales": [0.2]},
            "shrinks a 48x64 image to less than 16 pixels",
        ),
    ]
    usual = {"scales": [], "flip": False, "fuse": "mean", "tile": False, "wanted": ""}
    cases = [{**usual, **way, "image": "0.png", "refused": words} for way, words in refused]
    (folder / "wanted").mkdir()
    for way in ways:
        with segdeploy.load(folder / way["graph"], threads=1) as network:
            for name in ("0.png", "1_odd.png", "0_small.png"):
                case = {**usual, **way, "image": name}
                case["wanted"] = f"wanted/{len(cases)}.png"
                options = {name: case[name] for name in ("scales", "flip", "fuse", "tile")}
                image = folder / "images" / name
                if "probabilities" in way:
                    found = network.probabilities(image, InferenceOptions(**options))
                    found.astype(np.float32).tofile(folder / case["wanted"])
                else:
                    Image.fromarray(network.predict(image, InferenceOptions(**options))).save(
                        folder / case["wanted"]
                    )
                cases.append(case)
    (folder / "inference_options.json").write_text(json.dumps(cases))
    with segdeploy.load(folder / "dynamic.onnx", threads=1) as network:
        pixels = np.asarray(Image.open(folder / "images" / "0.png"))
        laid = overlay(
            pixels,
            network.predict(pixels),
            label_colors(network.contract.palette, bit_planes=False),
        )
    Image.fromarray(laid).save(folder / "overlay.png")


def write_manifests(cases: Path, graph: Path) -> Path:
    """Engines whose manifest or bytes are damaged, and what Python says of each."""
    folder = cases / "manifests"
    folder.mkdir()
    options = {"profiles": (), "backend": "tensorrt-rtx", "targets": ["sm86", "sm89"]}
    whole = segdeploy.build_engine(graph, folder / "a b.engine", **options).path
    manifest = json.loads(manifest_path(whole).read_text())
    plan = whole.read_bytes()
    shutil.copy(manifest_path(whole), cases / "seeds" / "1.manifest")
    damages: dict[str, tuple[dict, bytes]] = {
        "cut": ({}, plan[:-1]),
        "changed": ({}, plan[:-1] + b"?"),
        "schema": ({"schema": 9}, plan),
        "name": ({"engine": "other.engine"}, plan),
        "backend": ({"backend": "tensorrt-gtx"}, plan),
        "profile": ({"profiles": [{"minimum": [1, 2, 3]}]}, plan),
        "hash": ({"sha256": 7}, plan),
        "contract": ({"contract": {**manifest["contract"], "std": [0, 1, 1]}}, plan),
        "platform": ({"platform": "linux-aarch64"}, plan),
        "version": ({"backend_version": "1.0.0.1"}, plan),
        "adapted": (
            {
                "profiles": [
                    {"minimum": [1, 24, 32], "optimum": [1, 48, 64], "maximum": [4, 96, 128]}
                ],
                "options": {"weights": "refittable", "workspace_mib": 64},
            },
            plan,
        ),
    }
    files = [whole]
    for name, (changes, content) in damages.items():
        path = folder / f"{name}.engine"
        path.write_bytes(content)
        own = {**manifest, "engine": path.name, **changes}
        manifest_path(path).write_text(json.dumps(own))
        files.append(path)
    (folder / "text.engine").write_bytes(plan)
    manifest_path(folder / "text.engine").write_text("[1]")
    (folder / "alone.engine").write_bytes(plan)
    files += [folder / "text.engine", folder / "alone.engine", folder / "none.engine"]
    gpus = [None, Gpu("NVIDIA X", "sm86"), Gpu("NVIDIA Y", "sm120")]
    written = []
    for path in files:
        for gpu in gpus:
            case = {"engine": path.name, "version": manifest["backend_version"]}
            if gpu is not None:
                case |= {"gpu": gpu.name, "capability": gpu.compute_capability}
            written.append({**case, "message": python_says(path, gpu, manifest["backend_version"])})
    assert sum(not one["message"] for one in written) == 2  # a GPU that it was built for
    (folder / "cases.json").write_text(json.dumps(written))
    return folder


def python_says(path: Path, gpu: Gpu | None, version: str) -> str:
    class Installed:
        pass

    Installed.version = version  # type: ignore[attr-defined]
    try:
        manifest, _ = read_engine(path)
        check_version(manifest, path, Installed())  # type: ignore[arg-type]
        check_host(manifest, path, gpu)
    except InputError as error:
        return str(error)
    return ""


def write_foreign(folder: Path) -> None:
    """Graphs whose outputs are not what their contract says, and Python's words for each."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    place = folder / "foreign"
    place.mkdir()

    def sliced(name: str, axis: int, end: int, *, is_open: bool) -> onnx.ModelProto:
        """The graph with only the first entries of its output's axis; its shape said, or open."""
        model = load_onnx(folder / f"{name}.onnx")
        graph = model.graph
        (output,) = graph.output
        for key, value in (("starts", 0), ("ends", end), ("axes", axis)):
            constant = numpy_helper.from_array(np.array([value]), f"cut_{key}")
            graph.initializer.append(constant)
        node = helper.make_node(
            "Slice", [output.name, "cut_starts", "cut_ends", "cut_axes"], ["cut"]
        )
        graph.node.append(node)
        kind = output.type.tensor_type
        sides = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
        sides[axis] = "cut_side" if is_open else end
        graph.output.remove(output)
        graph.output.append(helper.make_tensor_value_info("cut", kind.elem_type, sides))
        return model

    def with_contract(name: str, **changes: object) -> onnx.ModelProto:
        model = load_onnx(folder / f"{name}.onnx")
        set_contract(model, replace(contract_of(model, folder), **changes))
        return model

    contract = contract_of(load_onnx(folder / "logits.onnx"), folder)
    two = {"classes": contract.classes[:2], "palette": contract.palette[:2]}
    graphs = {
        "no_rows_said": sliced("labels", 1, 0, is_open=False),
        "no_rows": sliced("labels", 1, 0, is_open=True),
        "few_rows": sliced("labels", 1, 7, is_open=True),
        "few_columns": sliced("labels", 2, 7, is_open=True),
        "few_classes": sliced("logits", 1, 3, is_open=True),
        "few_classes_said": sliced("logits", 1, 3, is_open=False),
        "no_small_map": sliced("late", 2, 0, is_open=True),
        "other_classes": with_contract("logits", **two),
        "other_size": with_contract("logits", size=(64, 48)),
        "other_output": with_contract("logits", output="labels"),
        "labels_beyond": with_contract("labels", **two),
        "int64": load_onnx(folder / "labels.onnx"),
        "two_batch": load_onnx(folder / "labels.onnx"),
    }
    twice = graphs["two_batch"].graph
    name = twice.output.pop().name
    twice.node.append(helper.make_node("Concat", [name, name], ["twice"], axis=0))
    sides = ["images", contract.size[0], contract.size[1]]
    twice.output.append(helper.make_tensor_value_info("twice", TensorProto.UINT8, sides))
    int64 = graphs["int64"].graph
    int64.node.append(
        helper.make_node("Cast", [int64.output[0].name], ["wide"], to=TensorProto.INT64)
    )
    sides = [dim.dim_value or dim.dim_param for dim in int64.output[0].type.tensor_type.shape.dim]
    int64.output.pop()
    int64.output.append(helper.make_tensor_value_info("wide", TensorProto.INT64, sides))
    image = np.asarray(Image.open(folder / "images" / "1_own.png"))
    cases = []
    for name, model in graphs.items():
        path = place / f"{name}.onnx"
        save_onnx(model, path)
        message, is_opened = _python_refuses(path, image)
        words = {"message": message.removeprefix(f"{place}/"), "at_open": not is_opened}
        cases.append({"graph": path.name, **words})
    (place / "cases.json").write_text(json.dumps(cases))


def _python_refuses(path: Path, image: np.ndarray) -> tuple[str, bool]:
    is_opened = False
    try:
        with segdeploy.load(path, threads=1) as network:
            is_opened = True
            network.predict(image)
    except InputError as error:
        return str(error), is_opened
    raise AssertionError(f"{path.name} was not refused")


def built(folder: Path, *settings: str, targets: Sequence[str] = ("all",)) -> Path:
    """Configure and build the library, its programs and its tests."""
    if not shutil.which("cmake") or not shutil.which("g++"):
        skip("no C++ compiler and CMake here")
    headers = SOURCE.parents[1] / "build" / "cpp-headers"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # whose python3 has pip
    subprocess.run(
        [SOURCE / "fetch_headers.sh", headers], check=True, env={**os.environ, "PATH": path}
    )
    root = headers / "usr"
    subprocess.run(
        ["cmake", "-S", SOURCE, "-B", folder, f"-DCMAKE_PREFIX_PATH={root}", *settings],
        check=True,
    )
    command = ["cmake", "--build", folder, "--parallel", "2", "--target", *targets]
    subprocess.run(command, check=True)
    return folder
