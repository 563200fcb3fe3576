"""Networks of other frameworks, small and with random weights, as the frameworks save them.

Nothing is fetched. `benchmarks/framework_support.py` takes each of them through every step, and
`test_frameworks.py` compares some with the framework's own prediction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import albumentations as A
import numpy as np
import segmentation_models_pytorch as smp
import torch
import transformers
from PIL import Image
from torchvision.models import get_model_weights, segmentation

NAMES = ("road", "car", "tree", "sky", "pole")
SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sample_images(
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (96, 130), (150, 81)),
) -> list[np.ndarray]:
    """Images `(H, W, 3) uint8` of several sizes: smooth, so that neighbors matter, with noise."""
    made = []
    for height, width in sizes:
        rng = np.random.default_rng(height)
        coarse = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
        noise = rng.integers(-12, 13, smooth.shape)
        made.append(np.clip(smooth.astype(int) + noise, 0, 255).astype(np.uint8))
    return made


def seeded(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with random weights, the same in every run."""
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.normal_(0, module.weight[0].numel() ** -0.5)
    for name, parameter in network.named_parameters():
        if "embeddings" in name or "cls_token" in name:  # a plain image would have no variance
            parameter.data.normal_(0, 0.5)
    return network.eval()


def balanced(network: torch.nn.Module, classes: int, given: torch.Tensor) -> torch.nn.Module:
    """Give a random network statistics and biases by which several classes occur on `given`.

    Random networks mostly give one class everywhere, so that equal labels would prove nothing.
    """
    batch = torch.cat([given, given.flip(3), given.flip(2)])
    norms = [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
        norm.reset_running_stats()
    network.train()(batch)
    before = scores_of(network.eval()(given))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == classes:
            if module.bias is None:
                continue
            module.bias.data += 1
            if torch.allclose(scores_of(network(given)), before + 1, atol=1e-3):
                mean = before.mean((0, 2, 3))
                spread = (before - mean[:, None, None]).std()
                module.bias.data -= 1 + mean
                module.weight.data /= spread
                module.bias.data /= spread
                return network
            module.bias.data -= 1
    raise ValueError("no convolution gives the scores")


def scores_of(output: Any) -> torch.Tensor:
    """The scores in a framework's output."""
    if isinstance(output, dict) and "out" in output:
        return output["out"]
    return getattr(output, "logits", output)


def _upernet() -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=stages
    )
    return transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=24
    )


VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
CROPPED = {"size": {"shortest_edge": 72}, "crop_size": {"height": SIDE, "width": SIDE}}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
HUGGING_FACE: dict[str, tuple[str, Callable[[], Any], str, dict[str, Any]]] = {
    "segformer": (
        "SegformerForSemanticSegmentation",
        lambda: transformers.SegformerConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=16,
            num_attention_heads=[1, 1, 2, 2],
        ),
        "SegformerImageProcessor",
        {**SQUARE, "do_reduce_labels": True},
    ),
    "mobilenet_v2": (
        "MobileNetV2ForSemanticSegmentation",
        lambda: transformers.MobileNetV2Config(depth_multiplier=0.25),
        "MobileNetV2ImageProcessor",
        CROPPED,
    ),
    "mobilevit": (
        "MobileViTForSemanticSegmentation",
        lambda: transformers.MobileViTConfig(
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 32],
            aspp_out_channels=16,
        ),
        "MobileViTImageProcessor",
        CROPPED,
    ),
    "mobilevitv2": (
        "MobileViTV2ForSemanticSegmentation",
        lambda: transformers.MobileViTV2Config(width_multiplier=0.25, aspp_out_channels=16),
        "MobileViTImageProcessor",
        {**CROPPED, "resample": 2},
    ),
    "beit": (
        "BeitForSemanticSegmentation",
        lambda: transformers.BeitConfig(
            **VISION,
            intermediate_size=32,
            image_size=SIDE,
            out_indices=[1, 2, 3, 4],
            use_relative_position_bias=True,
        ),
        "BeitImageProcessor",
        {**SQUARE, "do_center_crop": False},
    ),
    "data2vec": (
        "Data2VecVisionForSemanticSegmentation",
        lambda: transformers.Data2VecVisionConfig(
            **VISION, intermediate_size=32, image_size=SIDE, out_indices=[1, 2, 3, 4]
        ),
        "BeitImageProcessor",
        {**SQUARE, "do_center_crop": False},
    ),
    "dpt": (
        "DPTForSemanticSegmentation",
        lambda: transformers.DPTConfig(
            **VISION,
            intermediate_size=32,
            image_size=SIDE,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 16, 16, 16],
            fusion_hidden_size=16,
        ),
        "DPTImageProcessor",
        SQUARE,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        _upernet,
        "SegformerImageProcessor",
        SQUARE,
    ),
}
HUGGING_FACE["segformer, Pillow"] = (
    *HUGGING_FACE["segformer"][:2],
    *("SegformerImageProcessorPil", SQUARE),
)
MMSEG = (
    "bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024",
    "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024",
    "deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024",
    "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024",
    "fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024",
    "ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024",
    "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes",
    "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024",
    "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512",
    "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512",
    "sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024",
    "stdc/stdc1_4xb12-80k_cityscapes-512x1024",
    "upernet/upernet_r18_4xb4-80k_ade20k-512x512",
)
"""Configurations that mmsegmentation 1.2 publishes, by folder and name."""
MMSEG_PACKAGES = Path(sys.prefix) / "mmsegmentation"
PACKAGES = {
    "hf": "transformers",
    "mmseg": "mmsegmentation",
    "smp": "segmentation-models-pytorch",
    "torchvision": "torchvision",
}


def saved_by_transformers(name: str, folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    network, config, processor, options = HUGGING_FACE[name]
    settings = config()
    settings.id2label = dict(enumerate(names))
    settings.label2id = {one: at for at, one in enumerate(names)}
    made = seeded(lambda: getattr(transformers, network)(settings))
    chosen = getattr(transformers, processor)(**options)
    image = Image.fromarray(sample_images()[1])
    given = chosen(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        balanced(made, len(names), given).save_pretrained(folder)
    chosen.save_pretrained(folder)
    return folder


SMP = {
    "DeepLabV3": "resnet18",
    "DeepLabV3Plus": "mobilenet_v2",
    "FPN": "resnet18",
    "Linknet": "resnet18",
    "MAnet": "resnet18",
    "PAN": "resnet18",
    "PSPNet": "mobilenet_v2",
    "Segformer": "resnet18",
    "UPerNet": "resnet18",
    "Unet": "mobilenet_v2",
    "UnetPlusPlus": "resnet18",
}


def saved_by_smp(
    folder: Path, steps: list[Any] | None, name: str = "DeepLabV3Plus", **options: Any
) -> torch.nn.Module:
    """Save a network, and a pipeline of these steps beside it; return the network."""
    settings = {"encoder_weights": None, "classes": 5, **options}
    network = seeded(lambda: getattr(smp, name)(SMP[name], **settings))
    image = sample_images(((128, 128),))[0]
    given = torch.as_tensor(image).permute(2, 0, 1)[None] / 64 - 2
    if "activation" not in options:
        with torch.no_grad():
            balanced(network, settings["classes"], given)
    network.save_pretrained(folder)
    if steps is not None:
        A.Compose(steps).save_pretrained(folder, key="eval")
    return network


def labels_of_transformers(folder: Path, image: np.ndarray) -> np.ndarray:
    """The labels at the size of the network's input, by transformers alone."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    given = processor(images=Image.fromarray(image), return_tensors="pt")
    with torch.no_grad():
        output = network(**given)
    size = tuple(given["pixel_values"].shape[2:])
    (labels,) = processor.post_process_semantic_segmentation(output, target_sizes=[size])
    return labels.numpy()


def labels_of_smp(network: torch.nn.Module, steps: list[Any], image: np.ndarray) -> np.ndarray:
    """The labels at the size of the network's input, by albumentations and PyTorch alone."""
    made = torch.as_tensor(np.asarray(A.Compose(steps)(image=image)["image"]))
    planes = made if made.shape[0] == 3 else made.permute(2, 0, 1)
    with torch.no_grad():
        return network(planes[None].float())[0].argmax(0).numpy()


def published_by_torchvision(name: str, cache: Path) -> torch.nn.Module:
    """Put random weights where torchvision's published ones belong; return their network.

    `cache` is the folder of TORCH_HOME.
    """
    entry = get_model_weights(name).DEFAULT
    has_auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    network = seeded(
        lambda: getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=21, **has_auxiliary
        )
    )
    with torch.no_grad():
        image = Image.fromarray(sample_images()[0])
        balanced(network, 21, entry.transforms()(image)[None])
    path = cache / "hub" / "checkpoints" / entry.url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network


def add_mmsegmentation() -> None:
    """Make mmsegmentation importable in this process.

    mmcv's compiled operators are in no wheel of a registry. A module without operators stands in
    for them: a network that calls one fails.
    """
    sys.path.append(str(MMSEG_PACKAGES))
    operators = ModuleType("mmcv._ext")
    operators.__dict__["__getattr__"] = _absent_operator
    sys.modules["mmcv._ext"] = operators


def import_mmsegmentation() -> Path:
    """Import mmsegmentation; return the folder of its configurations."""
    add_mmsegmentation()
    import mmseg

    return Path(mmseg.__file__).parent / ".mim" / "configs"


def _absent_operator(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return NotImplemented


def saved_by_mmsegmentation(name: str, folder: Path) -> tuple[str, torch.nn.Module]:
    """Save the network of a published configuration, for images of 256x128 pixels.

    Return the source, and mmsegmentation's network.
    """
    published = import_mmsegmentation() / f"{name}.py"
    from mmengine.config import Config
    from mmseg.apis import init_model
    from mmseg.registry import DATASETS

    config, weights = folder / "config.py", folder / "network.pth"
    config.write_text(
        f"_base_ = [{str(published)!r}]\n"
        "test_pipeline = [dict(type='LoadImageFromFile'),"
        " dict(type='Resize', scale=(256, 128), keep_ratio=True), dict(type='PackSegInputs')]\n"
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n"
    )
    described = Config.fromfile(str(config))
    meta = DATASETS.get(described.test_dataloader.dataset.type).METAINFO
    network = seeded(lambda: init_model(described, None, device="cpu"))
    for module in network.modules():  # so that several classes occur
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.6, 1.4)
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.2)
    torch.save({"state_dict": network.state_dict(), "meta": {"dataset_meta": dict(meta)}}, weights)
    return f"mmseg:{config},{weights}", network


def labels_of_mmsegmentation(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """The labels of an image of 256x128 pixels, by mmsegmentation alone."""
    from mmseg.apis import inference_model

    return inference_model(network, image[:, :, ::-1].copy()).pred_sem_seg.data[0].numpy()
