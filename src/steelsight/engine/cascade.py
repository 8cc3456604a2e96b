"""The way of one frame: take in -> (first look) -> gate -> segment only where needed -> decide.

Read ``Inspector.inspect`` top to bottom; each step adds one thing and its time.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from steelsight import imaging
from steelsight.bundle import Bundle, InputEntry, SegmenterInput, load_bundle
from steelsight.data.threads import frame_by_frame
from steelsight.decisions import Decision, check_contrast, decide, is_cleared, is_settled
from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.choice import choose_engine, self_test
from steelsight.engine.runtime import Engine, Runtime, Tensors, load_runtime, share_threads
from steelsight.engine.stream import Late, Stream, in_order
from steelsight.errors import DecodeError, EngineError, InputError

Image = NDArray[Any] | bytes | str | Path
"""Pixels (grey or RGB; uint8 or uint16), an encoded image, or the path of one."""

DECODE_AHEAD = 4
"""Frames taken beyond those in work: hides the decode time, holds little memory."""

SETTLED = "cleared by the first look, a smaller network than that of stage 1"
"""Note of a result for which stage 1's own network did not run."""

_IMAGE_TYPES = (np.ndarray, bytes, str, Path)

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")


class Decode(Protocol):
    """What makes a frame of an encoded image: ``imaging.decode``, or ``Decoders.decode``."""

    def __call__(
        self, data: bytes, *, name: str | None = None, policy: imaging.DecodePolicy
    ) -> imaging.Frame:
        """See ``imaging.decode``."""
        ...


Named = tuple[Image, str | None]
"""An image and what its result calls it; ``None`` for the path, ``"array"`` or ``"bytes"``."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """One image after decoding: a frame to inspect, or the reason why there is none."""

    image: str
    sha256: str | None = None
    frame: imaging.Frame | None = None
    refusal: DecodeError | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)


class Evidence(NamedTuple):
    """What the networks say about a frame, before any decision.

    Attributes:
        faulty_probability: stage 1, as the network says it; minus infinity where the first look
            settled the whole frame.
        head_probabilities: per type, mean of both heads' sigmoids, ``(C,)``; as above.
        probabilities_chw: of the masks; ``None`` if stage 1 cleared the whole frame.
        first_look: the first two of the first look; ``None`` if it did not look.
    """

    faulty_probability: float
    head_probabilities: NDArray[np.float32]
    probabilities_chw: NDArray[np.float32] | None
    first_look: "Evidence | None" = None

    def met_by(self, decision: Decision) -> "Evidence":
        """What a decision's thresholds are compared with: calibrated, of the network that counts.

        That is the first look where it settles the frame. Where its answer is NaN, all is NaN.
        """
        first = self.first_look
        if first is not None and decision.first_look is not None:
            if is_settled(first.faulty_probability, decision):
                calibrated = decision.first_look.calibrated(first.faulty_probability)
                return Evidence(calibrated, first.head_probabilities, None)
            if not math.isfinite(first.faulty_probability):
                return self._replace(faulty_probability=math.nan)
        return self._replace(faulty_probability=decision.gate.calibrated(self.faulty_probability))


class Networks(NamedTuple):
    """A bundle's networks on an engine."""

    gate: Runtime
    segmenter: Runtime
    first_look: Runtime | None = None

    @classmethod
    def load(
        cls, bundle: Bundle, engine: Engine | str, threads: int | None = None, workers: int = 1
    ) -> "Networks":
        """Loads the files of a bundle; arguments and errors as ``load_runtime``.

        On a GPU they must answer the bundle's self-test as recorded, with its own decision.
        """

        def load(path: Path) -> Runtime:
            return load_runtime(path, bundle.manifest.precision, engine, threads, workers)

        first = bundle.first_look_path
        later = None if first is None else _Later(partial(load, first))
        at_once: list[Callable[[], Runtime]] = [
            partial(load, bundle.gate_path),
            partial(load, bundle.segmenter_path),
        ]
        if later is not None and bundle.decision.first_look:
            at_once.append(later.loaded)
        # Most of the time to the first verdict is spent here: all at once.
        with ThreadPoolExecutor(len(at_once)) as pool:
            gate, segmenter, *_ = pool.map(lambda step: step(), at_once)
        networks = cls(gate, segmenter, later)
        # GPUs and drivers are many, and a frame more costs milliseconds there.
        if engine == Engine.CUDA and (
            difference := self_test(Inspector(load_bundle(bundle.folder), networks))[1]
        ):
            raise EngineError(
                f"expected of the GPU what {bundle.id} answers to its self-test, got: "
                f"{difference}; give another engine"
            )
        return networks


class _Later:
    """A network that is loaded when it is first asked: many decisions never ask it."""

    def __init__(self, load: Callable[[], Runtime]) -> None:
        self._load, self._lock = load, Lock()
        self._runtime: Runtime | None = None
        self.label = ""

    def loaded(self) -> Runtime:
        """The network itself; raises as ``load_runtime``."""
        with self._lock:
            if self._runtime is None:
                self._runtime = self._load()
                self.label = self._runtime.label
            return self._runtime

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """See ``Runtime.run``."""
        return self.loaded().run(inputs)


class Tile(NamedTuple):
    """A part of a frame as the networks take it: padded at the right and bottom."""

    box_xywh: imaging.BoxXYWH
    frames: NDArray[np.uint8]
    """``(1, 1, H, W)``, contiguous."""


def tiles_of(grey_hw: imaging.GreyHW, spec: InputEntry) -> Iterator[Tile]:
    """Cuts a frame that is too large into overlapping tiles, and pads; row by row."""
    size_wh = (grey_hw.shape[1], grey_hw.shape[0])
    for x, y, w, h in imaging.tile_plan(size_wh, spec.tile_wh, spec.tile_overlap_px):
        tile_hw = grey_hw[y : y + h, x : x + w]
        padded_hw, _ = imaging.pad_to_multiple(tile_hw, spec.multiple_of)
        yield Tile((x, y, w, h), np.ascontiguousarray(padded_hw)[None, None])


class Inspector:
    """A loaded bundle on an engine.

    Example:
        >>> from steelsight.engine import Inspector
        >>> inspector = Inspector.load()
        >>> inspector.inspect("frame.jpg").verdict
        <Verdict.NG: 'NG'>
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        policy: imaging.DecodePolicy | None = None,
        allow_colour: bool = False,
        workers: int = 1,
        decode: Decode = imaging.decode,
    ) -> None:
        self.bundle = bundle
        self.workers = workers
        self._decode = decode
        policy = policy or imaging.DecodePolicy()
        grey_only = policy.grey_only or (bundle.manifest.input.monochrome and not allow_colour)
        self.policy = replace(policy, grey_only=grey_only)
        self._networks = networks
        self.engine = networks.gate.label

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        decision: str | Path | None = None,
        engine: Engine | str = Engine.AUTO,
        threads: int | None = None,
        workers: int = 1,
        policy: imaging.DecodePolicy | None = None,
        allow_colour: bool = False,
        decode: Decode = imaging.decode,
    ) -> "Inspector":
        """Loads and checks a bundle.

        Args:
            bundle: its folder; the default bundle of the package if ``None``.
            decision: a decision file to use instead of the bundle's.
            engine: ``auto``, ``onnxruntime``, ``openvino`` or ``cuda``; ``auto`` is the fastest one
                whose self-test agrees on this machine (``choose_engine``).
            threads: inference threads, all together; all usable cores if ``None``.
            workers: frames in work at once in ``inspect_many``, ``stream`` and batch runs; they
                share the threads. 1: the shortest time for one frame. 0: as many as threads, for
                the most frames per second.
            policy: which images are accepted.
            allow_colour: turn coloured images grey, although the model's camera was grey; without
                it they are UNKNOWN, because colour in a grey camera's frame is damage.
            decode: ``Decoders(...).decode`` decodes in processes of their own, so that a decoder
                that crashes or hangs costs one frame.

        Raises:
            BundleError: the bundle is incomplete, altered or failed its parity check.
            EngineError: the engine is not installed or refuses the networks, or ``cuda`` does not
                answer the bundle's self-test as recorded.
            InputError: the decision file or an argument is wrong.
        """
        loaded = load_bundle(
            Path(bundle) if bundle is not None else None,
            Path(decision) if decision is not None else None,
        )
        threads, workers = share_threads(threads, workers)
        if engine == Engine.AUTO:
            engine = choose_engine(loaded, threads, workers).engine
        networks = Networks.load(loaded, engine, threads, workers)
        return cls(loaded, networks, policy, allow_colour, workers, decode)

    def inspect(self, image: Image, name: str | None = None) -> Inspection:
        """Inspects one image.

        Args:
            image: a path, encoded bytes, or pixels ``(H, W)``, ``(H, W, 3)`` RGB.
            name: what the result calls it; the path, or ``"array"`` or ``"bytes"``.

        Returns:
            The result. Damaged or unusable images and engine failures are verdict UNKNOWN with a
            reason, never an exception.
        """
        if not isinstance(image, _IMAGE_TYPES):
            raise TypeError(f"expected a path, bytes or an array, got {type(image).__name__}")
        return self.judge(self.take_in(image, name))

    def inspect_many(self, images: Iterable[Image]) -> Generator[Inspection]:
        """Inspects images in order, ``workers`` at once, while the next ones are being decoded.

        Results come one by one in the order of ``images``; memory does not grow with their number.
        Up to ``workers`` + 4 images are taken before the first result: for a live camera, where
        each verdict is due soon after its frame, call ``stream``. What ``images`` raises comes
        after the results of all that it gave.

        Raises:
            TypeError: one image instead of several.
        """
        _refuse_one(images)
        return self._inspect_many(images)

    def _inspect_many(self, images: Iterable[Image]) -> Generator[Inspection]:
        with closing(self.inspect_ahead((image, None) for image in images)) as results:
            for _, inspection in results:
                yield inspection

    def stream(
        self, frames: Iterable[Image], deadline_ms: float | None = None
    ) -> Generator[Inspection]:
        """Inspects frames as they come, in order; each gets a verdict by its deadline.

        A thread takes each frame from ``frames`` as soon as it is there. A frame whose verdict is
        not there ``deadline_ms`` later is UNKNOWN, ``timeout``, at once; if the work on it has not
        begun by then, it is skipped, so that a line catches up after a slow frame. A verdict that
        came too late is UNKNOWN even if nobody had asked for it yet.

        At most ``workers`` + 4 frames are taken whose verdict was not fetched. Whoever fetches
        verdicts more slowly than frames come makes the camera wait: what it then drops, it must
        count itself. What ``frames`` raises comes after the verdicts of all that it gave. Closing
        the generator ends the threads, except one that waits for the next frame (it ends with it)
        and, with a deadline, an engine that hangs.

        Args:
            frames: may be endless; arrays are copied as they are taken, so that a camera may use
                its buffer again.
            deadline_ms: from the taking of a frame; ``None`` for as long as it takes.

        Raises:
            InputError: a deadline that is no positive number.
            TypeError: one image instead of several.
        """
        _refuse_one(frames)
        if deadline_ms is not None and not 0 < deadline_ms < math.inf:
            raise InputError(
                f"expected a deadline of more than 0 ms, got {deadline_ms}; leave it out to wait "
                "for every verdict"
            )
        return self._stream(frames, math.inf if deadline_ms is None else deadline_ms)

    def _stream(self, frames: Iterable[Image], deadline_ms: float) -> Generator[Inspection]:
        own: Iterator[Named] = ((_own(frame), None) for frame in frames)
        stream = Stream(
            self._inspect_taken, own, self.workers, DECODE_AHEAD, deadline_s=deadline_ms / 1e3
        )
        with self._one_opencv_thread(), closing(stream.results()) as results:
            for result in results:
                if isinstance(result, Late):
                    yield self._timeout(result, deadline_ms)
                else:
                    yield result[1]

    def inspect_ahead(self, images: Iterable[Named]) -> Generator[tuple[TakenIn, Inspection]]:
        """``inspect_many`` for ``(image, name)`` pairs, with the decoded frames."""
        own = ((_own(image), name) for image, name in images)
        return self.ahead(
            own, lambda named: self.take_in(*named), lambda taken: (taken, self.judge(taken))
        )

    def ahead(
        self, items: Iterable[T], take: Callable[[T], U], judge: Callable[[U], R]
    ) -> Generator[R]:
        """Two steps for each item, ``workers`` at once; results in order.

        One worker is the caller's thread, and another one takes ahead. Several take for themselves:
        they keep the cores busy, a thread more would only take turns with them.

        Args:
            items: may be endless; at most ``workers`` + 4 are on their way.
            take: reads and decodes.
            judge: computes.
        """
        if self.workers == 1:
            with closing(in_order(take, items, 1, DECODE_AHEAD, "steelsight-decode")) as taken:
                for one in taken:
                    yield judge(one)
            return
        results = in_order(lambda item: judge(take(item)), items, self.workers, DECODE_AHEAD)
        with self._one_opencv_thread(), closing(results):
            yield from results

    def _inspect_taken(self, named: Named) -> tuple[TakenIn, Inspection]:
        taken = self.take_in(*named)
        return taken, self.judge(taken)

    def _one_opencv_thread(self) -> AbstractContextManager[None]:
        """With several workers OpenCV's pool, one for the process, is left out while they run.

        Their calls would queue for it, and its threads would take cores from inference.
        """
        return frame_by_frame() if self.workers > 1 else nullcontext()

    def take_in_ahead(self, images: Iterable[Named]) -> Generator[TakenIn]:
        """``take_in`` for ``(image, name)`` pairs, in order, a few frames ahead in a thread."""
        own = ((_own(image), name) for image, name in images)
        # One thread that works on the first of those taken ahead.
        return in_order(
            lambda named: self.take_in(*named), own, 1, DECODE_AHEAD, "steelsight-decode"
        )

    def take_in(self, image: Image, name: str | None = None) -> TakenIn:
        """Reads and decodes one image; whatever is wrong with it becomes ``refusal``."""
        started = time.perf_counter()
        data: bytes | None = None
        shown = _shown(image, name)
        try:
            if isinstance(image, np.ndarray):
                frame = imaging.from_array(image, policy=self.policy)
            else:
                if isinstance(image, str | Path):
                    data = imaging.read_bytes(image, policy=self.policy)
                elif isinstance(image, bytes):
                    data = image
                else:  # a camera that gives None where it lost a frame
                    raise DecodeError(
                        Reason.NOT_AN_IMAGE,
                        f"expected a path, bytes or an array, got {type(image).__name__}; check "
                        "the source of frames",
                    )
                frame = self._decode(data, name=shown, policy=self.policy)
            self._check(frame)
        except Exception as error:  # also out of memory: one frame must not end a run
            refusal = _refusal(error)
            # A damaged file must be found again by its hash, too.
            sha256 = hashlib.sha256(data).hexdigest() if data is not None else None
            took = {"decode": _ms_since(started)}
            return TakenIn(shown, sha256, refusal=refusal, milliseconds=took)
        return TakenIn(shown, frame.sha256, frame, milliseconds={"decode": _ms_since(started)})

    def _check(self, frame: imaging.Frame) -> None:
        columns, rows = frame.size_wh
        least_w, least_h = self.bundle.manifest.input.min_wh
        if columns < least_w or rows < least_h:
            raise DecodeError(
                Reason.WRONG_SIZE,
                f"expected at least {least_w} x {least_h} pixels, got {columns} x {rows}; "
                "check the camera's region of interest",
            )
        check_contrast(frame.grey_hw, self.bundle.decision)
        left, right = self._looked_at(frame)
        if right - left < least_w:
            raise DecodeError(
                Reason.WRONG_SIZE,
                f"expected at least {least_w} columns of steel, all but columns {left} to "
                f"{right - 1} are dark (dark_margin_below); check light and camera",
            )

    def _looked_at(self, frame: imaging.Frame) -> tuple[int, int]:
        """First column, and the one after the last; see ``dark_margin_below``."""
        dark_below = self.bundle.decision.input.dark_margin_below
        multiple_of = self.bundle.manifest.input.multiple_of
        return imaging.steel_columns(frame.grey_hw, dark_below, multiple_of)

    def judge(self, taken: TakenIn) -> Inspection:
        """Runs the cascade on a decoded frame and puts the result together."""
        frame = taken.frame
        if frame is None:
            refusal = taken.refusal or DecodeError(Reason.DECODE_FAILED, "no frame was decoded")
            return self.unknown(taken, refusal.reason, str(refusal))
        milliseconds = {**taken.milliseconds, "gate": 0.0, "segment": 0.0}
        decision = self.bundle.decision
        try:
            evidence = self._look(frame.grey_hw, milliseconds)
            started = time.perf_counter()
            met = evidence.met_by(decision)
            faulty_probability = met.faulty_probability
            judgement = decide(*met[:3], decision)
            milliseconds["decide"] = _ms_since(started)
        except EngineError as error:
            return self.unknown(taken, Reason.ENGINE_FAILED, str(error))
        except Exception as error:  # out of memory, a bundle that contradicts itself, ...
            # One frame must not end a run, and must not be lost.
            detail = f"expected an answer, got {type(error).__name__}: {error}"
            return self.unknown(taken, Reason.ENGINE_FAILED, detail)
        return Inspection(
            image=taken.image,
            sha256=taken.sha256,
            verdict=judgement.verdict,
            reason=judgement.reason,
            detail=judgement.detail,
            faulty_probability=faulty_probability if math.isfinite(faulty_probability) else None,
            class_probabilities=judgement.class_probabilities,
            defects=judgement.defects,
            size_wh=frame.size_wh,
            model=self.bundle.id,
            decision=decision.id,
            engine=self.engine,
            milliseconds=milliseconds,
            notes=frame.notes + self.notes(frame, evidence, decision),
        )

    def notes(
        self, frame: imaging.Frame, evidence: Evidence, decision: Decision
    ) -> tuple[str, ...]:
        """What a reader of the result should know about how the frame was looked at."""
        notes = []
        first = evidence.first_look
        if first and is_settled(first.faulty_probability, decision):
            notes.append(SETTLED)
        width, height = self.bundle.manifest.input.tile_wh
        if frame.size_wh != (width, height):
            notes.append(
                f"another size than the {width} x {height} pixels the model was measured on"
            )
        left, right = self._looked_at(frame)
        if (left, right) != (0, frame.size_wh[0]):
            notes.append(f"dark beside columns {left} to {right - 1}: not looked at")
        return tuple(notes)

    def look(self, grey_hw: imaging.GreyHW) -> Evidence:
        """What all networks say about a frame, segmented whatever stage 1 says.

        This is what thresholds are chosen from: the gate may not hide any frame. Scores may be NaN
        or infinite where the network fails.

        Raises:
            EngineError: the engine failed.
        """
        return self._look(grey_hw, {"gate": 0.0, "segment": 0.0}, gated=False)

    def _look(
        self, grey_hw: imaging.GreyHW, milliseconds: dict[str, float], *, gated: bool = True
    ) -> Evidence:
        """First look, gate and segmenter, each where the one before does not clear.

        A frame is as faulty as its worst tile. Tiles follow each other through both networks, so
        that memory holds the features of one. The first look only sees frames of the size that it
        was measured on, which are one tile, with no dark columns left out: on others it proved to
        be too sure of itself.
        """
        spec, decision = self.bundle.manifest.input, self.bundle.decision
        columns = grey_hw.shape[1]
        left, right = imaging.steel_columns(
            grey_hw, decision.input.dark_margin_below, spec.multiple_of
        )
        grey_hw = grey_hw[:, left:right]
        size_wh = (right - left, grey_hw.shape[0])
        is_measured = size_wh == spec.tile_wh
        takes_frames = self.bundle.manifest.segmenter_takes is SegmenterInput.FRAMES
        types = len(self.bundle.classes)
        worst = Evidence(-math.inf, np.full(types, -np.inf, np.float32), None)
        # Its thresholds can only be chosen from its scores: where nothing may be hidden it is asked
        # without a rule, too.
        if is_measured and (decision.first_look or not gated):
            worst = worst._replace(first_look=self._look_first(grey_hw, milliseconds))
            first = worst.first_look
            if gated and first and is_settled(first.faulty_probability, decision):
                return worst
        stitcher: imaging.Stitcher | None = None
        for (x, y, w, h), frames in tiles_of(grey_hw, spec):
            started = time.perf_counter()
            outputs = self._networks.gate.run({"frames": frames})
            seen = _scores(outputs)
            worst = _worse(worst, seen)
            milliseconds["gate"] += _ms_since(started)
            faulty_probability = decision.gate.calibrated(seen.faulty_probability)
            if gated and is_cleared(faulty_probability, decision):
                continue
            started = time.perf_counter()
            given = {"frames": frames} if takes_frames else outputs
            logits_chw = self._networks.segmenter.run(given)["mask_logits"][0]
            padded_wh = (frames.shape[3], frames.shape[2])
            tile_chw = imaging.mask_probabilities(logits_chw, padded_wh)[:, :h, :w]
            if (w, h) == size_wh:
                worst = worst._replace(probabilities_chw=np.asarray(tile_chw))
            else:
                stitcher = stitcher or imaging.Stitcher(types, size_wh, spec.tile_overlap_px)
                stitcher.add(tile_chw, (x, y, w, h))
                worst = worst._replace(probabilities_chw=stitcher.probabilities_chw)
            milliseconds["segment"] += _ms_since(started)
        seen_chw = worst.probabilities_chw
        if seen_chw is not None and right - left < columns:
            # Where nothing was looked at nothing is claimed.
            sides = ((0, 0), (0, 0), (left, columns - right))
            worst = worst._replace(probabilities_chw=np.pad(seen_chw, sides))
        return worst

    def _look_first(
        self, grey_hw: imaging.GreyHW, milliseconds: dict[str, float]
    ) -> Evidence | None:
        """What the first look says, if the bundle has one; its time is part of stage 1's."""
        entry, network = self.bundle.manifest.first_look, self._networks.first_look
        if entry is None or network is None:
            return None
        started = time.perf_counter()
        padded_hw, _ = imaging.pad_to_multiple(grey_hw, entry.multiple_of)
        seen = _scores(network.run({"frames": np.ascontiguousarray(padded_hw)[None, None]}))
        milliseconds["gate"] += _ms_since(started)
        # An infinity is no answer either; NaN is not lost in comparisons.
        return seen if _is_finite(seen) else seen._replace(faulty_probability=math.nan)

    def _timeout(self, late: Late[Named], deadline_ms: float) -> Inspection:
        work = "was not done" if late.begun else "had not begun and was skipped"
        detail = (
            f"expected a verdict within {deadline_ms:g} ms after the frame was taken, after "
            f"{late.waited_s * 1e3:.0f} ms the work {work}; allow more time, or give it less to do "
            "(fewer frames a second, a faster engine, more threads)"
        )
        return self.unknown(TakenIn(_shown(*late.item)), Reason.TIMEOUT, detail)

    def unknown(self, taken: TakenIn, reason: Reason, detail: str) -> Inspection:
        """The result of a frame about which nothing can be said."""
        frame = taken.frame
        return Inspection(
            image=taken.image,
            sha256=taken.sha256,
            verdict=Verdict.UNKNOWN,
            reason=reason,
            detail=" ".join(detail.split()),
            faulty_probability=None,
            class_probabilities={},
            defects=(),
            size_wh=frame.size_wh if frame else None,
            model=self.bundle.id,
            decision=self.bundle.decision.id,
            engine=self.engine,
            milliseconds=taken.milliseconds,
            notes=frame.notes if frame else (),
        )


def _refusal(error: Exception) -> DecodeError:
    """Why there is no frame; what is not the frame's own fault is the engine's."""
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, EngineError):
        return DecodeError(Reason.ENGINE_FAILED, str(error))
    told = f"expected a frame, got {type(error).__name__}: {error}"
    lacking = isinstance(error, MemoryError)
    return DecodeError(Reason.ENGINE_FAILED if lacking else Reason.DECODE_FAILED, told)


def _scores(outputs: dict[str, Any]) -> Evidence:
    """Takes a gate's probabilities out of its outputs; its features are left."""
    return Evidence(
        float(outputs.pop("faulty_probability")[0]), outputs.pop("class_probabilities")[0], None
    )


def _worse(a: Evidence, b: Evidence) -> Evidence:
    """The higher score of each kind; NaN if the second has any that is not finite.

    A plain maximum would lose minus infinity.
    """
    finite = _is_finite(b)
    return a._replace(
        faulty_probability=float(np.maximum(a.faulty_probability, b.faulty_probability))
        if finite
        else math.nan,
        head_probabilities=np.maximum(a.head_probabilities, b.head_probabilities),
    )


def _is_finite(seen: Evidence) -> bool:
    return math.isfinite(seen.faulty_probability) and bool(
        np.isfinite(seen.head_probabilities).all()
    )


def _refuse_one(images: object) -> None:
    one_frame = isinstance(images, np.ndarray) and images.ndim == 2
    if one_frame or isinstance(images, str | bytes | Path):
        raise TypeError(f"expected several images, got one {type(images).__name__}: use [image]")


def _own(image: Image) -> Image:
    """Pixels are copied when they are taken: a camera may fill its buffer with the next frame."""
    return image.copy() if isinstance(image, np.ndarray) else image


def _shown(image: Image, name: str | None) -> str:
    if name or isinstance(image, str | Path):
        return name or str(image)
    return "array" if isinstance(image, np.ndarray) else "bytes"


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
