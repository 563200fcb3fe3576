"""Random networks through `export`: right graphs that are refused, and wrong ones that pass.

    python benchmarks/network_fuzz.py [--count 500] [--first 0] [--processes 2]

Each network is made from a seed: parallel dilated branches, shared and aliased modules, functional
calls, pads, resizes, norms, pooling, attention and heads of all kinds. Every fifth behaves
otherwise while it is traced (`torch.compiler.is_compiling`), as buggy code does, and must be
refused. The comparison is not segdeploy's: PyTorch and a plain ONNX Runtime session see the same
images here. Prints one line a network that is not as it should be, and the counts.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segdeploy
from segdeploy.model_spec import ModelSpec
from segdeploy.profiles import Bounds

SIZE = (32, 48)
CLASSES = 4
TAMPERED = 5  # every so many-th network
SEED = "SEGDEPLOY_FUZZ_SEED"


class FrozenNorm(nn.Module):
    """Detectron2's and torchvision's frozen BatchNorm: four buffers, no module of PyTorch's."""

    def __init__(self, channels: int):
        super().__init__()
        for name, low in (("weight", 0.5), ("bias", -0.5), ("mean", -0.5), ("var", 0.5)):
            self.register_buffer(name, torch.rand(channels) + low)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        shift = (self.bias - self.mean * scale.flatten()).reshape(1, -1, 1, 1)
        return x * scale + shift


class FunctionalNorm(FrozenNorm):
    """BatchNorm that is called as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias)


class LayerScale(nn.Module):
    """A learned factor, and at times an offset, a channel."""

    def __init__(self, channels: int, *, shifts: bool):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.1)
        self.beta = nn.Parameter(torch.rand(channels)) if shifts else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gamma.view(1, -1, 1, 1)
        return x if self.beta is None else x + self.beta.view(1, -1, 1, 1)


class Normalized(nn.Module):
    """Divides by a sum that may be zero, kept from it by a tiny constant."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x / (x.sum(1, keepdim=True) + 1e-9)


class Attention(nn.Module):
    """Pixels attend to one another on low-resolution logits."""

    def __init__(self, channels: int):
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(x, (4, 6))
        heads = self.qkv(small).flatten(2).transpose(1, 2).unsqueeze(1)
        q, k, v = heads.chunk(3, -1)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(small.shape)
        return x + F.interpolate(seen, size=x.shape[2:], mode="bilinear")


class Padded(nn.Module):
    """A convolution behind padding of some kind."""

    def __init__(self, draw: random.Random, channels: int, wide: int):
        super().__init__()
        self.kind = draw.choice(["zero", "one", "reflect", "same", "tf", "module", "reset"])
        self.rate = draw.randint(1, 3)
        own = 0 if self.kind in ("zero", "one", "tf", "module") else self.rate
        mode = "reflect" if self.kind == "reflect" else "zeros"
        padding: Any = "same" if self.kind == "same" else own
        self.conv = nn.Conv2d(
            channels, wide, 3, padding=padding, dilation=self.rate, padding_mode=mode,
            bias=draw.random() < 0.7,
        )  # fmt: skip
        if self.kind == "reset":  # what segmentation_models_pytorch does
            self.conv.dilation, self.conv.padding = (2, 2), (2, 2)
        self.pad = nn.ZeroPad2d(self.rate) if self.kind == "module" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("zero", "one"):
            x = F.pad(x, (self.rate,) * 4, value=float(self.kind == "one"))
        if self.kind == "tf":
            x = F.pad(x, (0, 2 * self.rate, 0, 2 * self.rate))
        return self.conv(self.pad(x))


class Shared(nn.Module):
    """One convolution that runs several times: alike, under two names, or at other rates."""

    def __init__(self, draw: random.Random, channels: int):
        super().__init__()
        self.kind = draw.choice(["twice", "alias", "rates", "functional", "checkpoint"])
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.alias = self.conv

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rates":
            return sum(
                F.conv2d(x, self.conv.weight, self.conv.bias, padding=r, dilation=r).relu()
                for r in (1, 2, 3)
            )
        if self.kind == "functional":
            return self.conv(F.conv2d(x, self.conv.weight, padding=1).relu())
        if self.kind == "checkpoint":
            return checkpoint(self.conv, x, use_reentrant=True)
        return self.alias(self.conv(x).relu())


class Branches(nn.Module):
    """Parallel dilated convolutions, joined or summed, with or without a pooled branch."""

    def __init__(self, draw: random.Random, channels: int):
        super().__init__()
        rates = draw.sample([1, 2, 3, 5, 9], draw.randint(2, 3))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=r, dilation=r) for r in rates
        )
        if draw.random() < 0.3:  # a branch that parity cannot see
            for parameter in self.convs[-1].parameters():
                parameter.data *= 1e-6
        self.joins, self.pools, self.acts = (draw.random() < 0.5 for _ in range(3))
        count = len(rates) + self.pools
        self.combine = nn.Conv2d(channels * (count if self.joins else 1), channels, 1)
        self.swap = False

    def forward(self, x: Tensor) -> Tensor:
        convs = list(self.convs)[:: -1 if self.swap else 1]
        parts = [conv(x).relu() if self.acts else conv(x) for conv in convs]
        if self.pools:
            pooled = x.mean((2, 3), keepdim=True)
            parts.append(F.interpolate(pooled, size=x.shape[2:], mode="bilinear"))
        joined = torch.cat(parts, 1) if self.joins else torch.stack(parts).sum(0)
        return self.combine(joined)


class Down(nn.Module):
    """Fewer pixels, and back: what lies between is on a smaller map."""

    def __init__(self, draw: random.Random, channels: int):
        super().__init__()
        self.kind = draw.choice(["stride", "max", "average", "ceil", "unfold"])
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if self.kind == "stride" else 1,
                              padding=1)  # fmt: skip
        self.mode = draw.choice(["bilinear", "nearest", "bicubic", "transposed"])
        self.corners = draw.random() < 0.5 if self.mode in ("bilinear", "bicubic") else None
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        small = self.conv(x)
        if self.kind == "max":
            small = F.max_pool2d(small, 3, 2, 1)
        elif self.kind == "average":
            small = F.avg_pool2d(small, 2)
        elif self.kind == "ceil":
            small = F.max_pool2d(small, 2, ceil_mode=True)
        elif self.kind == "unfold":
            small = F.pixel_unshuffle(small, 2)[:, : small.shape[1]]
        if self.mode == "transposed":
            small = self.up(small)
        size = x.shape[2:]
        corners = {} if self.corners is None else {"align_corners": self.corners}
        mode = "bilinear" if self.mode == "transposed" else self.mode
        return F.interpolate(small, size=size, mode=mode, **corners)


@dataclass
class Output:
    """An output object such as Hugging Face's."""

    logits: Tensor
    hidden: Tensor


class RandomNetwork(nn.Module):
    """A network from a seed; `tampered` ones run otherwise while they are traced."""

    def __init__(self, seed: int):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        channels = draw.choice([4, 6, 8])
        self.stem = Padded(draw, 3, channels)
        blocks: list[nn.Module] = []
        for _ in range(draw.randint(2, 5)):
            blocks.append(self._block(draw, channels))
            blocks += [self._norm(draw, channels)] if draw.random() < 0.6 else []
            blocks.append(draw.choice([nn.ReLU(inplace=True), nn.GELU(), nn.Hardswish(), nn.SiLU(),
                                       nn.Identity()]))  # fmt: skip
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, CLASSES, draw.choice([1, 3]), padding=0)
        self.unused = nn.Conv2d(channels, CLASSES, 1)
        self.ending = draw.choice(["tensor", "dict", "pred", "tuple", "object", "list"])
        self.tampered = seed % TAMPERED == TAMPERED - 1
        for module in self.modules():
            if (
                isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d))
                and module.track_running_stats
            ):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)

    @staticmethod
    def _block(draw: random.Random, channels: int) -> nn.Module:
        kind = draw.choice(["padded", "shared", "branches", "branches", "down", "down", "attention",
                            "scale", "normalized", "depthwise", "normed"])  # fmt: skip
        if kind == "padded":
            return Padded(draw, channels, channels)
        if kind == "shared":
            return Shared(draw, channels)
        if kind == "branches":
            return Branches(draw, channels)
        if kind == "down":
            return Down(draw, channels)
        if kind == "attention":
            return Attention(channels)
        if kind == "normalized":
            return Normalized()
        if kind == "depthwise":
            rate = draw.randint(1, 4)
            return nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels)
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        if kind == "normed":
            return nn.utils.parametrizations.weight_norm(conv)
        return nn.Sequential(conv, LayerScale(channels, shifts=draw.random() < 0.5))

    @staticmethod
    def _norm(draw: random.Random, channels: int) -> nn.Module:
        return draw.choice([
            nn.BatchNorm2d(channels), FrozenNorm(channels), FunctionalNorm(channels),
            nn.GroupNorm(2, channels), nn.InstanceNorm2d(channels, track_running_stats=True),
            nn.InstanceNorm2d(channels),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        if self.tampered and torch.compiler.is_compiling():
            self._tamper()
        features = self.blocks(self.stem(x))
        logits = F.interpolate(self.head(features), size=x.shape[2:], mode="bilinear")
        aux = self.unused(features)
        return {
            "tensor": logits,
            "dict": {"out": logits, "aux": aux},
            "pred": {"pred": logits},
            "tuple": (logits, aux),
            "list": [logits, aux],
            "object": Output(logits, aux),
        }[self.ending]

    def _tamper(self) -> None:
        """Change something that only a trace sees."""
        for module in self.modules():
            if isinstance(module, Branches) and len(module.convs) > 1:
                module.swap = True
                return
            if isinstance(module, Down) and module.corners is not None:
                module.corners = not module.corners
                return
        self.head.dilation = (2, 2)
        self.head.padding = (self.head.kernel_size[0] - 1,) * 2


def tampering_shows(network: RandomNetwork) -> bool:
    """Whether the network that is traced has other convolutions, or another order of them."""
    for module in network.modules():
        if isinstance(module, Branches):
            return True
        if isinstance(module, Down) and module.corners is not None:
            return True
    return network.head.kernel_size != (1, 1)


def make() -> nn.Module:
    """The factory that `export` calls: the network of this process's seed."""
    return RandomNetwork(_seed[0]).eval()


_seed = [0]


def images() -> list[np.ndarray]:
    """What PyTorch and ONNX Runtime are compared on here: noise, darkness and borders."""
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    bordered = noise.copy()
    bordered[:, :, :10] = 0
    return [noise, bordered, np.full_like(noise, -2.0), 3 * np.abs(noise)]


def main_output(output: Any) -> Tensor:
    """The logits of any of the endings."""
    if isinstance(output, dict):
        return output.get("out", output.get("pred"))
    if isinstance(output, (tuple, list)):
        return output[0]
    return output.logits if isinstance(output, Output) else output


def is_same(path: Path) -> bool:
    """Whether a file gives what PyTorch gives, by a plain session."""
    network = RandomNetwork(_seed[0]).eval()
    network.tampered = False
    session = onnxruntime.InferenceSession(str(path))
    for image in images():
        with torch.no_grad():
            expected = main_output(network(torch.from_numpy(image))).numpy()
        (found,) = session.run(None, {"image": image})
        if found.shape != expected.shape or not np.isfinite(found).all():
            return False
        if np.abs(found - expected).max() > 2e-3 * max(float(np.ptp(expected)), 1e-2):
            return False
    return True


def evaluate(seed: int, folder: Path) -> tuple[str, str]:
    """Export one network, and say how that ended."""
    _seed[0] = seed
    out = folder / "m.onnx"
    rejected = folder / "m.rejected.onnx"
    out.unlink(missing_ok=True)
    rejected.unlink(missing_ok=True)
    network = RandomNetwork(seed)
    must_fail = network.tampered and tampering_shows(network)
    options: dict[str, Any] = {}
    if seed % 3 == 0:
        options = {"dynamic": True, "bounds": Bounds((16, 16), (96, 96), 3)}
    spec = ModelSpec(f"{Path(__file__).stem}:make", size=SIZE)
    try:
        segdeploy.export(spec, out, **options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        code = getattr(error, "exit_code", 3)
        if must_fail and code == 1:
            return "wrong, refused", said
        if code == 1 and rejected.exists() and is_same(rejected):
            return "RIGHT, REFUSED", said
        kinds = {1: "failed a check", 2: "cannot be exported", 3: "A BUG"}
        return kinds.get(code, "A BUG"), said
    if must_fail:
        return "WRONG, PASSED", "the trace differs from what runs"
    return ("right, passed", "") if is_same(out) else ("WRONG, PASSED", "other numbers")


def run(seeds: list[int]) -> None:
    """Evaluator networks in this process, and print a line each."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    sys.modules[Path(__file__).stem] = sys.modules["__main__"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            kind, said = evaluate(seed, Path(folder))
            print(f"{seed}\t{kind}\t{' '.join(said.split())[:400]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    seeds = list(range(given.first, given.first + given.count))
    if given.share:
        part, parts = given.share
        run(seeds[part::parts])
        return
    command = [sys.executable, __file__, "--count", str(given.count), "--first", str(given.first)]
    started = [
        subprocess.Popen([*command, "--share", str(part), str(given.processes)],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for part in range(given.processes)
    ]  # fmt: skip
    counts: Counter[str] = Counter()
    for process in started:
        lines, _ = process.communicate()
        for line in lines.splitlines():
            _, _, rest = line.partition("\t")
            kind = rest.partition("\t")[0]
            counts[kind] += 1
            if kind not in ("right, passed", "wrong, refused"):
                print(line)
    for kind, count in sorted(counts.items()):
        print(f"{count:5} {kind}")
    print(f"{sum(counts.values()):5} of {given.count}")


if __name__ == "__main__":
    main()
