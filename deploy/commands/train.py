"""`segdeploy train`: train a network on a data set, and write checkpoints with a contract."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.content_keys import key_of_frames, same_images
from segdeploy.contract import FIT_EXAMPLES, METADATA_KEY, Contract
from segdeploy.contract_statement import option_of
from segdeploy.errors import InputError
from segdeploy.files import check_input, check_output, write_atomically
from segdeploy.model_spec import CHECKPOINT_SUFFIX, ModelSpec
from segdeploy.network_loading import LoadedNetwork, load_network, matched
from segdeploy.output_lock import one_writer
from segdeploy.packages import require, versions

if TYPE_CHECKING:
    from torch import Tensor

    from segdeploy.models.dataset import DataSet, Frame
    from segdeploy.models.training import Step, Training, TrainingSettings

DEFAULT_SIZE = (360, 480)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingReport:
    """The result of training: `loading_share` is the share of time spent waiting for data, 0..1.

    `miou` maps each validated epoch, counted from 1, to its mIoU. `unseen` lists the classes that
    are in no mask.
    """

    path: Path
    epochs: int
    images: int
    seconds: float
    loading_share: float
    loss: float
    best_miou: float | None = None
    miou: dict[int, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


@one_writer
def train(
    model: str | Path | ModelSpec,
    data: Path | str,
    out: Path | str,
    *,
    split: str = "train",
    val_split: str = "val",
    validate_every: int = 0,
    class_weights: str = "none",
    resume: bool = False,
    log_dir: Path | None = None,
    augmentation: Mapping[str, Any] | None = None,
    on_start: Callable[[tuple[str, ...]], None] = lambda unseen: None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[int, float | None], None] = lambda epoch, miou: None,
    **settings: Any,
) -> TrainingReport:
    """Train a network on a data set, and write its checkpoint to `out`.

    With `validate_every` N, mIoU on `val_split` is measured after every N epochs and after the last
    epoch. `out` is then the checkpoint with the best mIoU, and `NAME.last.safetensors` is the
    latest epoch. Without validation, `out` is the latest epoch. `NAME.resume.pt` holds the state
    that `resume` needs to continue exactly after the last complete epoch. `settings` are fields of
    `TrainingSettings` (`epochs`, `batch_size`, `learning_rate`, `loss`, `schedule`, ...).
    `augmentation` holds fields of `Augmentation`. `on_start` receives the classes that are in no
    mask, after all masks have been read.

    Under `torchrun` all processes share each batch and the validation. The first process writes.

    Raises:
        InputError, ModelInputError: for a model, data set, setting or output that cannot be used.
    """
    spec = ModelSpec.of(model)
    out = check_output(
        Path(out), CHECKPOINT_SUFFIX, read_from=Path(spec.model) if spec.is_file else spec.weights
    )
    for beside in (resume_file(out), _last_file(out)):
        check_output(beside)
    require("torch", "torchvision", "safetensors")
    import torch

    from segdeploy.models.augmentation import Augmentation
    from segdeploy.models.dataset import open_dataset
    from segdeploy.models.distributed import process_group, rank, world_size
    from segdeploy.models.training import Training, TrainingSettings

    dataset = open_dataset(Path(data))
    dataset.frames(split)
    if validate_every:
        dataset.frames(val_split)
    torch.manual_seed(settings.get("seed", 0))  # the network's random initial weights
    loaded = _with_provenance(load_network(spec, dataset, DEFAULT_SIZE, is_trained_here=True))
    contract = loaded.contract
    _check_trainable(spec, contract)
    dataset = matched(contract, dataset, spec.model)
    frames = dataset.with_channels(contract.channels).frames(split)  # what the network takes
    validation = dataset.frames(val_split) if validate_every else []
    wanted = Augmentation(**{"crop": contract.size, **(augmentation or {})})
    chosen = TrainingSettings(
        contract.size,
        contract.mean,
        contract.std,
        wanted,
        contract.scale,
        contract.dtype,
        contract.has_bit_planes,
        **settings,
    )
    if shared := same_images(validation, frames):
        _LOG.info(
            f"{len(shared)} of {len(validation)} frames of '{val_split}' are in '{split}', too: "
            "mIoU on them measures memorization, not generalization"
        )
    weights, unseen = _class_weights(dataset, frames, class_weights)
    on_start(unseen)
    identity = {
        **_described(loaded, chosen),
        "frames": key_of_frames(frames, masks=True),
        "validation": f"every {validate_every} epochs on {val_split} "
        f"{key_of_frames(validation, masks=True)}",
        "class weights": class_weights,
        "number of processes": str(world_size()),
    }
    files = _Files(out, loaded, identity, validated=bool(validate_every))
    progress = _Progress()
    with ExitStack() as stack:
        stack.enter_context(process_group())
        training = Training(loaded.network, frames, dataset.ignore_index, chosen, weights)
        if resume:
            progress = files.restore(training)
        log = _event_log(stack, log_dir) if rank() == 0 else None
        while training.epochs_done < chosen.epochs:
            for step in training.epoch():
                progress.count(step)
                on_step(step)
            done, miou = training.epochs_done, None
            _check_epoch(loaded, done)
            if validate_every and (done % validate_every == 0 or done == chosen.epochs):
                miou = progress.miou[done] = _validate(loaded, dataset, validation)
            if rank() == 0:
                files.write(training, progress)
            if log is not None:
                _write_events(log, done, progress, miou)
            on_epoch(done, miou)
    return progress.report(out, chosen.epochs, unseen)


def _check_trainable(spec: ModelSpec, contract: Contract) -> None:
    """Refuse preprocessing that training does not do.

    Raises:
        InputError: for a fit or kernel of its own, a conversion, or a normalization without
            constants.
    """
    if named := [name for name in ("fit", *FIT_EXAMPLES, "resize") if name in spec.stated]:
        raise InputError(
            f"{', '.join(map(option_of, named))}: training has its own scaling and cropping "
            "(--crop, --scale); leave the option out"
        )
    if contract.fit != "stretch":
        raise InputError(
            f"{spec.weights}: its contract says {contract.fit}, which training cannot keep; train "
            "from weights without a contract"
        )
    if contract.gray is not None:
        raise InputError(
            f"--gray {contract.gray}: training takes the images as they are; convert the data set "
            "to gray, or train on RGB"
        )
    if contract.normalization == "per-image":
        raise InputError(
            "--normalization per-image: training normalizes by constants; state --mean and --std"
        )


def _described(loaded: LoadedNetwork, settings: TrainingSettings) -> dict[str, str]:
    """What identifies a run beside its data: network, weights and settings."""
    contract = loaded.contract
    return {
        "architecture": contract.architecture,
        "arguments": repr(sorted(contract.arguments.items())),
        "classes": ", ".join(contract.classes),
        "weights": loaded.sha256 or "",
        **_comparable(settings),
    }


def _check_epoch(loaded: LoadedNetwork, epoch: int) -> None:
    """Check the network before it is saved: a diverged one must not replace the last checkpoint.

    Raises:
        ModelInputError: for weights that are not finite, or a network that fails on an image.
    """
    from segdeploy.models.checkpoint import check_finite
    from segdeploy.models.errors import ModelInputError

    check_finite(loaded.network, f"training: epoch {epoch} is not saved")
    try:
        loaded.network.fit(loaded.contract.size)
    except ModelInputError as error:
        raise ModelInputError(f"training: epoch {epoch} is not saved; {error}") from error


def resume_file(out: Path) -> Path:
    """Return the path of the resume file that belongs to the checkpoint `out`."""
    return out.with_name(f"{out.name.removesuffix(CHECKPOINT_SUFFIX)}.resume.pt")


def _last_file(out: Path) -> Path:
    """Return the path of the latest epoch's checkpoint, beside the best checkpoint `out`."""
    return out.with_name(f"{out.name.removesuffix(CHECKPOINT_SUFFIX)}.last{CHECKPOINT_SUFFIX}")


@dataclass
class _Progress:
    """Running totals, which are stored in the resume file."""

    seconds: float = 0.0
    loading: float = 0.0
    loss: float = 0.0
    images: int = 0
    miou: dict[int, float] = field(default_factory=dict)

    def count(self, step: Step) -> None:
        self.seconds += step.seconds
        self.loading += step.loading
        self.loss = step.loss
        self.images += step.images

    def report(self, out: Path, epochs: int, unseen: tuple[str, ...]) -> TrainingReport:
        return TrainingReport(
            path=out,
            epochs=epochs,
            images=self.images,
            seconds=self.seconds,
            loading_share=self.loading / self.seconds if self.seconds else 0.0,
            loss=self.loss,
            best_miou=max(self.miou.values(), default=None),
            miou=self.miou,
            unseen=unseen,
        )


class _Files:
    """The checkpoint, the latest epoch's checkpoint, and the resume file."""

    def __init__(
        self, out: Path, loaded: LoadedNetwork, run: Mapping[str, str], *, validated: bool
    ):
        self._run = dict(run)
        self._best = out
        self._last = _last_file(out) if validated else out
        self._resume = resume_file(out)
        self._loaded = loaded

    def write(self, training: Training, progress: _Progress) -> None:
        """Write an epoch's files, each atomically; the resume file last."""
        import torch

        from segdeploy.models.checkpoint import to_bytes

        header = {METADATA_KEY: self._loaded.contract.to_json()}
        checkpoint = to_bytes(self._loaded.network.module, header)
        write_atomically(self._last, checkpoint)
        latest = progress.miou.get(training.epochs_done)
        if latest is not None and latest == max(progress.miou.values()):
            write_atomically(self._best, checkpoint)
        state = {
            "training": training.state(),
            "progress": asdict(progress),
            "run": self._run,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self._resume, buffer.getvalue())

    def restore(self, training: Training) -> _Progress:
        """Restore the training state from the resume file.

        Raises:
            InputError: if the file is missing or damaged, or belongs to another training.
        """
        import torch

        from segdeploy.models.errors import first_line

        check_input(self._resume)
        try:
            state = torch.load(self._resume, map_location="cpu", weights_only=True)
            then, progress = dict(state["run"]), _Progress(**state["progress"])
            if different := [key for key, value in self._run.items() if then.get(key) != value]:
                raise InputError(
                    f"{self._resume}: was trained with another {', '.join(different)}; "
                    "resume with the options of the first run"
                )
            training.restore(state["training"])
        except InputError:
            raise
        except Exception as error:  # a damaged file may raise any exception
            raise InputError(
                f"{self._resume}: cannot be resumed from ({first_line(error)})"
            ) from error
        return progress


def _comparable(settings: TrainingSettings) -> dict[str, str]:
    """Return the settings that must not change between a run and its resumption."""
    return {key: repr(value) for key, value in asdict(settings).items() if key != "workers"}


def _with_provenance(loaded: LoadedNetwork) -> LoadedNetwork:
    provenance = dict(versions("torch", "torchvision"))
    if loaded.sha256:
        provenance["parent_sha256"] = loaded.sha256
    # The network learns with this preprocessing, so nothing of it is assumed.
    contract = replace(loaded.contract, provenance=provenance, assumed=())
    return replace(loaded, contract=contract)


def _class_weights(
    dataset: DataSet, frames: Sequence[Frame], method: str
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the class weights by `method`, and the classes that are in no mask."""
    from segdeploy.models.losses import class_weights_from
    from segdeploy.models.metrics import class_counts

    if dataset.bit_planes and method != "none":
        raise InputError(
            f"--class-weights {method}: goes with one class for a pixel, and the masks of "
            f"{dataset.root} are bit planes; leave the option out"
        )
    counts, held = class_counts(frames, len(dataset.classes), bit_planes=dataset.bit_planes)
    unseen = tuple(n for n, c in zip(dataset.classes, counts, strict=True) if c == 0)
    return class_weights_from(counts, held, method), unseen


def _validate(loaded: LoadedNetwork, dataset: DataSet, frames: Sequence[Frame]) -> float:
    """Return the mIoU over all frames, which are divided among the processes."""
    from segdeploy.models.distributed import rank, summed, world_size
    from segdeploy.models.metrics import defined_mean
    from segdeploy.proof.accuracy import label_counts
    from segdeploy.runtime.predictor import Predictor
    from segdeploy.runtime.torch_session import TorchSession

    predictor = Predictor(TorchSession(loaded.network, loaded.contract))
    counted = label_counts(predictor, dataset, frames[rank() :: world_size()])
    counted.counts = summed(counted.counts)
    if not counted.counts.any():
        raise InputError(f"{dataset.root}: the validation masks hold only the ignore index")
    return defined_mean(counted.iou())


def _event_log(stack: ExitStack, folder: Path | None) -> Any:
    if folder is None:
        return None
    require("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return stack.enter_context(SummaryWriter(str(folder)))


def _write_events(log: Any, epoch: int, progress: _Progress, miou: float | None) -> None:
    log.add_scalar("loss", progress.loss, epoch)
    log.add_scalar("images_per_second", progress.images / progress.seconds, epoch)
    if miou is not None:
        log.add_scalar("val/mIoU", miou, epoch)
