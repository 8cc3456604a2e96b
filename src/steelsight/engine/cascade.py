"""The way of one frame: take in -> gate -> segment only where needed -> decide.

Read ``Inspector.inspect`` top to bottom; each step adds one thing and its time.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight import imaging
from steelsight.bundle import Bundle, load_bundle
from steelsight.decisions import check_contrast, decide, is_cleared
from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.runtime import Engine, Runtime, load_runtime
from steelsight.errors import DecodeError, EngineError

Image = NDArray[Any] | bytes | str | Path
"""Pixels (grey or RGB; uint8 or uint16), an encoded image, or the path of one."""

DECODE_AHEAD = 4
"""Frames decoded in advance: hides the decode time, holds little memory."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """One image after decoding: a frame to inspect, or the reason why there is none."""

    image: str
    sha256: str | None = None
    frame: imaging.Frame | None = None
    refusal: DecodeError | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)


class _Gated(NamedTuple):
    """Stage 1 on all tiles of a frame; ``features`` is ``None`` for tiles that were cleared."""

    faulty_probability: float
    head_probabilities: NDArray[np.float32]
    features: list[dict[str, NDArray[Any]] | None]


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
        gate: Runtime,
        segmenter: Runtime,
        policy: imaging.DecodePolicy | None = None,
    ) -> None:
        self.bundle = bundle
        self.policy = policy or imaging.DecodePolicy()
        self._gate = gate
        self._segmenter = segmenter
        self.engine = gate.label

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        decision: str | Path | None = None,
        engine: Engine | str = Engine.AUTO,
        threads: int | None = None,
        policy: imaging.DecodePolicy | None = None,
        allow_colour: bool = False,
    ) -> "Inspector":
        """Loads and checks a bundle.

        Args:
            bundle: its folder; the default bundle of the package if ``None``.
            decision: a decision file to use instead of the bundle's.
            engine: ``auto``, ``onnxruntime`` or ``openvino``.
            threads: inference threads; all usable cores if ``None``.
            policy: which images are accepted.
            allow_colour: turn coloured images grey, although the model's camera was grey; without
                it they are UNKNOWN, because colour in a grey camera's frame is damage.

        Raises:
            BundleError: the bundle is incomplete, altered or failed its parity check.
            EngineError: the engine is not installed or refuses the networks.
            InputError: the decision file or an argument is wrong.
        """
        loaded = load_bundle(
            Path(bundle) if bundle is not None else None,
            Path(decision) if decision is not None else None,
        )
        precision = loaded.manifest.precision
        gate, segmenter = (
            load_runtime(path, precision, engine, threads)
            for path in (loaded.gate_path, loaded.segmenter_path)
        )
        grey_only = loaded.manifest.input.monochrome and not allow_colour
        policy = replace(policy or imaging.DecodePolicy(), grey_only=grey_only)
        return cls(loaded, gate, segmenter, policy)

    def inspect(self, image: Image, name: str | None = None) -> Inspection:
        """Inspects one image.

        Args:
            image: a path, encoded bytes, or pixels ``(H, W)``, ``(H, W, 3)`` RGB.
            name: what the result calls it; the path, or ``"array"`` or ``"bytes"``.

        Returns:
            The result. Damaged or unusable images and engine failures are verdict UNKNOWN with a
            reason, never an exception.
        """
        return self.judge(self.take_in(image, name))

    def inspect_many(self, images: Iterable[Image]) -> Iterator[Inspection]:
        """Inspects images in order while the next ones are being decoded.

        Results come one by one in the order of ``images``; memory does not grow with their number.
        """
        for taken in self.take_in_ahead((image, None) for image in images):
            yield self.judge(taken)

    def take_in_ahead(self, images: Iterable[tuple[Image, str | None]]) -> Iterator[TakenIn]:
        """``take_in`` for ``(image, name)`` pairs, in order, a few frames ahead in a thread."""
        waiting: deque[Future[TakenIn]] = deque()
        pool = ThreadPoolExecutor(1, "steelsight-decode")
        try:
            for image, name in images:
                waiting.append(pool.submit(self.take_in, image, name))
                if len(waiting) > DECODE_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def take_in(self, image: Image, name: str | None = None) -> TakenIn:
        """Reads and decodes one image; whatever is wrong with it becomes ``refusal``."""
        started = time.perf_counter()
        sha256 = None
        kind = "array" if isinstance(image, np.ndarray) else "bytes"
        shown = name or (str(image) if isinstance(image, str | Path) else kind)
        try:
            if isinstance(image, np.ndarray):
                frame = imaging.from_array(image, policy=self.policy)
            else:
                if isinstance(image, str | Path):
                    data = imaging.read_bytes(image, policy=self.policy)
                else:
                    data = image
                # Before decoding: a damaged file must be found again by its hash, too.
                sha256 = hashlib.sha256(data).hexdigest()
                frame = imaging.decode(data, name=shown, policy=self.policy)
            self._check(frame)
        except DecodeError as refusal:
            return TakenIn(shown, sha256, refusal=refusal, milliseconds=_since(started, "decode"))
        return TakenIn(shown, frame.sha256, frame, milliseconds=_since(started, "decode"))

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

    def judge(self, taken: TakenIn) -> Inspection:
        """Runs the cascade on a decoded frame and puts the result together."""
        frame = taken.frame
        if frame is None:
            refusal = taken.refusal or DecodeError(Reason.DECODE_FAILED, "no frame was decoded")
            return self._unknown(taken, refusal.reason, str(refusal))
        milliseconds = dict(taken.milliseconds)
        decision = self.bundle.decision
        try:
            started = time.perf_counter()
            tiles = self._tiles(frame.grey_hw)
            gated = self._run_gate(frame.grey_hw, tiles)
            milliseconds |= _since(started, "gate")

            started = time.perf_counter()
            probabilities_chw = self._run_segmenter(frame.grey_hw, tiles, gated)
            milliseconds |= _since(started, "segment")
        except EngineError as error:
            return self._unknown(taken, Reason.ENGINE_FAILED, str(error))

        started = time.perf_counter()
        judgement = decide(
            gated.faulty_probability, gated.head_probabilities, probabilities_chw, decision
        )
        milliseconds |= _since(started, "decide")
        finite = math.isfinite(gated.faulty_probability)
        return Inspection(
            image=taken.image,
            sha256=taken.sha256,
            verdict=judgement.verdict,
            reason=judgement.reason,
            detail=judgement.detail,
            faulty_probability=gated.faulty_probability if finite else None,
            class_probabilities=judgement.class_probabilities,
            defects=judgement.defects,
            size_wh=frame.size_wh,
            model=self.bundle.id,
            decision=decision.id,
            engine=self.engine,
            milliseconds=milliseconds,
            notes=frame.notes,
        )

    def _tiles(self, grey_hw: imaging.GreyHW) -> list[imaging.BoxXYWH]:
        spec = self.bundle.manifest.input
        size_wh = (grey_hw.shape[1], grey_hw.shape[0])
        return imaging.tile_plan(size_wh, spec.tile_wh, spec.tile_overlap_px)

    def _run_gate(self, grey_hw: imaging.GreyHW, tiles: list[imaging.BoxXYWH]) -> _Gated:
        """A frame is as faulty as its worst tile."""
        faulty = -math.inf
        heads = np.full(len(self.bundle.classes), -np.inf, np.float32)
        features: list[dict[str, NDArray[Any]] | None] = []
        for x, y, w, h in tiles:
            padded, _ = imaging.pad_to_multiple(
                grey_hw[y : y + h, x : x + w], self.bundle.manifest.input.multiple_of
            )
            outputs = self._gate.run({"frames": np.ascontiguousarray(padded)[None, None]})
            probability = float(outputs.pop("faulty_probability")[0])
            # np.maximum and the comparison below keep NaN, max() would lose it.
            faulty = float(np.maximum(faulty, probability))
            tile_heads = outputs.pop("class_probabilities")[0]
            if not (math.isfinite(probability) and np.isfinite(tile_heads).all()):
                faulty = math.nan  # a maximum over tiles would lose -inf
            heads = np.maximum(heads, tile_heads)
            cleared = is_cleared(probability, self.bundle.decision)
            features.append(None if cleared else outputs)
        return _Gated(faulty, heads, features)

    def _run_segmenter(
        self,
        grey_hw: imaging.GreyHW,
        tiles: list[imaging.BoxXYWH],
        gated: _Gated,
    ) -> NDArray[np.float32] | None:
        """Mask probabilities ``(C, H, W)``, or ``None`` if the gate cleared every tile."""
        if all(features is None for features in gated.features):
            return None
        stitcher = imaging.Stitcher(
            len(self.bundle.classes),
            (grey_hw.shape[1], grey_hw.shape[0]),
            self.bundle.manifest.input.tile_overlap_px,
        )
        for box_xywh, features in zip(tiles, gated.features, strict=True):
            if features is None:
                continue
            _, _, w, h = box_xywh
            tile_chw = self._segmenter.run(features)["mask_probabilities"][0, :, :h, :w]
            if len(tiles) == 1:
                return np.asarray(tile_chw)
            stitcher.add(tile_chw, box_xywh)
        return stitcher.probabilities_chw

    def _unknown(self, taken: TakenIn, reason: Reason, detail: str) -> Inspection:
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


def _since(started: float, step: str) -> dict[str, float]:
    return {step: (time.perf_counter() - started) * 1e3}
