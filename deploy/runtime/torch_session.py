"""PyTorch session, the reference that the other backends are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from segdeploy.contract import Contract
from segdeploy.packages import require
from segdeploy.profiles import Profile
from segdeploy.runtime.closing import Closing
from segdeploy.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from segdeploy.models.network import Network


class TorchSession(Closing):
    """A PyTorch network in eval mode, in float32, on the device of its parameters."""

    backend = "torch"
    takes_any_size = True
    profiles: tuple[Profile, ...] = ()

    def __init__(self, network: Network, contract: Contract, *, threads: int | None = None):
        self._torch = require("torch")
        if threads is not None:
            self._torch.set_num_threads(threads)
        self.network = network.eval()
        self._device = next(network.parameters()).device
        self.contract = contract
        batch, size = "batch", contract.size
        self.input = TensorSpec("image", (batch, len(contract.channels), *size), "float")
        self.output = TensorSpec("logits", (batch, contract.score_channels, *size), "float")

    def run(self, array: NDArray[Any]) -> NDArray[Any]:
        """Run once: `(N, C, H, W) float32` to logits `(N, num_classes, H, W) float32`."""
        with self._torch.inference_mode():
            logits = self.network(self._torch.from_numpy(array).to(self._device))
        result: NDArray[Any] = logits.cpu().numpy()
        return result
