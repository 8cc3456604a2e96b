"""The story of a benchmark, from frames in memory to all figures.

The whole pipeline is measured, from encoded bytes to the result line. Everything that is compared
(engines, bundles, another pipeline) takes the same frames in the same run, in turns. Milliseconds
belong to this machine and hour; the ratios are what can be compared.
"""

import importlib.util
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steelsight.benchmark.frames import (
    Candidate,
    EncodedFrame,
    Progress,
    choose,
    told,
    wanted_of_kind,
)
from steelsight.benchmark.line import Line, line_answer, rows_of
from steelsight.benchmark.machine import ColdStart, cold_start, peak_memory_mb
from steelsight.benchmark.race import (
    Contestant,
    Figures,
    Spread,
    Timed,
    figures,
    race,
    to_json,
    warm_up,
)
from steelsight.bundle import Bundle, Precision
from steelsight.defects import Inspection, Verdict
from steelsight.doctor import versions
from steelsight.engine.cascade import Inspector
from steelsight.engine.runtime import Engine, available_cores, installed_engines
from steelsight.errors import EngineError, InputError, SteelsightError, first_names
from steelsight.evaluation.metrics import auroc
from steelsight.masks import decode_rle, dice, merge_rles

if TYPE_CHECKING:
    from steelsight.benchmark.peak import Probe

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens a part of the work; ``cli.terminal.counted`` is one."""

FRAMES_PER_WORKER = 8
"""Least number of frames that each worker takes while throughput is measured."""
MEMORY_FRAMES = 16
"""Frames that the process inspects whose memory is told."""


# Pipelines ---------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What the first bundle said of a frame: what another pipeline has to do the work for.

    Attributes:
        segmented: stage 1 did not clear it.
        rle_by_class: its mask, Kaggle RLE by type; empty if nothing was found.
        size_wh: width and height in pixels.
    """

    segmented: bool
    rle_by_class: Mapping[str, str]
    size_wh: tuple[int, int]


class Pipeline:
    """A bundle on an engine, as this package runs it.

    Args:
        one: inspects single frames with all threads.
        many: inspects several at once.
        name: in the tables; bundle and engine if left out, and the decision if one is given.
        decision: the file, or its name in the bundle.
    """

    def __init__(
        self,
        one: Inspector,
        many: Inspector,
        name: str | None = None,
        decision: Path | None = None,
    ) -> None:
        self.one, self.many, self.decision = one, many, decision
        self.name = name or f"{one.bundle.manifest.name} {one.engine}"
        if decision is not None and name is None:
            self.name += f" {one.bundle.decision.name}"

    @classmethod
    def load(
        cls, bundle: Path | None, engine: Engine, threads: int, decision: Path | None = None
    ) -> "Pipeline":
        """Loads the bundle twice: for latency, and for throughput.

        Raises:
            SteelsightError: as ``Inspector.load``.
        """
        one, many = (
            Inspector.load(
                bundle, decision=decision, engine=engine, threads=threads, workers=workers
            )
            for workers in (1, 0)
        )
        return cls(one, many, decision=decision)

    def judge(self, frame: EncodedFrame) -> Inspection:
        """The verdict on one frame."""
        return self.one.inspect(frame.data, frame.name)

    def one_by_one(self, frames: Sequence[EncodedFrame]) -> list[Timed]:
        """See ``Contestant``."""
        timed = []
        for frame in frames:
            started = time.perf_counter()
            inspection = self.judge(frame)
            inspection.to_json_line()
            _refuse_unknown(self.name, inspection)
            timed.append(Timed(time.perf_counter() - started, inspection.milliseconds))
        return timed

    def together(self, frames: Sequence[EncodedFrame]) -> float:
        """See ``Contestant``.

        With many workers the frames are taken several times over, so that beginning and end, when
        some of them have nothing to do, do not count.
        """
        times = -(-FRAMES_PER_WORKER * self.many.workers // len(frames))
        started = time.perf_counter()
        answered = 0
        for inspection in self.many.inspect_many(f.data for _ in range(times) for f in frames):
            inspection.to_json_line()
            _refuse_unknown(self.name, inspection)
            answered += 1
        seconds = time.perf_counter() - started
        if answered != times * len(frames):
            raise EngineError(
                f"{self.name}: expected {times * len(frames)} results, got {answered}"
            )
        return seconds / times


def _refuse_unknown(name: str, inspection: Inspection) -> None:
    """A frame without a verdict takes less time: it would flatter.

    Raises:
        EngineError: UNKNOWN.
    """
    if inspection.verdict is Verdict.UNKNOWN:
        raise EngineError(
            f"{name}: expected a verdict on {first_names([inspection.image])}, got UNKNOWN, "
            f"{inspection.reason}: {inspection.detail}; run: steelsight doctor"
        )


def answer_of(inspection: Inspection, bundle: Bundle) -> Answer:
    """What another pipeline needs to know of a frame to do the same work.

    Raises:
        EngineError: the frame has no verdict.
    """
    if inspection.size_wh is None or inspection.faulty_probability is None:
        raise EngineError(
            f"{inspection.image}: expected a verdict, got {inspection.verdict}, "
            f"{inspection.reason}: {inspection.detail}"
        )
    return Answer(
        inspection.milliseconds.get("segment", 0.0) > 0,
        {
            class_id: rle
            for class_id in (c.id for c in bundle.classes)
            if (rle := merge_rles([d.rle for d in inspection.defects if d.class_id == class_id]))
        },
        inspection.size_wh,
    )


def load_contestant(path: Path, answers: Mapping[str, Answer], threads: int) -> Contestant:
    """Another pipeline, from a Python file with ``contestant(answers, threads)``.

    The file is executed. ``answers`` has what the first bundle said of every frame.

    Raises:
        InputError: there is no such file, a package is missing, or it has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"contestant_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"expected a Python file for --against, {path} is none")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SteelsightError:
        raise
    except ImportError as error:
        raise InputError(
            f"{path} needs what is not installed ({error}); run: pip install 'steelsight[train]'"
        ) from None
    except Exception as error:
        raise InputError(f"{path} cannot be executed: {_told(error)}; mend the file") from None
    make = getattr(module, "contestant", None)
    if make is None:
        raise InputError(
            f"{path}: expected a function contestant(answers, threads), found none; see "
            "benchmarks/naive.py for an example"
        )
    try:
        made: Contestant = make(answers, threads)
    except SteelsightError:
        raise
    except Exception as error:
        raise InputError(f"{path}: contestant(answers, threads) failed: {_told(error)}") from None
    missing = [name for name in ("name", "one_by_one", "together") if not hasattr(made, name)]
    if missing:
        raise InputError(
            f"{path}: expected name, one_by_one and together of what contestant() returns, "
            f"{' and '.join(missing)} missing; see benchmarks/naive.py for an example"
        )
    return made


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# Accuracy -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accuracy:
    """On the labelled frames of the run, each once.

    Attributes:
        auroc: of ``faulty_probability``; ``None`` unless faulty and clean frames are there.
        dice: of delivered masks on frames that hold the type: mean over frames, then over types.
        frames, masks: how many there were.
        other_types: labelled types that are none of the bundle's; their masks are in no figure.
    """

    auroc: float | None
    dice: float | None
    frames: int
    masks: int
    other_types: tuple[str, ...]


def accuracy(
    inspections: Mapping[str, Inspection],
    labels: Mapping[str, Candidate],
    class_ids: Collection[str],
) -> Accuracy:
    """AUROC and Dice of what was inspected.

    Args:
        inspections: by name, all with a verdict.
        labels: of these frames.
        class_ids: the bundle's types.

    Raises:
        LabelError: a mask does not fit its frame.
    """
    named = sorted(inspections.keys() & labels.keys())
    judged = [name for name in named if labels[name].faulty is not None]
    dices: dict[str, list[float]] = {}
    other_types: set[str] = set()
    for name in named:
        found, size_wh = inspections[name], inspections[name].size_wh
        for class_id, rle in labels[name].rle_by_class.items():
            if class_id not in class_ids:
                other_types.add(class_id)
                continue
            delivered = merge_rles([d.rle for d in found.defects if d.class_id == class_id])
            truth_hw = decode_rle(rle, size_wh or (1, 1), where=name)
            overlap = dice(decode_rle(delivered, size_wh or (1, 1)), truth_hw)
            dices.setdefault(class_id, []).append(overlap)
    return Accuracy(
        auroc(
            np.array([inspections[n].faulty_probability for n in judged], np.float64),
            [labels[n].faulty is True for n in judged],
        )
        if judged
        else None,
        float(np.mean([np.mean(values) for values in dices.values()])) if dices else None,
        len(judged),
        sum(map(len, dices.values())),
        tuple(sorted(other_types)),
    )


# The story ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure; refused with ``InputError`` where impossible."""

    bundles: tuple[Path | None, ...] = (None,)
    """Folders; ``None`` is the shipped one."""
    decisions: tuple[Path | None, ...] = (None,)
    """Files, or names that the bundles have them under; ``None`` is a bundle's own."""
    engines: tuple[Engine, ...] = ()
    """All installed ones if empty."""
    against: Path | None = None
    """Python file with another pipeline; see ``load_contestant``."""
    frames: int = 30
    """How many."""
    faulty_share: float | None = None
    """See ``choose``."""
    rounds: int = 3
    """How often every contestant takes all frames."""
    threads: int = field(default_factory=available_cores)
    """Inference threads."""
    seed: int = 0
    """Of the choice and order of frames."""
    accuracy: bool = False
    """Tell accuracy, too: the candidates carry labels of real frames."""
    line: Line | None = None
    """To answer whether this machine keeps up with it."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("rounds", 1), ("threads", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"expected --{name} from {least}, got {getattr(self, name)}")
        wanted_of_kind(self.frames, self.faulty_share)
        if Engine.AUTO in self.engines:
            *names, last = [e for e in Engine if e is not Engine.AUTO]
            raise InputError(f"expected --engine {', '.join(names)} or {last}, got {Engine.AUTO}")


@contextmanager
def silent(_what: str) -> Iterator[Progress]:
    """A stage that tells nobody."""
    yield lambda _done, _total: None


def run(
    candidates: Sequence[Candidate], settings: Settings, stage: Stage = silent
) -> dict[str, Any]:
    """Loads, chooses frames, starts cold, warms up, measures in turns.

    Args:
        candidates: frames that may be taken.
        settings: what to measure.
        stage: opened around each part, to show progress.

    Returns:
        All figures, as JSON.

    Raises:
        SteelsightError: nothing can be measured; the text says why.
    """
    notes: list[str] = []
    with stage("loading") as step:
        pipelines = _load_pipelines(settings, notes, step)
    first = pipelines[0]
    with stage("choosing") as step:
        chosen = choose(
            candidates, settings.frames, settings.faulty_share, settings.seed, first.judge, step
        )
    with stage("answering") as step:
        answered = [_inspect_all(p, chosen.frames, step) for p in pipelines]
    labels = {candidate.name: candidate for candidate in candidates}
    right = [
        accuracy(inspections, labels, [c.id for c in pipeline.one.bundle.classes])
        if settings.accuracy
        else None
        for pipeline, inspections in zip(pipelines, answered, strict=True)
    ]
    answers = {name: answer_of(i, first.one.bundle) for name, i in answered[0].items()}
    segmented_n = np.array([answers[frame.name].segmented for frame in chosen.frames])
    sizes_wh = sorted({answer.size_wh for answer in answers.values()})
    rows = rows_of(sizes_wh) if settings.line else 0
    with stage("starting") as step:
        cold = _cold_starts(pipelines, chosen.frames, answers, settings.threads, notes, step)

    contestants: list[Contestant] = [*pipelines]
    if settings.against is not None:
        contestants.append(load_contestant(settings.against, answers, settings.threads))
    reference = len(contestants) - 1 if settings.against is not None else 0
    with stage("warming up") as step:
        warm_up_s = warm_up(contestants, chosen.frames, segmented_n, step)
    probes = _probes({p.one.bundle.manifest.precision for p in pipelines}, settings.threads, notes)
    peaks_cr: list[list[float]] = [[] for _ in pipelines]

    def before_turn(c: int) -> None:
        """The peak at this moment, of the number type of whoever's turn it is."""
        if c < len(pipelines) and probes:
            found = probes[pipelines[c].one.bundle.manifest.precision]
            peaks_cr[c].append(found.operations_per_second())

    with stage("measuring") as step:
        measured = race(
            contestants, chosen.frames, settings.rounds, step, before_turn, settings.seed
        )

    facts: list[dict[str, Any]] = []
    for c, contestant in enumerate(contestants):
        found = figures(measured[c], measured[reference], segmented_n)
        fact: dict[str, Any] = {"name": contestant.name, "warm_up_s": round(warm_up_s[c], 3)}
        fact |= to_json(found)
        fact["frames_per_second_by_round"] = [
            round(speed, 3) for speed in measured[c].frames_per_second_r.tolist()
        ]
        if c < len(pipelines):
            fact |= _about(pipelines[c], answered[c], answered[0])
            fact["cold_start"] = None if cold[c] is None else to_json(cold[c])
            fact["accuracy"] = to_json(right[c])
            if peaks_cr[c] and len(sizes_wh) == 1:
                fact["share_of_peak"] = _share_of_peak(
                    pipelines[c], sizes_wh[0], found, peaks_cr[c]
                )
        if settings.line:
            on_gpu = c < len(pipelines) and _is_on_gpu(pipelines[c])
            cores = None if on_gpu else settings.threads
            answer = line_answer(settings.line, rows, contestant.name, found, cores)
            fact["line"] = to_json(answer)
        facts.append(fact)
    return {
        "seed": settings.seed,
        "rounds": settings.rounds,
        "threads": settings.threads,
        "versions": versions(),
        "frames": {
            "count": len(chosen.frames),
            "different": chosen.different,
            "faulty_share": settings.faulty_share,
            "faulty": _count_faulty(chosen.frames),
            "segmented": int(segmented_n.sum()),
            "sizes_wh": [list(size) for size in sizes_wh],
            "left_out": dict(chosen.left_out),
            "bytes": sum(len(frame.data) for frame in chosen.frames),
        },
        "reference": contestants[reference].name,
        "contestants": facts,
        "line": None if settings.line is None else to_json(settings.line) | {"rows": rows},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "notes": notes,
    }


def _load_pipelines(settings: Settings, notes: list[str], step: Progress) -> list[Pipeline]:
    """Every bundle on every engine; an engine that refuses is told and left out."""
    engines = settings.engines or installed_engines()
    pairs = [
        (folder, engine, decision)
        for folder in settings.bundles
        for decision in settings.decisions
        for engine in engines
    ]
    pipelines: list[Pipeline] = []
    refusal = EngineError("expected an inference engine, none is installed; reinstall steelsight")
    for folder, engine, decision in told(pairs, step):
        try:
            pipelines.append(Pipeline.load(folder, engine, settings.threads, decision))
        except EngineError as error:
            refusal = error
            notes.append(f"{engine} is left out: {error}")
    if not pipelines:
        raise refusal
    _tell_apart(pipelines)
    return pipelines


def _tell_apart(pipelines: Sequence[Pipeline]) -> None:
    """Pipelines of one name get the bundle's hash into it, and those of one hash a number."""
    names = Counter(pipeline.name for pipeline in pipelines)
    for pipeline in pipelines:
        if names[pipeline.name] > 1:
            pipeline.name = f"{pipeline.one.bundle.id} {pipeline.one.engine}"
    names = Counter(pipeline.name for pipeline in pipelines)
    seen: Counter[str] = Counter()
    for pipeline in pipelines:
        name = pipeline.name
        if names[name] > 1:
            seen[name] += 1
            pipeline.name = f"{name} ({seen[name]})"


def _inspect_all(
    pipeline: Pipeline, frames: Sequence[EncodedFrame], step: Progress
) -> dict[str, Inspection]:
    """What a pipeline says of each frame, by name."""
    named = {frame.name: frame for frame in frames}
    answered = {}
    for name, frame in told(list(named.items()), step):
        answered[name] = pipeline.judge(frame)
        _refuse_unknown(pipeline.name, answered[name])
    return answered


def _cold_starts(
    pipelines: Sequence[Pipeline],
    frames: Sequence[EncodedFrame],
    answers: Mapping[str, Answer],
    threads: int,
    notes: list[str],
    step: Progress,
) -> list[ColdStart | None]:
    """Of each pipeline, on frames with the most work: they need the most memory."""
    named = {frame.name: frame for frame in frames}
    most = sorted(named, key=lambda name: not answers[name].segmented)[:MEMORY_FRAMES]
    found: list[ColdStart | None] = []
    with TemporaryDirectory(prefix="steelsight-") as folder:
        images = [Path(folder) / f"{i:03d}{Path(name).suffix}" for i, name in enumerate(most)]
        for image, name in zip(images, most, strict=True):
            image.write_bytes(named[name].data)
        for pipeline in told(pipelines, step):
            engine = Engine(pipeline.one.engine.partition("-")[0])
            try:
                bundle, decision = pipeline.one.bundle, pipeline.decision
                found.append(cold_start(bundle.folder, engine, threads, images, decision=decision))
            except EngineError as error:
                notes.append(f"{pipeline.name} has no cold start: {error}")
                found.append(None)
    return found


def _probes(precisions: set[Precision], threads: int, notes: list[str]) -> "dict[str, Probe]":
    """By number type; empty, and told, where the peak cannot be measured."""
    try:
        from steelsight.benchmark.peak import Probe

        return {str(precision): Probe(precision, threads) for precision in sorted(precisions)}
    except EngineError as error:
        notes.append(f"No share of the machine's peak: {error}")
        return {}


def _share_of_peak(
    pipeline: Pipeline, size_wh: tuple[int, int], found: Figures, peaks_r: Sequence[float]
) -> dict[str, Any] | None:
    """Operations of gate and segmenter, and their share of the peak, round by round.

    ``None`` where the operations are not known, or the peak that was measured is not its.
    """
    if _is_on_gpu(pipeline):
        return None
    from steelsight.benchmark.peak import operations

    try:
        counted = operations(pipeline.one.bundle, size_wh)
    except EngineError:
        return None
    if pipeline.one.bundle.decision.first_look:
        # Not every frame has the operations of the gate, so none can be told for its time.
        counted = (math.nan, counted[1])
    shares: dict[str, Any] = {"peak_operations_per_second_by_round": to_json(peaks_r)}
    for step, per_frame in zip(("gate", "segment"), counted, strict=True):
        if math.isnan(per_frame):
            continue
        shares[f"{step}_operations"] = per_frame
        if step in found.step_ms_r:
            seconds_r = 1e-3 * np.array(found.step_ms_r[step])
            shares[step] = to_json(Spread.of(per_frame / seconds_r / np.array(peaks_r)))
    return shares


def _is_on_gpu(pipeline: Pipeline) -> bool:
    return pipeline.one.engine.partition("-")[0] == Engine.CUDA


def _about(
    pipeline: Pipeline, answered: Mapping[str, Inspection], first: Mapping[str, Inspection]
) -> dict[str, Any]:
    """Which model this is, and what it said."""
    bundle = pipeline.one.bundle
    return {
        "bundle": bundle.id,
        "decision": bundle.decision.id,
        "engine": pipeline.one.engine,
        "verdicts": dict(Counter(i.verdict.value for i in answered.values())),
        "verdicts_unlike_the_first": sum(
            i.verdict != first[name].verdict for name, i in answered.items()
        ),
    }


def _count_faulty(frames: Sequence[EncodedFrame]) -> int | None:
    if any(frame.faulty is None for frame in frames):
        return None
    return sum(frame.faulty is True for frame in frames)
