"""Which crops make the batch of a step.

A plan says what to cut, not yet where: that follows from the crop's own seed (``crops.py``). Plans
are a function of the run's seed, the step and the place in the global batch, and of nothing else:
a resumed run goes on with the batches it would have had, and two processes with half a batch each
see the crops that one would see.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from steelsight.data.frames import FrameSource
from steelsight.errors import InputError
from steelsight.training.config import Sampling

_STREAM = 0x5A3F
"""Second word of the generators' key; the first is the seed of the run."""


class CropKind(StrEnum):
    """What a crop shows."""

    DEFECT = "defect"
    """A place around a pixel of a certain type."""
    PASTE = "paste"
    """A clean frame with a defect from another frame pasted into it."""
    CLEAN = "clean"
    """Any place of a clean frame."""
    ANY = "any"
    """Any place of any frame whose masks are known."""


@dataclass(frozen=True, slots=True)
class CropPlan:
    """One crop to be cut.

    Attributes:
        kind: what it shows.
        frame: index of the frame; of the clean one for ``PASTE``.
        type_index: type around which it is cut, in channel order; ``None`` for ``CLEAN`` and
            ``ANY``.
        donor: index of the frame that gives the defect; only for ``PASTE``.
        seed: of everything else that is drawn for this crop; 0 to 2^63 - 1.
    """

    kind: CropKind
    frame: int
    type_index: int | None
    donor: int | None
    seed: int


class Sampler:
    """Draws the plans of the global batch of each step.

    Crops are cut from clean frames and from frames of which every type has a mask; on the others a
    pixel outside the masks may be defective. Types are spread evenly over a batch according to
    their weights (systematic sampling: each type gets its expected number, up to one crop more or
    less), and a type's frames are drawn with equal chances.

    Without any clean frame nothing can be pasted and no crop is known to be clean beforehand:
    ``PASTE`` becomes ``DEFECT``, ``CLEAN`` becomes ``ANY``.

    Args:
        source: the frames.
        config: the settings.
        seed: of the run.

    Raises:
        InputError: no frame with masks.

    Attributes:
        kinds: what each crop of a batch shows, the same in every step.
        type_weights: chance of each type wherever a type is drawn, ``(K,)``, sum 1.
    """

    def __init__(self, source: FrameSource, config: Sampling, seed: int) -> None:
        self._seed = seed
        frames = source.frames
        masked = [i for i, frame in enumerate(frames) if frame.masked]
        clean = [i for i, frame in enumerate(frames) if frame.clean]
        if not masked:
            raise InputError(
                f"expected frames with masks to train on, got none among {len(frames)} frames;"
                " mark the place of some defects"
            )
        self._clean = np.array(clean, np.int64)
        self._any = np.array(sorted(masked + clean), np.int64)
        self._by_type = [
            np.array([i for i in masked if class_id in frames[i].class_ids], np.int64)
            for class_id in source.class_ids
        ]
        counts = np.array([len(members) for members in self._by_type], np.float64)
        weights = np.where(counts > 0, counts**config.type_exponent, 0)
        self.type_weights: NDArray[np.float64] = weights / weights.sum()
        self.kinds = _kinds(config, bool(clean))

    def plan(self, step: int) -> tuple[CropPlan, ...]:
        """The global batch of one step, 0-based."""
        types = self._types(step)
        return tuple(
            self._crop(kind, types[place], self._generator(step, place))
            for place, kind in enumerate(self.kinds)
        )

    def _types(self, step: int) -> list[int | None]:
        """A type for each place in the batch that needs one."""
        rng = self._generator(step, len(self.kinds))
        types: list[int | None] = [None] * len(self.kinds)
        # Without those that cannot be drawn: rounding could otherwise hit one at the end.
        drawable = np.flatnonzero(self.type_weights)
        bounds = np.cumsum(self.type_weights[drawable])[:-1]
        for kind in (CropKind.DEFECT, CropKind.PASTE):
            offset = rng.random()
            places = [place for place, other in enumerate(self.kinds) if other is kind]
            positions = (np.arange(len(places)) + offset) / max(len(places), 1)
            drawn = drawable[np.searchsorted(bounds, positions, side="right")]
            for place, type_index in zip(places, drawn.tolist(), strict=True):
                types[place] = type_index
        return types

    def _crop(self, kind: CropKind, type_index: int | None, rng: np.random.Generator) -> CropPlan:
        donor = None
        if kind is CropKind.ANY:
            frame = _draw(rng, self._any)
        elif kind is CropKind.CLEAN or type_index is None:
            frame = _draw(rng, self._clean)
        elif kind is CropKind.PASTE:
            frame, donor = _draw(rng, self._clean), _draw(rng, self._by_type[type_index])
        else:
            frame = _draw(rng, self._by_type[type_index])
        return CropPlan(kind, frame, type_index, donor, int(rng.integers(1 << 63)))

    def _generator(self, step: int, place: int) -> np.random.Generator:
        # The two low words of the counter count what is drawn.
        return np.random.Generator(
            np.random.Philox(key=[self._seed, _STREAM], counter=[0, 0, place, step])
        )


def _kinds(config: Sampling, with_clean: bool) -> tuple[CropKind, ...]:
    defects = round(config.defects * config.batch) if config.balance else 0
    pastes = min(round(config.copy_paste * config.batch), config.batch - defects)
    rest = config.batch - defects - pastes
    return (
        *[CropKind.DEFECT] * defects,
        *[CropKind.PASTE if with_clean else CropKind.DEFECT] * pastes,
        *[CropKind.CLEAN if with_clean and config.balance else CropKind.ANY] * rest,
    )


def _draw(rng: np.random.Generator, members: NDArray[np.int64]) -> int:
    return int(members[rng.integers(len(members))])
