"""The story of a training run, top to bottom: set up, learn step by step, validate, finish.

Everything random is a function of the seed, the step and the place of a crop in the batch. A run
that was killed therefore goes on from its last checkpoint as if nothing had happened: on a CPU the
weights are the same to the last bit.
"""

import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from safetensors.torch import save_file
from torch import Tensor

from steelsight.data.frames import FrameSource, LabelledFrame
from steelsight.engine.runtime import available_cores
from steelsight.errors import InputError
from steelsight.evaluation.metrics import Summary, summary
from steelsight.evaluation.predictions import Predictions
from steelsight.models.distributed import global_mean, use_global_batchnorm
from steelsight.models.losses import LossParts, training_loss
from steelsight.models.res_unet import DefectNetwork, build_network
from steelsight.training.augment import photometric, unpack_types
from steelsight.training.checkpoint import (
    flatten_optimiser,
    load_checkpoint,
    restore_optimiser,
    save_checkpoint,
)
from steelsight.training.config import Precision, TrainConfig
from steelsight.training.crops import Batch, BatchLoader
from steelsight.training.optimise import (
    AveragedWeights,
    freeze_batchnorm,
    parameter_groups,
    rate_factor,
    set_rates,
)
from steelsight.training.predict import Predictor, normalise, predict
from steelsight.training.prepare import TrainingData, count_frames
from steelsight.training.run_folder import BEST, LAST, RunFolder, Sample, flat_figures
from steelsight.training.sampling import Sampler
from steelsight.training.starts import StartReport, load_start

FAILED_BATCH = "failed-batch-{rank}.safetensors"
PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one while it measures; torch's own is 10 or 30 minutes."""

_TIMED_STEPS = 20


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run is, for those who watch.

    Attributes:
        step: updates done; ``steps``: of the whole run.
        losses: of this step, over the whole batch.
        crops_per_second: over the last steps.
        validation: the latest figures, if any.
        doing: what takes time beside learning, such as ``validating 12/100``.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    crops_per_second: float
    validation: Summary | None
    doing: str = ""


@dataclass(slots=True)
class _State:
    """What a run must remember beside weights and optimiser; stands in every checkpoint."""

    step: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    best_step: int = 0
    without_gain: int = 0
    candidates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Files of the best validations' weights, for averaging, with their scores."""

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "_State":
        """Back from a checkpoint, where pairs are lists."""
        candidates = {name: tuple(score) for name, score in saved["candidates"].items()}
        return cls(**{**saved, "best": tuple(saved["best"]), "candidates": candidates})


class Outcome(NamedTuple):
    """How a run ended.

    ``predictions`` are those of the weights in ``best.safetensors`` on all held-out frames;
    ``None`` where none was held out, and in all processes but the first.
    """

    finished: bool
    step: int
    best_step: int
    predictions: Predictions | None


# Set up ------------------------------------------------------------------------------------------


def start_fabric(config: TrainConfig) -> Fabric:
    """Device, number type and processes; under ``torchrun`` all of its processes train together.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    device = device_of(config)
    precision = config.precision
    if precision is Precision.AUTO:
        precision = Precision.BF16 if computes_bf16(device) else Precision.FP32
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if config.sampling.batch % processes:
        raise InputError(
            f"expected a batch that {processes} processes can share evenly, got"
            f" {config.sampling.batch}; set --batch to a multiple of {processes}"
        )
    # Advice for those who write their own loops with it, at each start.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=device,
            devices=local,
            num_nodes=processes // local,
            strategy=DDPStrategy(timeout=PATIENCE) if processes > 1 else "auto",
            precision="bf16-mixed" if precision is Precision.BF16 else "32-true",
        )
        fabric.launch()
    torch.set_num_threads(config.threads or max(available_cores() // local, 1))
    return fabric


def device_of(config: TrainConfig) -> str:
    """``cuda`` or ``cpu``.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise InputError("expected a GPU for device cuda, there is none; use --set device=auto")
    return "cuda" if cuda and config.device != "cpu" else "cpu"


def computes_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32 there.

    Of CPUs only with AMX: with AVX512-BF16 alone a step took 1.5 to 1.9 times as long as in fp32.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_has("amx_bf16")


def _cpu_has(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Same sums in the same order; what cannot be, on a GPU, warns instead of failing."""
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    # Filling memory that is overwritten anyway took a seventh of a small network's step.
    memory: Any = torch.utils.deterministic  # its attribute is missing in its types
    fill, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.backends.cudnn.benchmark = False
    # OpenCV's threads and ours would wait for each other.
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = cudnn
        cv2.setNumThreads(opencv_threads)


class Learner:
    """Network, optimiser and averaged weights, and the one step that changes them.

    Attributes:
        network: the plain network, whose state is saved.
        averaged: what is validated and shipped.
        start: what the network began with.
    """

    def __init__(self, config: TrainConfig, types: int, start: str, start_sha256: str | None,
                 fabric: Fabric, positive_weights_k: Tensor | None) -> None:  # fmt: skip
        self.config = config
        self._fabric = fabric
        torch.manual_seed(config.seed)
        network = build_network(types, config.network)
        self.start: StartReport = load_start(network, start, start_sha256)
        if fabric.world_size > 1:
            use_global_batchnorm(network)
        self.network: DefectNetwork = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its types
        self._plain_optimiser = torch.optim.AdamW(
            parameter_groups(network, set(self.start.missing), config.optimiser)
        )
        self._wrapped, self._optimiser = fabric.setup(self.network, self._plain_optimiser)
        self.averaged = AveragedWeights(self.network, config.optimiser.ema)
        self.rate_factor = 0.0
        self._types = types
        self._positive_weights_k = (
            None if positive_weights_k is None else positive_weights_k.to(fabric.device)
        )

    def step(self, step: int, batch: Batch) -> tuple[LossParts, float]:
        """One update from this process's share of the batch.

        Returns:
            The losses over all processes, and the norm of the gradient before clipping.

        Raises:
            FloatingPointError: a loss or gradient is NaN or infinite; no weight was changed.
        """
        config = self.config
        # Of dropout. The state of every generator is a function of the step.
        torch.manual_seed(_mix(config.seed, step, self._fabric.global_rank))
        self.rate_factor = rate_factor(step, config.steps, config.optimiser.warmup)
        set_rates(self._plain_optimiser, self.rate_factor)
        self.network.train()
        if config.optimiser.freeze_batchnorm:
            freeze_batchnorm(self.network)
        frames = torch.from_numpy(batch.frames_n1hw).to(self._fabric.device, non_blocking=True)
        types = torch.from_numpy(batch.types_nhw).to(self._fabric.device, non_blocking=True)
        grey = photometric(frames, batch.seeds, config.augment)
        x = normalise(grey).contiguous(memory_format=torch.channels_last)
        losses = training_loss(
            self._wrapped(x),
            unpack_types(types, self._types),
            self.network.mask_stride,
            config.loss,
            config.sampling.faulty_from_px,
            self._positive_weights_k,
        )
        self._optimiser.zero_grad(set_to_none=True)
        self._fabric.backward(losses.total)
        norm_before = self._fabric.clip_gradients(
            self._wrapped,
            self._optimiser,
            max_norm=config.optimiser.clip,
            error_if_nonfinite=False,
        )
        norm = math.nan if norm_before is None else float(norm_before)
        over_all = LossParts(*(global_mean(part.detach()) for part in losses))
        if not (torch.isfinite(torch.stack(over_all)).all() and math.isfinite(norm)):
            raise FloatingPointError(f"the loss is {float(over_all.total)}, its gradient {norm}")
        self._optimiser.step()
        self.averaged.update(self.network, step)
        return over_all, norm

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs: network, averaged weights, optimiser."""
        return {
            **{f"network.{name}": t for name, t in self.network.state_dict().items()},
            **{f"averaged.{name}": t for name, t in self.averaged.state.items()},
            **flatten_optimiser(self._plain_optimiser, self.network.named_parameters()),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what ``tensors`` gave."""
        self.network.load_state_dict(_under("network.", tensors))
        for name, tensor in _under("averaged.", tensors).items():
            self.averaged.state[name].copy_(tensor)
        restore_optimiser(self._plain_optimiser, self.network.named_parameters(), tensors)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _mix(*numbers: int) -> int:
    """A seed that no other step or process shares."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# The run -----------------------------------------------------------------------------------------


def train(
    config: TrainConfig,
    data: TrainingData,
    path: Path,
    folder: RunFolder | None,
    fabric: Fabric,
    *,
    start: str,
    start_sha256: str | None = None,
    fold: int = 0,
    take_last: bool = False,
    show: Callable[[Moment], None] = lambda _moment: None,
    tell: Callable[[str], None] = lambda _line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains one network; goes on from the folder's last checkpoint if there is one.

    Args:
        config: the settings.
        data: what to learn from and what to measure on.
        path: folder of the run.
        folder: the same, opened; ``None`` in all processes but the first.
        fabric: device and processes, from :func:`start_fabric`.
        start: ``random``, or a file or bundle with weights.
        start_sha256: what the start's file must be.
        fold: noted in the predictions.
        take_last: validations are only noted: all steps are done, and the last weights measured.
            For cross-validation: the network of all frames has nothing to choose by, and weights
            chosen on the fold would flatter what is said of it.
        show: called after each step and now and then while measuring.
        tell: called with one line for people: what to know about the start.
        stop: asked after each step; if true, a checkpoint is written and the run ends unfinished.

    Raises:
        InputError: the start does not fit, the loss is not finite, memory or disk are full.
    """
    with _repeatable(fabric.device.type), _clear_memory_errors(config):
        run = _Run(config, data, path, folder, fabric, fold, take_last, show)
        return run.go(start, start_sha256, tell, stop)


class _Run:
    """One run's parts; ``go`` tells the order."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        path: Path,
        folder: RunFolder | None,
        fabric: Fabric,
        fold: int,
        take_last: bool,
        show: Callable[[Moment], None],
    ) -> None:
        self.config, self.data, self.path, self.folder = config, data, path, folder
        self.fabric, self.fold, self.take_last, self.show = fabric, fold, take_last, show
        self.state = _State()
        self.source = FrameSource(data.train, data.class_ids, config.cache_mb << 20)
        # Validation goes through its frames in order: keeping some would never help.
        self.held_out = FrameSource(data.held_out, data.class_ids, 0)
        self.validation: Summary | None = None
        self.moment: Moment | None = None
        self.checkpointed: set[str] = set()
        self.moments: deque[float] = deque(maxlen=_TIMED_STEPS)

    def go(
        self,
        start: str,
        start_sha256: str | None,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> Outcome:
        config = self.config
        learner = Learner(
            config,
            len(self.data.classes),
            start,
            start_sha256,
            self.fabric,
            positive_weights(self.data, config.loss.pos_weight),
        )
        for note in learner.start.notes:
            tell(note)
        self._resume(learner)
        stopped = False
        with BatchLoader(
            Sampler(self.source, config.sampling, config.seed),
            self.source,
            config,
            self.state.step,
            self.fabric.global_rank,
            self.fabric.world_size,
            min(available_cores(), 8),
        ) as batches:
            coming = iter(batches)
            while not (self.ended() or stopped):
                step, batch = next(coming)
                self._learn(learner, step, batch)
                self.state.step = step + 1
                if self._due(config.validate_every) and self.data.held_out:
                    self._validate(learner)
                stopped = self._agreed(stop())
                if self._due(config.checkpoint_every) or self.ended() or stopped:
                    self._checkpoint(learner)
        if not self.ended():
            return Outcome(False, self.state.step, self.state.best_step, None)
        return self._finish(learner)

    def ended(self) -> bool:
        """All steps done, or no gain for too long."""
        patience = 0 if self.take_last else self.config.patience
        gave_up = bool(patience) and self.state.without_gain >= patience
        return gave_up or self.state.step >= self.config.steps

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.steps

    def _agreed(self, value: bool) -> bool:
        """The first process decides for all."""
        return bool(self.fabric.broadcast(value)) if self.fabric.world_size > 1 else value

    def _resume(self, learner: Learner) -> None:
        if (self.path / LAST).exists():
            tensors, saved = load_checkpoint(self.path / LAST)
            learner.restore(tensors)
            self.state = _State.from_json(saved)
            self.checkpointed = set(self.state.candidates)
        if self.folder:
            self.folder.rewind(self.state.step)

    def _learn(self, learner: Learner, step: int, batch: Batch) -> None:
        try:
            losses, norm = learner.step(step, batch)
        except FloatingPointError as error:
            raise self._failed(step, batch, error) from None
        self.moments.append(time.perf_counter())
        if not self.folder:
            return
        seconds = self.moments[-1] - self.moments[0]
        rate = self.config.sampling.batch * (len(self.moments) - 1) / seconds if seconds else 0.0
        parts = {name: float(part) for name, part in losses._asdict().items()}
        lr = self.config.optimiser.lr * learner.rate_factor
        epoch = (step + 1) * self.config.sampling.batch / len(self.source.frames)
        self.folder.log_step(
            step + 1,
            {"epoch": epoch, "lr": lr, **parts, "gradient_norm": norm},
            {"crops_per_s": rate},
        )
        self.moment = Moment(step + 1, self.config.steps, parts, rate, self.validation)
        self.show(self.moment)

    def _failed(self, step: int, batch: Batch, error: FloatingPointError) -> InputError:
        """Keeps the batch for whoever looks for the cause; every process has its own share."""
        path = self.path / FAILED_BATCH.format(rank=self.fabric.global_rank)
        frames = self.source.frames
        told = [f"{plan.kind} of {frames[plan.frame].image}" for plan in batch.plans]
        save_file(
            {
                "frames_n1hw": torch.from_numpy(batch.frames_n1hw),
                "types_nhw": torch.from_numpy(batch.types_nhw),
            },
            path,
            {"step": str(step), "crops": json.dumps(told)},
        )
        return InputError(
            f"step {step + 1}: expected a finite loss, got another ({error}); the batch is in"
            f" {path}. Lower --set optimiser.lr and optimiser.encoder_lr, use --set precision=fp32,"
            " or look at these crops; --resume goes on from the last checkpoint"
        )

    # Measuring -----------------------------------------------------------------------------------

    def _validate(self, learner: Learner) -> None:
        """Measures the averaged weights."""
        if self.folder:
            predictor = self._predictor(learner.averaged.state)
            found = self._predict(
                predictor, some_of(self.data.held_out, self.config.validate_frames), "validating"
            )
            self.validation = summary(found)
            score = score_of(self.validation)
            step = self.state.step
            self.folder.log_validation(step, flat_figures(self.validation.to_json()))
            every = self.config.pictures_every * self.config.validate_every
            if every and self._due(every):
                self.folder.write_pictures(step, self._samples(predictor))
            if not self.take_last:
                self._choose(learner, score)
            if self.moment:
                self.moment = replace(self.moment, validation=self.validation)
                self.show(self.moment)
        if self.fabric.world_size > 1:
            self.state = self.fabric.broadcast(self.state)
        self.moments.clear()  # of learning alone

    def _predictor(self, state: Mapping[str, Tensor]) -> Predictor:
        config = self.config
        network = build_network(len(self.data.classes), config.network)
        network.load_state_dict(state)
        network.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its types
        return Predictor(
            network, self.data.tile_wh, flips=config.flips, autocast=self.fabric.autocast
        )

    def _predict(self, predictor: Predictor, indices: Sequence[int], doing: str) -> Predictions:
        def told(done: int, total: int) -> None:
            if self.moment:
                self.show(replace(self.moment, doing=f"{doing} {done}/{total}"))

        return predict(predictor, self.held_out, indices, fold=self.fold, progress=told)

    def _samples(self, predictor: Predictor) -> list[Sample]:
        """The same few held-out frames each time: two of each type, two clean ones."""
        frames = self.data.held_out
        of_type = [
            [i for i, f in enumerate(frames) if c in f.rle_by_class] for c in self.data.class_ids
        ]
        clean = [i for i, f in enumerate(frames) if not f.class_ids]
        chosen = dict.fromkeys(i for fitting in (*of_type, clean) for i in fitting[:2])
        samples = []
        for i in chosen:
            pixels = self.held_out.pixels(i)
            answer = predictor.look(pixels.grey_hw)
            samples.append(
                Sample(
                    frames[i].image,
                    pixels.grey_hw,
                    pixels.types_hw,
                    answer.probabilities_khw,
                    1 / (1 + math.exp(-answer.faulty_logit)),
                )
            )
        return samples

    # Keeping -------------------------------------------------------------------------------------

    def _checkpoint(self, learner: Learner) -> None:
        if self.folder:
            self.folder.save(self.folder.last, learner.tensors(), asdict(self.state))
            self.checkpointed = set(self.state.candidates)
        if self.fabric.world_size > 1:
            self.fabric.barrier()

    def _choose(self, learner: Learner, score: tuple[float, float]) -> None:
        """Keeps the weights if the worst type got better."""
        if score > self.state.best:
            self.state.best, self.state.best_step = score, self.state.step
            self.state.without_gain = 0
            self._save_weights(BEST, learner.averaged.state, self.state.step)
        else:
            self.state.without_gain += 1
        self._keep_candidate(learner, score)

    def _save_weights(
        self, name: str, state: Mapping[str, Tensor], step: int, averaged: Sequence[str] = ()
    ) -> None:
        about = {
            "step": step,
            "averaged": list(averaged),
            "network": self.config.network.model_dump(mode="json"),
            "classes": list(self.data.class_ids),
        }
        save_checkpoint(self.path / name, state, about)

    def _keep_candidate(self, learner: Learner, score: tuple[float, float]) -> None:
        """The weights of the best validations, for averaging."""
        kept, most = self.state.candidates, self.config.average
        if not most:
            return
        name = f"candidate-{self.state.step:06d}.safetensors"
        self._save_weights(name, learner.averaged.state, self.state.step)
        kept[name] = score
        for worst in sorted(kept, key=kept.__getitem__)[: max(len(kept) - most, 0)]:
            del kept[worst]
        # A file goes only when no checkpoint names it: one interval later than it could.
        keep = set(kept) | self.checkpointed
        for path in self.path.glob("candidate-*.safetensors"):
            if path.name not in keep:
                path.unlink()

    def _finish(self, learner: Learner) -> Outcome:
        """The best weights on all held-out frames."""
        if not self.folder:
            return Outcome(True, self.state.step, self.state.best_step, None)
        everything = range(len(self.data.held_out))
        if self.take_last or not everything:
            last = learner.averaged.state
            self._save_weights(BEST, last, self.state.step)
            found = None
            if everything:
                found = self._predict(self._predictor(last), everything, "measuring")
            return Outcome(True, self.state.step, self.state.step, found)
        weights, about = load_checkpoint(self.path / BEST)
        found = self._predict(self._predictor(weights), everything, "measuring")
        names = sorted(self.state.candidates)
        if len(names) > 1 and not about.get("averaged"):
            averaged = mean_of([load_checkpoint(self.path / name)[0] for name in names])
            other = self._predict(self._predictor(averaged), everything, "measuring the average")
            if score_of(summary(other)) > score_of(summary(found)):
                found = other
                self._save_weights(BEST, averaged, about["step"], averaged=names)
        return Outcome(True, self.state.step, about["step"], found)


def some_of(frames: Sequence[LabelledFrame], most: int) -> list[int]:
    """Indices of frames for a validation: half of them faulty if there are enough of both.

    The same ones each time.
    """
    shuffled = sorted(range(len(frames)), key=lambda i: _mix(0, *os.fsencode(frames[i].image)))
    faulty = [i for i in shuffled if frames[i].class_ids]
    clean = [i for i in shuffled if not frames[i].class_ids]
    of_faulty = min(len(faulty), max(most // 2, most - len(clean)))
    return sorted(faulty[:of_faulty] + clean[: most - of_faulty])


def score_of(measured: Summary) -> tuple[float, float]:
    """What decides which weights are best: the worst type's detection, then the mean detection.

    Without clean frames nothing can be detected among them: Dice takes its place.
    """
    found = [t.detection for t in measured.types if t.detection is not None]
    found = found or [t.best_dice for t in measured.types if t.best_dice is not None]
    return min(found, default=0.0), sum(found) / max(len(found), 1)


def positive_weights(data: TrainingData, power: float) -> Tensor | None:
    """``(K,)``: (median frames of a type / frames of this type) to ``power``; ``None`` for 0."""
    if not power:
        return None
    counts = count_frames(data.train, data.class_ids)["masked_by_type"]
    frames_k = torch.tensor([counts[c] for c in data.class_ids], dtype=torch.float32)
    return (frames_k.median() / frames_k) ** power


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of weights and statistics by name; counters are the first one's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


@contextmanager
def _clear_memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turns "out of memory" into what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or "allocate memory" in str(error)):
            raise
        rows, columns = config.sampling.crop_hw
        half = max(config.sampling.batch // 2, 1)
        raise InputError(
            f"{'the GPU' if on_gpu else 'this machine'} has no memory for {config.sampling.batch}"
            f" crops of {rows} x {columns} px; lower --batch to {half}, use --plan fast, or a"
            " smaller --set sampling.crop_hw; then --resume is not possible, start a new run"
        ) from None
