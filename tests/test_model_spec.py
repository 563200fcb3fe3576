"""The MODEL argument: names, checkpoints, plain weights and the user's own factory."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation as torchvision_segmentation

from segdeploy.contract import METADATA_KEY, Contract
from segdeploy.errors import InputError
from segdeploy.model_spec import ModelSpec
from segdeploy.models.checkpoint import to_bytes
from segdeploy.models.deeplabv3 import DeepLabV3
from segdeploy.models.errors import ModelInputError
from segdeploy.models.network import Network
from segdeploy.models.registry import ARCHITECTURES, build
from segdeploy.network_loading import load_network

SMALL = {"width": 4, "stride": 4}

FACTORY = '''
import torch
from torch import nn
from torchvision.models import segmentation as torchvision_segmentation

class Half(nn.Module):
    """Logits at half the size, as a tuple."""
    def __init__(self, num_classes, width):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3, stride=2, padding=2, dilation=2)
    def forward(self, x):
        return self.conv(x), None

def make(num_classes, width=4):
    return Half(num_classes, width)

def broken():
    raise RuntimeError("no licence")

def number(num_classes):
    return 3

constant = 5
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's own network, as the current folder."""
    (tmp_path / "mynet").mkdir()
    (tmp_path / "mynet" / "__init__.py").write_text("")
    (tmp_path / "mynet" / "seg.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(tmp_path: Path, state: dict, name: str = "w.pth") -> Path:
    path = tmp_path / name
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_model_spec_every_registered_network_gives_logits_of_the_inputs_size(name: str) -> None:
    small = {"width": 4, "stride": 4, "hidden": 8}
    accepted = ARCHITECTURES[name].accepted_arguments()
    network = build(name, 3, {key: value for key, value in small.items() if key in accepted})
    wrapped = Network(network, 3, (64, 96), name).eval()
    with torch.no_grad():
        assert wrapped(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_model_spec_a_checkpoint_knows_everything(checkpoint: Path) -> None:
    loaded = load_network(ModelSpec(str(checkpoint)))
    assert loaded.contract.size == (48, 64)
    assert loaded.sha256 is not None
    assert not loaded.network.training


def test_model_spec_a_name_needs_classes_and_size() -> None:
    with pytest.raises(InputError, match="needs --size HxW"):
        load_network(ModelSpec("deeplabv3", num_classes=3))
    with pytest.raises(InputError, match="needs --num-classes N"):
        load_network(ModelSpec("deeplabv3", size=(32, 32)))


def test_model_spec_unknown_names_and_options_are_told_what_there_is() -> None:
    with pytest.raises(ModelInputError, match="deeplabv4: no such network; it must be one of"):
        load_network(ModelSpec("deeplabv4", num_classes=3, size=(32, 32)))
    with pytest.raises(ModelInputError, match="no option 'width'; it takes none"):
        load_network(
            ModelSpec("fcn_resnet50", num_classes=3, size=(32, 32), arguments={"width": 3})
        )


def test_model_spec_options_of_a_name_do_not_go_with_a_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="leave out --num-classes$"):
        load_network(ModelSpec(str(checkpoint), num_classes=3))


def test_model_spec_a_torchvision_state_dict_may_hold_an_auxiliary_head(tmp_path: Path) -> None:
    name = "deeplabv3_mobilenet_v3_large"
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    theirs = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    ).eval()
    path = plain(tmp_path, theirs.state_dict())
    loaded = load_network(ModelSpec(name, num_classes=3, weights=path, size=(64, 64)))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), theirs(x)["out"])


def test_model_spec_weights_of_another_architecture_name_the_first_keys(tmp_path: Path) -> None:
    state = DeepLabV3(3, width=4).state_dict()
    del state["classifier.bias"]
    state["extra"] = torch.zeros(1)
    state["aspp.conv1.weight"] = torch.zeros(1)
    spec = ModelSpec("deeplabv3", 3, SMALL, plain(tmp_path, state), (32, 32))
    with pytest.raises(ModelInputError) as raised:
        load_network(spec)
    message = str(raised.value)
    assert "missing: backbone.0.downsample" not in message
    assert "missing: classifier.bias; surplus: extra; of another shape: aspp.conv1.weight (1,)" in (
        message
    )
    assert "check the architecture, --num-classes, --channels, --width and --arg" in message


@pytest.mark.parametrize(
    ("likely", "options"),
    [("deeplabv3_resnet101", {}), ("deeplabv2_vgg16", {"rates": [6, 12, 18, 24]})],
)
def test_model_spec_weights_of_another_architecture_name_the_likeliest(
    likely: str, options: dict, tmp_path: Path
) -> None:
    small = {"width": 4, "hidden": 8} if "vgg" in likely else {}
    path = plain(tmp_path, build(likely, 3, {**small, **options}).state_dict())
    spec = ModelSpec("deeplabv3_resnet50", 3, {}, path, (64, 64))
    with pytest.raises(ModelInputError, match=f"they look like those of {likely}$"):
        load_network(spec)


@pytest.mark.parametrize("envelope", ["state_dict", "model", None])
def test_model_spec_a_training_frameworks_file_is_opened(
    envelope: str | None, tmp_path: Path
) -> None:
    state = {f"module.{k}": v for k, v in DeepLabV3(3, **SMALL).state_dict().items()}
    content = {envelope: state, "epoch": 3} if envelope else state
    spec = ModelSpec("deeplabv3", 3, SMALL, plain(tmp_path, content), (32, 32))
    loaded = load_network(spec).network.module.state_dict()
    assert all(torch.equal(loaded[k.removeprefix("module.")], v) for k, v in state.items())


def test_model_spec_published_weights_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchvision's own cache; what lies there stands in for the 42 MB of the real file.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "deeplabv3_mobilenet_v3_large"
    published = torchvision_segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "hub" / "checkpoints" / f"{name}-fc3c493d.pth"
    torch.save(published.state_dict(), path)
    loaded = load_network(ModelSpec(name, weights=Path("COCO_WITH_VOC_LABELS_V1"), size=(64, 64)))
    assert loaded.contract.classes[:2] == ("background", "aeroplane")
    assert loaded.contract.palette[1] == (128, 0, 0)
    assert torch.equal(
        loaded.network.module.classifier[4].weight, published.state_dict()["classifier.4.weight"]
    )


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("deeplabv3", "V1", "V1: no such file, and deeplabv3 has no published weights"),
        ("fcn_resnet50", "V9", "the published weights are COCO_WITH_VOC_LABELS_V1"),
    ],
)
def test_model_spec_weights_that_nobody_published(name: str, weights: str, said: str) -> None:
    with pytest.raises(ModelInputError, match=said):
        load_network(ModelSpec(name, 3, {}, Path(weights), (64, 64)))


def test_model_spec_published_weights_that_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):  # a port that nothing listens at
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    spec = ModelSpec("fcn_resnet50", weights=Path("COCO_WITH_VOC_LABELS_V1"), size=(64, 64))
    with pytest.raises(ModelInputError, match=r"cannot be downloaded .* put it at .*1167a1af\.pth"):
        load_network(spec)
    assert not list(tmp_path.rglob("*.pth*"))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "deeplabv2_vgg16",
            {"rates": []},
            r"rates must be a list of positive .* not \[\]",
        ),
        ("deeplabv2_vgg16", {"hidden": 0}, "hidden must be a positive integer, not 0"),
        (
            "deeplabv3_multigrid_resnet50",
            {"multi_grid": "abc"},
            "multi_grid must be a list of",
        ),
        ("deeplabv3_multigrid_resnet50", {"output_stride": 12}, "neither 8 nor 16"),
        ("deeplabv3", {"width": True}, "width must be a positive integer, not True"),
        ("dilated_vgg16", {"context": 3}, "context must be text, not 3"),
    ],
)
def test_model_spec_senseless_options_are_named(name: str, arguments: dict, said: str) -> None:
    with pytest.raises(ModelInputError, match=said):
        build(name, 3, arguments)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_model_spec_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, path)
    spec = ModelSpec("deeplabv3", 3, SMALL, path, (32, 32))
    with pytest.raises(ModelInputError, match="holds more than tensors, and loading it could run"):
        load_network(spec)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelInputError, match=r"evil\.pth"):
        load_network(spec)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04rubbish", b"\xff" * 8])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_model_spec_a_damaged_file_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelInputError, match=f"w{suffix}"):
        load_network(ModelSpec("deeplabv3", 3, SMALL, path, (32, 32)))


def test_model_spec_nan_in_weights_names_the_tensor(tmp_path: Path) -> None:
    network = DeepLabV3(3, **SMALL)
    network.aspp.conv2.bias.data[0] = float("nan")
    spec = ModelSpec("deeplabv3", 3, SMALL, plain(tmp_path, network.state_dict()), (32, 32))
    with pytest.raises(ModelInputError, match=r"tensor aspp\.conv2\.bias holds NaN or infinity"):
        load_network(spec)


def test_model_spec_a_checkpoint_of_another_architecture_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="is a checkpoint of deeplabv3, not of fcn_resnet50"):
        load_network(ModelSpec("fcn_resnet50", 8, {}, checkpoint, (32, 32)))


def test_model_spec_safetensors_without_a_contract_need_a_name(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(DeepLabV3(3, **SMALL).state_dict(), path)
    with pytest.raises(InputError, match="holds weights but no segdeploy contract"):
        load_network(ModelSpec(str(path)))
    loaded = load_network(ModelSpec("deeplabv3", 3, SMALL, path, (32, 32)))
    assert loaded.contract.classes == ("class_0", "class_1", "class_2")


def test_model_spec_the_users_own_factory(project: Path) -> None:
    loaded = load_network(ModelSpec("mynet.seg:make", 5, {"width": 2}, None, (40, 56)))
    with torch.no_grad():
        logits = loaded.network(torch.randn(2, 3, 40, 56))
    assert logits.shape == (2, 5, 40, 56)
    assert loaded.contract.architecture == "mynet.seg:make"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mynet.nothing:make", "module mynet.nothing cannot be imported"),
        ("mynet.seg:nothing", "has no callable 'nothing'"),
        ("mynet.seg:constant", "has no callable 'constant'"),
        ("mynet.seg:broken", r"the factory failed with {} \(RuntimeError: no licence\)"),
        ("mynet.seg:number", "returned int, not an nn.Module"),
    ],
)
def test_model_spec_a_factory_that_fails_says_how(
    project: Path, reference: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_network(ModelSpec(reference, 5, {}, None, (40, 56)))


def test_model_spec_a_file_may_not_decide_which_code_runs(project: Path) -> None:
    contract = Contract("mynet.seg:make", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 255, (32, 32))
    from mynet.seg import make

    path = project / "own.safetensors"
    path.write_bytes(to_bytes(make(2), {METADATA_KEY: contract.to_json()}))
    with pytest.raises(InputError, match="a file may not decide which code runs"):
        load_network(ModelSpec(str(path)))
    loaded = load_network(ModelSpec("mynet.seg:make", weights=path))
    assert loaded.contract.classes == ("a", "b")


def test_model_spec_a_size_that_the_network_cannot_take() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 9))
    with pytest.raises(ModelInputError, match="cannot take a 4x4 RGB image .* give another --size"):
        Network(network, 2, (4, 4), "net")


def test_model_spec_an_output_that_is_no_map_a_class_is_refused() -> None:
    with pytest.raises(ModelInputError, match=r"logits for 3 classes have shape \(N, 3, H, W\)"):
        Network(nn.Conv2d(3, 2, 1), 3, (8, 8), "net")


def test_model_spec_a_contract_in_a_header_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(to_bytes(nn.Conv2d(1, 1, 1), {METADATA_KEY: json.dumps({"schema": 99})}))
    with pytest.raises(InputError, match="schema 99"):
        load_network(ModelSpec(str(path)))


def test_model_spec_a_folder_of_a_networks_name_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deeplabv3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_network(ModelSpec("deeplabv3", 3, SMALL, None, (32, 32))).contract.size == (32, 32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("deeplabv9", "no such network; it must be one of"),
        ("nowhere:make", "module nowhere cannot be imported"),
        ("builtins:dict", "returned dict, not an nn.Module"),
    ],
)
def test_model_spec_a_model_is_looked_up_before_its_options_are_asked_for(
    model: str, message: str
) -> None:
    options = {"num_classes": 3, "size": (8, 8)} if model == "builtins:dict" else {}
    with pytest.raises((InputError, ModelInputError), match=message):
        load_network(ModelSpec(model, **options))


def test_model_spec_any_failure_of_the_users_network_is_one_line() -> None:
    class Strict(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2] % 32 == 0, "height must be a multiple of 32"
            return x

    with pytest.raises(ModelInputError, match=r"AssertionError: height must be a multiple of 32"):
        Network(Strict(), 3, (33, 32), "net")


def test_model_spec_tied_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    network[1].weight = network[0].weight
    path = tmp_path / "m.safetensors"
    path.write_bytes(to_bytes(network, {}))
    assert set(safe_open(path, "pt").keys()) == set(network.state_dict())


def test_model_spec_nan_in_a_factorys_own_weights_names_the_tensor(project: Path) -> None:
    (project / "ill.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(num_classes):\n"
        "    net = nn.Conv2d(3, num_classes, 1)\n"
        "    net.weight.data[0] = float('nan')\n"
        "    return net\n"
    )
    with pytest.raises(ModelInputError, match="ill:make: tensor weight holds NaN"):
        load_network(ModelSpec("ill:make", 2, {}, None, (8, 8)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {0: s["classifier.bias"]}, "is not a plain state dict"),
        (lambda s: {**s, "classifier.bias": s["classifier.bias"].to_sparse()}, "sparse_coo"),
        (lambda s: {**s, "classifier.bias": s["classifier.bias"].to(torch.cfloat)}, "complex64"),
        (lambda s: {**s, "classifier.bias": s["classifier.bias"].int()}, "is torch.int32"),
    ],
)
def test_model_spec_tensors_that_are_no_weights_are_named(
    change, said: str, tmp_path: Path
) -> None:
    path = plain(tmp_path, change(DeepLabV3(3, **SMALL).state_dict()))
    with pytest.raises(ModelInputError, match=said):
        load_network(ModelSpec("deeplabv3", 3, SMALL, path, (32, 32)))


def test_model_spec_another_width_is_not_called_another_network(tmp_path: Path) -> None:
    path = plain(tmp_path, DeepLabV3(3, width=8).state_dict())
    for name in ("deeplabv3", "memory_efficient_deeplabv3"):
        with pytest.raises(
            ModelInputError, match="check the architecture, --num-classes, --channels, --width"
        ):
            load_network(ModelSpec(name, 3, SMALL, path, (32, 32)))


def test_model_spec_num_classes_is_no_argument_of_a_factory(project: Path) -> None:
    with pytest.raises(InputError, match="give num_classes as --num-classes"):
        load_network(ModelSpec("mynet.seg:make", 3, {"num_classes": 5}, None, (32, 32)))
