"""`segdeploy train`: network, data set and contract come together; checkpoints come out."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.content_keys import key_of_frames, same_pictures
from segdeploy.contract import METADATA_KEY
from segdeploy.errors import InputError
from segdeploy.files import check_input, check_output, write_atomically
from segdeploy.model_spec import CHECKPOINT_SUFFIX, LoadedNetwork, ModelSpec, load_network
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
    """What training did: `loading_share` is the part of the time spent waiting for data, 0..1.

    `miou` holds the validated epochs, from 1; `unseen` the classes that are in no mask.
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
    """Train a network on a data set, and keep its checkpoint at `out`.

    With `validate_every` N, mIoU on `val_split` is measured after every N epochs and the last one;
    `out` is then the best of them, and `NAME.last.safetensors` the latest epoch. Without, `out` is
    the latest epoch. `NAME.resume.pt` holds what `resume` needs to continue after the last whole
    epoch as if nothing had happened. `settings` are fields of `TrainingSettings` (`epochs`,
    `batch_size`, `learning_rate`, `loss`, `schedule`, ...), `augmentation` those of `Augmentation`.
    `on_start` is told the classes that are in no mask, once every mask has been read.

    Under `torchrun` all processes share each batch and the validation; the first one writes.

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
    from segdeploy.models.checkpoint import check_finite
    from segdeploy.models.dataset import open_dataset
    from segdeploy.models.distributed import process_group, rank, world_size
    from segdeploy.models.errors import ModelInputError
    from segdeploy.models.training import Training, TrainingSettings

    dataset = open_dataset(Path(data))
    frames = dataset.frames(split)
    validation = dataset.frames(val_split) if validate_every else []
    torch.manual_seed(settings.get("seed", 0))  # the network's random initial weights
    loaded = _with_provenance(load_network(spec, dataset, DEFAULT_SIZE))
    contract = loaded.contract
    wanted = Augmentation(**{"crop": contract.size, **(augmentation or {})})
    chosen = TrainingSettings(contract.size, contract.mean, contract.std, wanted, **settings)
    if shared := same_pictures(validation, frames):
        _LOG.info(
            f"{len(shared)} of {len(validation)} frames of '{val_split}' are in '{split}', too: "
            "mIoU on them says how well they were learned, and not how well others will be"
        )
    weights, unseen = _class_weights(dataset, frames, class_weights)
    on_start(unseen)
    run = {
        "architecture": contract.architecture,
        "arguments": repr(sorted(contract.arguments.items())),
        "classes": ", ".join(contract.classes),
        "frames": key_of_frames(frames, masks=True),
        "weights": loaded.sha256 or "",
        "validation": f"every {validate_every} epochs on {val_split} "
        f"{key_of_frames(validation, masks=True)}",
        "class weights": class_weights,
        "number of processes": str(world_size()),
        **_comparable(chosen),
    }
    files = _Files(out, loaded, run, validated=bool(validate_every))
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
            done = training.epochs_done
            # A network that has diverged does not replace the last good one.
            check_finite(loaded.network, f"training: epoch {done} is not saved")
            try:
                loaded.network.fit(contract.size)
            except ModelInputError as error:
                raise ModelInputError(f"training: epoch {done} is not saved; {error}") from error
            miou = None
            if validate_every and (done % validate_every == 0 or done == chosen.epochs):
                miou = _validate(loaded, dataset, validation)
                progress.miou[done] = miou
            if rank() == 0:
                files.write(training, progress)
            if log is not None:
                _write_events(log, done, progress, miou)
            on_epoch(done, miou)
    return progress.report(out, chosen.epochs, unseen)


def resume_file(out: Path) -> Path:
    """Where a training that writes the checkpoint `out` keeps what `resume` needs."""
    return out.with_name(f"{out.name.removesuffix(CHECKPOINT_SUFFIX)}.resume.pt")


def _last_file(out: Path) -> Path:
    """The latest epoch's checkpoint, beside the best one's `out`."""
    return out.with_name(f"{out.name.removesuffix(CHECKPOINT_SUFFIX)}.last{CHECKPOINT_SUFFIX}")


@dataclass
class _Progress:
    """Running totals; they live on in the resume file."""

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
        """Continue from the resume file.

        Raises:
            InputError: if there is none, it is damaged, or it is of another training.
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
                    "resume with the options that it was started with"
                )
            training.restore(state["training"])
        except InputError:
            raise
        except Exception as error:  # the many ways in which foreign bytes fail to load
            raise InputError(
                f"{self._resume}: cannot be resumed from ({first_line(error)})"
            ) from error
        return progress


def _comparable(settings: TrainingSettings) -> dict[str, str]:
    """What must not change between a run and its continuation."""
    return {key: repr(value) for key, value in asdict(settings).items() if key != "workers"}


def _with_provenance(loaded: LoadedNetwork) -> LoadedNetwork:
    provenance = dict(versions("torch", "torchvision"))
    if loaded.sha256:
        provenance["parent_sha256"] = loaded.sha256
    return replace(loaded, contract=replace(loaded.contract, provenance=provenance))


def _class_weights(
    dataset: DataSet, frames: Sequence[Frame], method: str
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Weights by `method`, and the classes that no mask holds."""
    from segdeploy.models.losses import class_weights_from
    from segdeploy.models.metrics import class_counts

    counts, held = class_counts(frames, len(dataset.classes))
    unseen = tuple(n for n, c in zip(dataset.classes, counts, strict=True) if c == 0)
    return class_weights_from(counts, held, method), unseen


def _validate(loaded: LoadedNetwork, dataset: DataSet, frames: Sequence[Frame]) -> float:
    """Mean IoU over all frames; each process takes its share."""
    from segdeploy.models.distributed import rank, summed, world_size
    from segdeploy.models.metrics import defined_mean
    from segdeploy.proof.accuracy import confusion
    from segdeploy.runtime.predictor import Predictor
    from segdeploy.runtime.torch_session import TorchSession

    predictor = Predictor(TorchSession(loaded.network, loaded.contract))
    matrix = confusion(predictor, dataset, frames[rank() :: world_size()])
    matrix.counts = summed(matrix.counts)
    if not matrix.counts.any():
        raise InputError(f"{dataset.root}: validation has no pixel that counts; all are ignored")
    return defined_mean(matrix.iou())


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
