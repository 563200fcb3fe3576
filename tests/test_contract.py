"""The contract: round trips, and whatever else is put in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segdeploy
from segdeploy.contract import IMAGENET_MEAN, IMAGENET_STD, placeholder_classes
from segdeploy.contract_json import CHECKS, read_contract
from segdeploy.contract_statement import read_statement, restated, with_stated
from segdeploy.errors import InputError

from .conftest import CONTRACT, Ran

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def test_contract_a_contract_reads_back_as_it_was() -> None:
    assert read_contract(CONTRACT.to_json(), "file") == CONTRACT


def test_contract_a_derived_contract_names_its_parent_and_keeps_the_rest() -> None:
    derived = CONTRACT.derived("ab" * 32, {"onnx": "1.23"}, precision="int8")
    assert derived.provenance == {"torch": "2", "onnx": "1.23", "parent_sha256": "ab" * 32}
    assert replace(derived, provenance=CONTRACT.provenance, precision="fp32") == CONTRACT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("{}", "has schema None, this segdeploy reads 1 to 2"),
        ('{"schema": 3}', "has schema 3, this segdeploy reads 1 to 2"),
        ('{"schema": 2}', "'architecture' is missing; export"),
        ('{"schema": 1}', "'architecture' is missing; export"),
    ],
)
def test_contract_what_is_no_contract_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_contract(text, "file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", [0, 4]),
        ("size", [4]),
        ("size", [True, 4]),
        ("std", [1, 0, 1]),
        ("mean", [1, 2, 1e300]),
        ("mean", [1, 2, 10**18]),
        ("std", [1, 1e-300, 1]),
        ("classes", ["road", "sky\n"]),
        ("classes", ["road", "\x1b[2J"]),
        ("classes", ["road", "\u202e"]),
        ("classes", ["road", "road"]),
        ("classes", ["road", ""]),
        ("architecture", "a\nb"),
        ("provenance", {"torch": "2\x07"}),
        ("provenance", {"to\nrch": "2"}),
        ("ignore_index", 256),
        ("palette", [[1, 2]]),
        ("output", "boxes"),
        ("channels", ["R", "R", "B"]),
        ("channels", []),
        ("dtype", "int8"),
        ("scale", 0),
        ("normalization", "f16"),
        ("fit", "squeeze"),
        ("edge", 0),
        ("pad_normalized", 1),
        ("layout", "HWC"),
        ("flip", 1),
        ("scales", [0.5, 0]),
        ("resize", "nearest"),
        ("fuse", "median"),
        ("upsampling", "cubic"),
        ("scales", []),
    ],
)
def test_contract_a_wrong_field_is_named(field: str, value: object) -> None:
    text = json.dumps({**json.loads(CONTRACT.to_json()), field: value})
    with pytest.raises(InputError, match=f"file: the contract's '{field}' is wrong, or of a kind"):
        read_contract(text, "file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"mean": NaN}', "NaN is not a JSON number"),
        ('{"mean": 1e999}', "the number 1e999 is beyond what a float holds"),
        (f'{{"mean": {10**400}}}', "an integer of 401 characters is beyond 64 bits"),
        (f'{{"mean": {"9" * 10_000}}}', "an integer of 10000 characters is beyond 64 bits"),
        ('{"classes": ["\\ud800"]}', "a lone surrogate is not a character"),
    ],
)
def test_contract_what_is_not_strict_json_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^file: its segdeploy contract is not JSON .*{reason}"
                       if text != "{" else reason):  # fmt: skip
        read_contract(text, "file")


@pytest.mark.parametrize("spelling", ["color", "colour"])
def test_contract_of_schema_1_is_lifted(spelling: str) -> None:
    of_schema_1 = (
        *("architecture", "classes", "palette", "ignore_index", "size", "arguments", "mean", "std"),
        *("layout", "resize", "output", "precision", "scales", "flip", "fuse", "upsampling"),
        *("bounds", "multiple", "provenance"),
    )
    values = json.loads(CONTRACT.to_json())
    earlier = {name: values[name] for name in of_schema_1} | {"schema": 1, spelling: "RGB"}
    assert read_contract(json.dumps(earlier), "file") == CONTRACT
    swapped = read_contract(json.dumps({**earlier, spelling: "BGR"}), "file")
    assert (swapped.channels, swapped.mean) == (("B", "G", "R"), CONTRACT.mean)
    # A graph of images took their constants in the order of RGB.
    images = {**earlier, spelling: "BGR", "layout": "NHWC", "assumed": ["color"]}
    lifted = read_contract(json.dumps(images), "file")
    assert (lifted.mean, lifted.assumed) == (CONTRACT.mean[::-1], ("channels",))
    with pytest.raises(InputError, match="'channels' is wrong"):
        read_contract(json.dumps({**earlier, spelling: "YUV"}), "file")


def test_contract_more_classes_than_a_label_has_values() -> None:
    values = json.loads(CONTRACT.to_json())
    values |= {"classes": [f"c{i}" for i in range(256)], "palette": [[0, 0, 0]] * 256}
    with pytest.raises(InputError, match="'classes' is wrong, or of a kind"):
        read_contract(json.dumps(values), "file")
    with pytest.raises(InputError, match=r"260 classes: labels are uint8"):
        placeholder_classes(260)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": [65536, 65536]},
        {"size": [20000, 20000]},
        {"bounds": [[32, 32], [20000, 20000], 1]},
    ],
)
def test_contract_an_input_that_nothing_could_hold(changes: dict) -> None:
    text = json.dumps({**json.loads(CONTRACT.to_json()), **changes})
    with pytest.raises(InputError, match=r"0x[0-9]+, more than 100000000 pixels|65536x65536, more"):
        read_contract(text, "file")


def test_contract_another_number_of_colors_than_classes() -> None:
    text = json.dumps({**json.loads(CONTRACT.to_json()), "classes": ["a"]})
    with pytest.raises(InputError, match="numbers of colors and classes differ"):
        read_contract(text, "file")


@given(st.sampled_from(sorted(json.loads(CONTRACT.to_json()))), JSON)
def test_contract_no_value_in_a_field_escapes_as_another_error(field: str, value: object) -> None:
    text = json.dumps({**json.loads(CONTRACT.to_json()), field: value})
    try:
        contract = read_contract(text, "file")
    except InputError as error:
        assert str(error).startswith("file: ")
    else:
        assert read_contract(contract.to_json(), "again") == contract


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_contract_no_text_escapes_as_another_error(text: str) -> None:
    with pytest.raises(InputError):
        read_contract(text, "file")


def test_contract_placeholder_colors_differ() -> None:
    names, palette = placeholder_classes(40)
    assert names[39] == "class_39"
    assert palette[0] == (0, 0, 0)
    assert len(set(palette)) == 40


def test_contract_a_file_of_statements(tmp_path: Path) -> None:
    """JSON and TOML state the same; a complete contract may be given, too."""
    stated = {
        "channels": ["B", "G", "R"],
        "scale": "1/255",
        "mean_255": [123.675, 116.28, 103.53],
        "std": 0.25,
        "fit": "letterbox",
        "pad": 114,
        "size": [48, 64],
        "classes": ["road", "rest"],
    }
    (tmp_path / "c.json").write_text(json.dumps(stated))
    lines = (f"{name} = {json.dumps(value)}" for name, value in stated.items())
    (tmp_path / "c.toml").write_text("\n".join(lines))
    found = read_statement(tmp_path / "c.json")
    assert found == read_statement(tmp_path / "c.toml")
    contract = with_stated(CONTRACT, {k: v for k, v in found.items() if k != "size"})
    assert contract.mean == (123.675 / 255, 116.28 / 255, 103.53 / 255)
    assert (contract.std, contract.pad, contract.scale) == ((0.25,) * 3, (114,) * 3, 1 / 255)
    (tmp_path / "whole.json").write_text(contract.to_json())
    again = read_statement(tmp_path / "whole.json")
    restated = {k: v for k, v in again.items() if k != "size"}
    assert with_stated(CONTRACT, restated) == contract


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"schema": 3}', "has schema 3, this segdeploy reads 1 to 2"),
        ('{"weather": 1}', "'weather' is no field of a contract; docs/reference/contract.md"),
        ('{"means": 0.5}', "'means' is no field of a contract; did you mean 'mean'?"),
        ('{"schema": true}', "has schema True, this segdeploy reads 1 to 2"),
        ('{"schema": 2.0}', "has schema 2.0, this segdeploy reads 1 to 2"),
        ('{"mean": 0, "mean": 1}', 'the name "mean" is given twice'),
        ('{"color": "BGR", "channels": ["R"]}', "'color' and 'channels' say the same; remove one"),
        ('{"precision": "fp16"}', "'precision' is decided by the network, and cannot be stated"),
        ('{"color": ["R"]}', "'color' must be RGB or BGR; state 'channels' instead"),
        ('{"mean": "0.5"}', "'mean' '0.5': must be a list of numbers from"),
        ('{"mean": [true, 0, 0]}', "'mean' [True, 0, 0]: must be a list of numbers"),
        ('{"channels": 1, "pad": 0}', "'channels' 1: must be a list of up to 64 different names"),
        ('{"scale": "1/0"}', "'scale' '1/0': must be a number from 1e-09"),
        ('{"scale": NaN}', "NaN is not a JSON number"),
    ],
)
def test_contract_a_file_of_statements_that_is_wrong(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"c.json:? .*{re.escape(reason)}"):
        read_statement(path)
    huge = f"edge = {'9' * 5000}"
    for name, text in (
        ("c.toml", "a = ["),
        ("h.toml", huge),
        ("c.yaml", "a: 1"),
        ("d.json", "\xff"),
    ):
        other = tmp_path / name
        other.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=name):
            read_statement(other)
    with pytest.raises(InputError, match="no such file"):
        read_statement(tmp_path / "none.json")


def test_contract_an_option_replaces_what_belongs_to_the_files_value(
    run: Callable[..., Ran], tmp_path: Path
) -> None:
    words = ["export", "deeplabv3", "--num-classes", 3, "--width", 4, "--size", "32x32"]
    for stated, options, field, value in (
        ({"fit": "letterbox", "pad": 114}, ("--fit", "stretch"), "pad", None),
        ({"channels": ["gray"], "gray": "opencv"}, ("--channels", "R,G,B"), "gray", None),
        ({"normalization": "none"}, ("--mean", "0.5", "--std", "0.5"), "scale", 1 / 255),
    ):
        (tmp_path / "c.json").write_text(json.dumps(stated))
        out = tmp_path / "m.onnx"
        ran = run(*words, "--contract", tmp_path / "c.json", *options, "-o", out)
        assert ran.code == 0, ran.err
        assert getattr(segdeploy.inspect(out).contract, field) == value


def test_contract_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for name, text in (("c.json", '{"edge": 64}'), ("c.toml", "edge = 64")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_statement(tmp_path / name) == {"edge": 64}


@pytest.mark.parametrize(
    ("stated", "count", "reason"),
    [
        ({"classes": ["a", "b"], "ignore_index": 1}, None, "ignore_index 1 is the class b"),
        ({"palette": [[0, 0, 0]]}, 2, "'palette' without 'classes'"),
        ({"ignore_index": 7}, 2, "'ignore_index' without 'classes'"),
        ({"classes": ["a", "b"]}, 5, "has 2 classes, but --num-classes is 5"),
        ({"classes": ["a", "b", "c"]}, 1, "has 3 classes, but --num-classes is 1"),
    ],
)
def test_contract_classes_of_a_file_are_not_overridden(
    run: Callable[..., Ran], tmp_path: Path, stated: dict[str, Any], count: int | None, reason: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(stated))
    words = [
        "export",
        "deeplabv3",
        "--contract",
        path,
        "--size",
        "32x32",
        "-o",
        tmp_path / "m.onnx",
    ]
    words += [] if count is None else ["--num-classes", count]
    ran = run(*words)
    assert ran.code == 2
    assert reason in ran.err.splitlines()[-1]  # after the note on random weights


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"dtype": "uint16", "mean_255": (0.5,)}, "--mean-255: is for images of uint8, and the"),
        ({"channels": ("nir", "R"), "scale": 1.0}, "--rescale 1: changes the units of the mean"),
        ({"std": (1e-12,)}, "--std 1e-12: must be a list of numbers from 1e-09 to 1e+09"),
        ({"dtype": "float32", "mean": (1e12,)}, "--mean 1e+12: must be a list of numbers from"),
        (
            {"scale": 1e12, "mean": (0,), "std": (1,)},
            "--rescale 1e+12: must be a number from",
        ),
        (
            {"dtype": "float32", "fit": "letterbox", "pad": (1e12,)},
            "--pad 1e+12: must be a list of numbers",
        ),
        (
            {"channels": ("gray",), "gray": "opencv", "source_channels": ("gray",)},
            "--gray opencv: converts RGB images; leave --source-channels out",
        ),
        (
            {"fit": "longest-edge,pad", "edge": 350, "side_multiple": 512, "pad": (0,)},
            "--edge 350: becomes 512 pixels, is above the input of 360x480",
        ),
        ({"pad": (0,), "pad_normalized": True}, "--pad-normalized 0,0,0: goes with --fit letter"),
    ],
)
def test_contract_a_statement_that_contradicts_itself(stated: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(reason)}"):
        with_stated(CONTRACT, stated)


def test_contract_constants_belong_to_the_names_of_their_channels() -> None:
    """ImageNet's constants are of red, green and blue, whatever their order, and of no others."""
    red, green, blue = IMAGENET_MEAN
    turned = with_stated(CONTRACT, {"channels": ("B", "G", "R")})
    assert turned.mean == (blue, green, red)
    assert turned.std == IMAGENET_STD[::-1]
    assert with_stated(CONTRACT, {"channels": ("G",)}).mean == (green,)
    other = with_stated(CONTRACT, {"channels": ("nir", "red", "green")})
    assert (other.mean, other.std) == ((0, 0, 0), (1, 1, 1))
    own = with_stated(CONTRACT, {"channels": ("B", "G", "R"), "mean": (0.1, 0.2, 0.3)})
    assert own.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_contract_no_normalization_goes_with_every_dtype(dtype: str) -> None:
    for order in (("normalization", "dtype"), ("dtype", "normalization")):
        made = CONTRACT
        for name in order:
            value = {"normalization": "none", "dtype": dtype}[name]
            made = with_stated(made, {name: value})
        assert (made.scale, made.normalization, made.dtype) == (1, "none", dtype)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "1/255", "gray", "stretch", "letterbox", "binary", "f64", "uint16"]),
    st.lists(st.one_of(st.integers(-1, 300), st.sampled_from(["R", "G", "gray"])), max_size=4),
)


@given(
    values=st.dictionaries(
        st.sampled_from([*CHECKS, "mean_255", "std_255", "schema", "color"]), VALUES, max_size=4
    )
)
@settings(max_examples=300, deadline=None)
def test_contract_any_file_of_statements_is_used_or_refused(
    values: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(values, allow_nan=False, default=str))
    try:
        stated = {k: v for k, v in read_statement(path).items() if k != "size"}
        contract = with_stated(CONTRACT, stated)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert read_contract(contract.to_json(), "m") == contract


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"foo": 1}, "'foo' is no field of a contract"),
        ({"edge": "a"}, "--edge 'a': must be a whole number from 1 to 65536"),
        ({"min_confidence": "x"}, "--min-confidence 'x': must be a probability"),
        ({"resize": "nope"}, "--resize 'nope': must be one of pillow-nearest, "),
        ({"channels": "B,G,R"}, "--channels 'B,G,R': must be a list of up to 64 different names"),
        ({"mean_255": (0.5,), "std_255": (1,)}, "is in units of 0 to 255; give --mean"),
        ({"label_ids": (1, 255)}, "255 is the id of ignored pixels"),
    ],
)
def test_contract_statements_in_python_are_checked(stated: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        with_stated(CONTRACT, stated)
    assert told in str(caught.value)


def test_contract_statements_in_python_may_be_lists_numbers_and_fractions() -> None:
    made = with_stated(CONTRACT, {"fit": "letterbox", "pad": 114, "mean": [0.5], "std": 0.5})
    assert made.pad == (114,) * 3
    assert made.mean == made.std == (0.5,) * 3
    made = with_stated(CONTRACT, {"scale": "1/127.5", "mean": 1, "std": 1})
    assert made.scale == 1 / 127.5


def test_contract_constants_of_other_channels_are_assumed() -> None:
    made = restated(CONTRACT, {"channels": ("nir", "red", "green")})
    assert made.mean == (0, 0, 0)
    assert set(made.assumed) >= {"mean", "std"}
    stated = {"channels": ("nir", "red", "green"), "mean": (0.1,), "std": (0.2,)}
    assert restated(CONTRACT, stated).assumed == ()
    assert restated(CONTRACT, {"channels": ("B", "G", "R")}).assumed == ()
