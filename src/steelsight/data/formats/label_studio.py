"""Label Studio's JSON export (not "JSON-MIN"): brush masks and polygons.

A list of tasks; each has its image in ``data``, and in ``annotations`` what people drew. Of each
task one annotation counts: not ``was_cancelled``, and the one marked ``ground_truth`` if there is
one. An annotation without any result is a clean frame; a task without annotation is unlabelled,
whatever ``predictions`` it has: a model's guess is no label. Results are read so:

* ``brushlabels``: the run lengths described below; several of one type are united;
* ``polygonlabels``: points in per cent of the image;
* choices, texts, ratings and relations mark no place and are ignored. If an annotation holds
  nothing else the frame stays unlabelled, because they may name a defect;
* anything else, such as rectangles, is an error: it is no mask, and without it the frame would
  look cleaner than it is.

**Run lengths.** ``value.rle`` is a list of bytes, packed by thi.ng's rle-pack
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack), most significant bit first:
32 bits number of words, 5 bits word size - 1, four times 4 bits length size - 1; then blocks of
1 bit kind, 2 bits that choose one of the four length sizes, length - 1 in as many bits, and for a
run (kind 1) one word, for literals (kind 0) all words. The words are the bytes of an RGBA picture,
row by row: four for each pixel. A pixel belongs to the mask if its alpha is above 0, however
little, as in Label Studio itself and in its SDK (``label_studio_sdk/converter/brush.py``).

**Image names.** Label Studio knows an image by address: ``/data/upload/3/1a2b3c4d-000a.jpg``,
``/data/local-files/?d=line1%2F000a.jpg``, ``s3://bucket/line1/000a.jpg``, ``https://...``; nothing
is ever fetched. If images are there, the longest end of the path that is one of them counts, then
a file name that only one of them has. Otherwise it is the path behind a leading ``images/``, and
else the file name alone. The 8 hexadecimal digits and ``-`` that Label Studio puts in front of
uploads are taken away where that names an image, or where no images are there at all.

Other entries of ``data`` are kept as columns; ``split`` is the frame's split, and ``width_px`` and
``height_px`` tell the size where no result does. Types are in the order of ``label_config.xml``
(the labelling interface) beside the JSON if it is there, else in that of their appearance.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from steelsight.data.formats.cvat import MAX_TYPES, parse_xml
from steelsight.data.labels import (
    IMAGE_FOLDER,
    SPLIT_FOLDERS,
    FrameLabels,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    check_image_name,
    check_size,
    classes_of,
    clean_frames,
    frame_size,
    frames_to_write,
    further_class,
    images_beside,
    names_to_write,
    place_images,
    shown,
    split_of,
    write_file,
)
from steelsight.data.polygons import rasterise_rle
from steelsight.data.tables import unique_keys
from steelsight.data.threads import frame_by_frame
from steelsight.errors import InputError, LabelError, first_names
from steelsight.imaging import IMAGE_SUFFIXES
from steelsight.masks import MAX_MASK_PX, kaggle_from_rows, row_runs, union_rle

LABELS = "label_studio.json"
LABEL_STUDIO_CONFIG = "label_config.xml"

_MAX_FILE_BYTES = 1 << 30
"""Parsed JSON takes several times the memory of its text."""

_MARKS_NO_PLACE = frozenset(
    ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy")
) | {"textarea"}

_HEADER_BITS = 32 + 5 + 4 * 4
_WORD_BITS = 8
_CHUNK_BYTES = 1 << 16
_LENGTH_BITS = np.array([3, 4, 8, 16])
"""The four length sizes that Label Studio and its SDK write."""

_BYTE_TEXTS = [str(byte) for byte in range(256)]

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c")

Json = dict[str, Any]
Ints = NDArray[np.int64]


# Run lengths -------------------------------------------------------------------------------------


def decode_brush(rle: object, size_wh: tuple[int, int], *, where: str = "") -> tuple[Ints, Ints]:
    """Turns ``value.rle`` of a brush result into runs of the pixels whose alpha is above 0.

    The picture of four bytes a pixel is never built: memory goes with the text.

    Args:
        rle: parsed JSON, a list of bytes.
        size_wh: width and height of the image in pixels; the length in the header must fit.
        where: put in front of an error message.

    Returns:
        Starts and ends of the runs in ascending order, which may touch: 0-based pixel indices
        left to right, then top to bottom; ends exclusive.

    Raises:
        LabelError: not a list of bytes, another length or word size than a picture of this size
            has, blocks that end too early or go on too far, or something behind the last one.
        InputError: ``size_wh`` is no usable size.
    """
    width, height = size_wh
    if width < 1 or height < 1 or width * height > MAX_MASK_PX:
        raise InputError(
            f"expected a width and height from 1 up and at most {MAX_MASK_PX} pixels, got"
            f" {width} x {height}; pass the size of the image"
        )
    data = _bytes(rle, where)
    header = int.from_bytes(data[:7]) >> (56 - _HEADER_BITS)
    word_count, word_bits = header >> 21, (header >> 16 & 31) + 1
    if len(data) < 7 or word_count != 4 * width * height or word_bits != _WORD_BITS:
        got = f"{word_count} words of {word_bits} bits" if len(data) >= 7 else f"{len(data)} bytes"
        raise _error(
            where,
            f"the rle begins with {got}, expected {4 * width * height} words of {_WORD_BITS} bits"
            f" for RGBA at {width} x {height}; give the size at which was labelled, and export"
            " the tasks again",
        )
    length_bits = np.array([(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)])
    starts, end_bit = _block_starts(data, length_bits.tolist())
    # Kind, size and length of all blocks at once.
    windows = _windows(data)
    head = _window_at(windows, starts)
    is_run, size = head >> 31 > 0, head >> 29 & 3
    words = 1 + ((head << 3 & 0xFFFFFFFF) >> (32 - length_bits[size]))
    end_word = np.cumsum(words)
    count = _check_end(data, np.append(starts[1:], end_bit), end_word, word_count, where)
    starts, is_run, size = starts[:count], is_run[:count], size[:count]
    end_word, first_word = end_word[:count], end_word[:count] - words[:count]
    value_bit = starts + 3 + length_bits[size]
    # The alpha of pixel k is word 4 k + 3, so these words hold the alphas of these pixels:
    start, end = first_word // 4, end_word // 4
    if not is_run.all():
        # A run is one piece of its pixels, literals are as many pieces of one pixel.
        pieces = np.where(is_run, 1, end - start)
        block = np.repeat(np.arange(len(pieces)), pieces)
        nth = np.arange(len(block)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        literal_word = 4 * (start[block] + nth) + 3 - first_word[block]
        value_bit = value_bit[block] + np.where(is_run[block], 0, _WORD_BITS * literal_word)
        start, end = start[block] + nth, np.where(is_run[block], end[block], start[block] + nth + 1)
    alpha = _window_at(windows, value_bit) >> (32 - _WORD_BITS)
    seen = (alpha > 0) & (start < end)
    return start[seen], end[seen]


def _windows(data: bytes) -> Ints:
    """32 bits of the stream from each byte on, up to that behind the last one."""
    stream = np.frombuffer(data + bytes(4), np.uint8).astype(np.int64)
    return stream[:-3] << 24 | stream[1:-2] << 16 | stream[2:-1] << 8 | stream[3:]


def _window_at(windows: Ints, bit: Ints) -> Ints:
    """32 bits from each given bit on; the first 25 of them are sure to be filled."""
    found: Ints = windows[bit >> 3] << (bit & 7) & 0xFFFFFFFF
    return found


def _block_starts(data: bytes, length_bits: list[int]) -> tuple[Ints, int]:
    """The bit at which each block begins, up to the end of the data, and that behind the last.

    Zeros that fill the data up are taken for blocks too.
    """
    # Where a block begins is only known when the one before was read, so this is a loop. The first
    # three bits tell how many bits a run takes; only of literals the length must be read.
    run_bits = bytes(4) + bytes(3 + bits + _WORD_BITS for bits in length_bits) + bytes(248)
    padded = data + bytes(4)
    stream = np.frombuffer(padded, np.uint8)
    starts: list[Ints] = []
    bit, bit_count = _HEADER_BITS, 8 * len(data)
    while bit < bit_count:
        begin = bit >> 3
        bits = np.unpackbits(stream[begin : begin + _CHUNK_BYTES + 1])
        head = bits[:-2] << 2 | bits[1:-1] << 1 | bits[2:]
        steps = head.tobytes().translate(run_bits)
        end = min(bit_count - 8 * begin, 8 * _CHUNK_BYTES)
        bit -= 8 * begin
        chunk = []
        while bit < end:
            chunk.append(bit)
            step = steps[bit]
            if not step:
                at = begin + (bit >> 3)
                window = int.from_bytes(padded[at : at + 4]) << (bit & 7)
                size = length_bits[window >> 29 & 3]
                step = 3 + size + _WORD_BITS * (1 + (window >> (29 - size) & (1 << size) - 1))
            bit += step
        bit += 8 * begin
        starts.append(np.array(chunk, np.int64) + 8 * begin)
    return np.concatenate(starts), bit


def _check_end(data: bytes, end_bit: Ints, end_word: Ints, word_count: int, where: str) -> int:
    """The number of blocks that fill the picture; nothing may be missing or left."""
    last = min(int(np.searchsorted(end_word, word_count)), len(end_word) - 1)
    word, bit = int(end_word[last]), int(end_bit[last])
    if word < word_count or bit > 8 * len(data):
        raise _error(
            where,
            f"the rle ends after {len(data)} bytes, at word {word} of {word_count}; it is cut off,"
            " export the tasks again",
        )
    if word > word_count:
        raise _error(
            where,
            f"the last block of the rle ends at word {word}, expected {word_count}; export the"
            " tasks again",
        )
    # Label Studio fills up the last byte with zeros, its SDK adds one more byte.
    rest = data[bit >> 3 :]
    if rest and (rest[0] << (bit & 7) & 255 or rest[1:].strip(b"\0")):
        raise _error(
            where,
            f"something follows the last block of the rle, from byte {(bit >> 3) + 1} of"
            f" {len(data)} on, expected its end; export the tasks again",
        )
    return last + 1


def encode_brush(starts: Ints, ends: Ints, size_wh: tuple[int, int]) -> list[int]:
    """Writes runs as ``value.rle``: white with full alpha on transparent black.

    Byte for byte what ``mask2rle`` of the SDK writes for a mask of 0 and 255.

    Args:
        starts: as :func:`decode_brush` returns them.
        ends: likewise; runs do not touch.
        size_wh: width and height of the image in pixels.

    Returns:
        Bytes as a list of whole numbers.
    """
    pixel_count = size_wh[0] * size_wh[1]
    edges = np.zeros(2 * len(starts) + 2, np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = starts, ends, pixel_count
    run_words = 4 * (edges[1:] - edges[:-1])
    value = np.zeros(len(run_words), np.int64)
    value[1::2] = 255
    run_words, value = run_words[run_words > 0], value[run_words > 0]
    # Longer runs become several blocks: all full but the last one.
    largest = 1 << _LENGTH_BITS[-1]
    block_count = -(-run_words // largest)
    words = np.repeat(np.where(block_count > 1, largest, run_words), block_count)
    last = np.cumsum(block_count) - 1
    words[last] = run_words - largest * (block_count - 1)
    size = np.searchsorted(1 << _LENGTH_BITS[:3], np.repeat(run_words, block_count))
    bits = np.empty(len(words) + 2, np.int64)
    bits[:2], bits[2:] = (32, _HEADER_BITS - 32), 3 + _LENGTH_BITS[size] + _WORD_BITS
    codes = np.empty_like(bits)
    codes[:2] = 4 * pixel_count, (_WORD_BITS - 1) << 16 | 0x237F
    codes[2:] = (4 | size) << (bits[2:] - 3) | (words - 1) << _WORD_BITS
    codes[2:] |= np.repeat(value, block_count)
    return _packed(codes, bits)


def _packed(codes: Ints, bit_counts: Ints) -> list[int]:
    """Numbers one after the other, each in up to 32 bits; then zeros: at least one bit."""
    ends = np.cumsum(bit_counts)
    starts = ends - bit_counts
    # A number begins in each word of 32 bits, and ends in it or the next one. As no two numbers
    # share a bit, their sums are their unions.
    word, in_two_words = starts >> 5, codes.astype(np.uint64)
    in_two_words <<= (64 - bit_counts - (starts & 31)).astype(np.uint64)
    is_first = np.ones(len(word), np.bool_)
    np.not_equal(word[1:], word[:-1], out=is_first[1:])
    sums = np.add.reduceat(in_two_words, np.flatnonzero(is_first))
    words = np.zeros(len(sums) + 1, np.uint64)
    words[:-1] = sums >> 32
    words[1:] += sums & 0xFFFFFFFF
    return list(words.astype(">u4").tobytes()[: ends[-1] // 8 + 1])


def _bytes(rle: object, where: str) -> bytes:
    if isinstance(rle, list) and rle:
        try:
            data = bytes(rle)
        except (TypeError, ValueError, OverflowError):
            data = b""
        # true and false would be taken for 1 and 0.
        small = np.flatnonzero(np.frombuffer(data, np.uint8) < 2).tolist()
        if data and not any(type(rle[index]) is bool for index in small):
            return data
    told = f"is {_told(rle)}"
    if isinstance(rle, list) and rle:
        told = f"holds {_told(next(v for v in rle if type(v) is not int or not 0 <= v <= 255))}"
    raise _error(
        where,
        f"the rle {told}, expected a list of whole numbers from 0 to 255; export the tasks again",
    )


def _error(where: str, problem: str) -> LabelError:
    return LabelError(f"{where}: {problem}" if where else problem)


def _told(value: object) -> str:
    """A JSON value for an error message; parts of it may be long or nested deep."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return shown(value if isinstance(value, str) else repr(value))


# Entry points ------------------------------------------------------------------------------------


def recognise(path: Path) -> str | None:
    """A JSON file that begins like a list of tasks, or a folder with one such file."""
    try:
        file = _label_file(path)
        return f"{file.name} begins like a list of Label Studio tasks" if file else None
    except (OSError, ValueError):
        return None


@frame_by_frame()
def read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    """Reads a JSON export, or the folder that holds it; images lie in ``images/`` or beside it.

    Args:
        path: JSON file or folder.
        options: see :class:`ReadOptions`; ``class_names`` come before ``label_config.xml``.
        errors: a list to go on past broken tasks.

    Raises:
        LabelError: a task that breaks the format (see ``errors``), or a file that is no list of
            tasks, which cannot be gone past.
        InputError: no such file, or several.
    """
    json_path = path if path.is_file() else _label_file(path)
    if json_path is None:
        raise InputError(
            f"{path}: expected a JSON export of Label Studio, or a folder with {LABELS} or one such"
            " file; check the path"
        )
    tasks = _tasks(json_path)
    paths = images_beside(json_path.parent, options, errors)
    config = _read_config(json_path.parent / LABEL_STUDIO_CONFIG)
    reader = _Reader(json_path, options, paths, config)
    frames: dict[str, FrameLabels] = {}
    refused: set[str] = set()
    orphans = 0
    seen: dict[str, str] = {}
    for number, task in enumerate(tasks, 1):
        told = _task_name(task, number)
        where = f"{json_path} {told}"
        image = None
        try:
            image = reader.image(task, where)
            where = f"{where}, image {shown(image)}"
            if image in seen:
                raise LabelError(
                    f"{where}: {seen[image]} has this image too, expected one task for each; remove"
                    " one of the two"
                )
            seen[image] = told
            frame = reader.frame(image, task, where)
        except LabelError as error:
            if errors is None:
                raise
            errors.append(error)
            # Of two tasks both are refused: nobody knows which of the two is right.
            if image is None:
                orphans += 1
            else:
                refused.add(image)
            continue
        if frame is not None:
            frames[image] = frame
    if options.unlisted_are_clean:
        labelled = reader.doubtful | refused | frames.keys()
        unlisted = [image for image in paths if image not in labelled]
        frames |= clean_frames(unlisted, paths, options, str(json_path))
    return LabelSet(
        format=LABEL_STUDIO.name,
        source=path,
        classes=tuple(reader.classes.values()),
        frames={image: frame for image, frame in frames.items() if image not in refused},
        image_paths=paths,
        refused=frozenset(refused),
        orphans=orphans,
        notes=tuple(reader.notes()),
    )


@frame_by_frame()
def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``label_studio.json`` for import, and the labelling interface ``label_config.xml``.

    ``data.image`` is ``/data/local-files/?d=images/<name>``, which Label Studio serves if it runs
    with ``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true``, the folder as
    ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``, and its ``images/`` as a local storage of the
    project. One task a line, so that versions can be compared.

    Raises:
        InputError: see :func:`frames_to_write`; a name that the files cannot carry, or a file
            that cannot be written.
    """
    names = names_to_write(label_set)
    lines = ",\n".join(
        _task_line(number, frame, size_wh, names)
        for number, (frame, size_wh) in enumerate(frames_to_write(label_set), 1)
    )
    write_file(folder / LABELS, f"[\n{lines}\n]\n".encode())
    write_file(folder / LABEL_STUDIO_CONFIG, _config(names).encode())
    place_images(label_set, folder / IMAGE_FOLDER, placement)
    return {}


LABEL_STUDIO = LabelFormat(
    "label-studio", "Label Studio JSON: brush masks and polygons", recognise, read, write
)


# Reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Config:
    """What the labelling interface says: types in order, and the keys of ``data`` with images."""

    names: tuple[str, ...] = ()
    image_keys: tuple[str, ...] = ()


class _Reader:
    """Makes frames of tasks, and counts what was ignored on the way."""

    def __init__(
        self, path: Path, options: ReadOptions, paths: Mapping[str, Path], config: _Config
    ) -> None:
        names = options.class_names or config.names
        self.classes = {c.name: c for c in classes_of(names, str(path))}
        self.doubtful: set[str] = set()
        self._classes_are_known = bool(self.classes)
        self._options, self._paths, self._config = options, paths, config
        self._by_file_name: dict[str, list[str]] = {}
        for image in paths:
            self._by_file_name.setdefault(image.rpartition("/")[2], []).append(image)
        self._counts = dict.fromkeys(_NOTES, 0)

    def notes(self) -> list[str]:
        """What was assumed or ignored, one line each."""
        return [f"{count} {_NOTES[key]}" for key, count in self._counts.items() if count]

    def image(self, task: object, where: str) -> str:
        """The image name of a task."""
        if not isinstance(task, dict) or not isinstance(data := task.get("data"), dict):
            raise LabelError(
                f"{where}: {_told(task)} is no task, expected an object with 'data' and"
                " 'annotations'; export as 'JSON', not 'JSON-MIN'"
            )
        key = self._image_key(data, where)
        parts, is_upload = _path_parts(data[key], f"{where}, data {shown(key)}")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        if parts[0] == IMAGE_FOLDER and len(parts) > 1:
            ends.insert(0, ends[1])
        whole = len(ends)
        if is_upload and (match := re.fullmatch("[0-9a-f]{8}-(.+)", parts[-1])):
            ends = [*ends, *(end[: -len(parts[-1])] + match[1] for end in ends)]
        found = next((i for i, end in enumerate(ends) if end in self._paths), None)
        if found is None:
            return self._unknown(parts, ends, whole, where)
        self._counts["stripped"] += found >= whole
        return ends[found]

    def _unknown(self, parts: list[str], ends: list[str], whole: int, where: str) -> str:
        """The name of an image that no end of the path names exactly."""
        for nth in dict.fromkeys((whole - 1, len(ends) - 1)):
            same = self._by_file_name.get(ends[nth], [])
            if len(same) > 1:
                raise LabelError(
                    f"{where}: {shown(ends[nth])} may be {shown(same[0])} or {shown(same[1])},"
                    " expected one image of this name; write the folders into the path"
                )
            if same:
                self._counts["stripped"] += nth >= whole
                return same[0]
        nth = whole - 1
        if not self._paths and len(ends) > whole:
            nth = len(ends) - 1
            self._counts["stripped"] += 1
        elif parts[0] == IMAGE_FOLDER and len(parts) > 1:
            nth = 0
        check_image_name(ends[nth], where)
        return ends[nth]

    def _image_key(self, data: Json, where: str) -> str:
        texts = {key: value for key, value in data.items() if isinstance(value, str)}
        named = [key for key in (*self._config.image_keys, "image") if key in texts]
        if named:
            return named[0]
        found = [
            key
            for key, value in texts.items()
            if Path(re.split("[?#]", value)[0]).suffix.lower() in IMAGE_SUFFIXES
            or "/data/local-files/" in value
        ]
        if len(found) != 1:
            raise LabelError(
                f"{where}: data has {len(found)} entries that look like an image"
                f" ({shown(', '.join(data))}), expected one; call it 'image'"
            )
        return found[0]

    def frame(self, image: str, task: Any, where: str) -> FrameLabels | None:
        """The labels of a task; ``None`` if there are none."""
        annotation = self._annotation(image, task, where)
        if annotation is None:
            return None
        results = annotation.get("result")
        if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
            raise LabelError(
                f"{where}: the annotation's result is {_told(results)}, expected a list of"
                " objects, empty for a clean frame; export the tasks again"
            )
        drawn = [(n, r) for n, r in enumerate(results, 1) if _draws(r.get("type"))]
        self._counts["ignored"] += len(results) - len(drawn)
        if results and not drawn:
            self._counts["undrawn"] += 1
            self.doubtful.add(image)
            return None
        shapes: dict[str, list[tuple[str, Json]]] = {}
        size_wh = None
        for number, result in drawn:
            at = f"{where}, result {number}"
            size_wh = self._size(result, size_wh, at)
            shapes.setdefault(self._class_id(result, at), []).append((at, result))
        data = task["data"]
        size_wh = size_wh or _told_size(data, where)
        if size_wh is None:
            known = image in self._paths or image in self._options.sizes_wh
            if known or self._options.size_wh:
                size_wh = frame_size(image, self._paths, self._options, where)
        else:
            check_size(image, size_wh, self._paths, self._options, where)
        # One mask at a time: an image may be large and have many types.
        rles = (
            {class_id: _union_rle(found, size_wh) for class_id, found in shapes.items()}
            if size_wh is not None
            else {}
        )
        empty = tuple(class_id for class_id, rle in rles.items() if not rle)
        self._counts["empty"] += len(empty)
        return FrameLabels(
            image,
            {class_id: rle for class_id, rle in rles.items() if rle},
            size_wh,
            types_without_mask=empty,
            split=_split(data, image, where),
            attributes=self._attributes(data, where),
        )

    def _annotation(self, image: str, task: Json, where: str) -> Json | None:
        found = task.get("annotations")
        if not isinstance(found, list) or not all(isinstance(a, dict) for a in found):
            raise LabelError(
                f"{where}: annotations is {_told(found)}, expected a list of objects; export"
                " as 'JSON' from Label Studio 1.0 or later"
            )
        valid = [a for a in found if a.get("was_cancelled") is not True]
        chosen = [a for a in valid if a.get("ground_truth") is True] or valid
        if len(chosen) > 1:
            raise LabelError(
                f"{where}: {len(chosen)} annotations, expected one: mark one as ground truth or"
                " delete the others"
            )
        if chosen:
            return dict(chosen[0])
        self._counts["cancelled" if found else "predicted"] += bool(
            found or task.get("predictions")
        )
        if found or task.get("predictions"):
            self.doubtful.add(image)
        return None

    def _size(self, result: Json, others_wh: tuple[int, int] | None, at: str) -> tuple[int, int]:
        width, height = result.get("original_width"), result.get("original_height")
        size_wh = _checked_size(width, height, f"{at}: original_width x original_height")
        if others_wh not in (None, size_wh):
            raise LabelError(
                f"{at}: drawn at {width} x {height} pixels, but the results before at"
                f" {others_wh[0]} x {others_wh[1]}; expected one size: label the task again"
            )
        if result.get("image_rotation", 0) not in (0, None):
            raise LabelError(
                f"{at}: image_rotation is {_told(result['image_rotation'])}, expected 0;"
                " turn the image back in Label Studio, or turn the file and label it again"
            )
        return size_wh

    def _class_id(self, result: Json, at: str) -> str:
        kind, value = result.get("type"), result.get("value")
        if kind not in ("brushlabels", "polygonlabels") or not isinstance(value, dict):
            raise LabelError(
                f"{at}: a result of type {_told(kind)}, expected brushlabels or"
                " polygonlabels; draw it with BrushLabels or PolygonLabels, or delete it"
            )
        match value.get(kind):
            case [str(name)] if name.strip() and name.isprintable():
                name = name.strip()
            case other:
                raise LabelError(
                    f"{at}: {kind} is {_told(other)}, expected a list of one name; give the"
                    " region exactly one label"
                )
        if name in self.classes:
            return self.classes[name].id
        if self._classes_are_known or len(self.classes) >= MAX_TYPES:
            raise LabelError(
                f"{at}: the label is {shown(name)}, expected one of"
                f" {first_names(map(shown, self.classes))}; correct it, or add it to the types"
            )
        self.classes[name] = further_class(self.classes, name, at)
        return self.classes[name].id

    def _attributes(self, data: Json, where: str) -> dict[str, str]:
        used = {self._image_key(data, where), "width_px", "height_px", "split"}
        return {
            key: str(value)
            for key, value in data.items()
            if key not in used and isinstance(value, str | int | float) and str(value).isprintable()
        }


_NOTES = {
    "stripped": "image names: the 8 digits that Label Studio puts in front of uploads taken away",
    "ignored": "results that mark no place (choices, texts, ...) were ignored",
    "undrawn": "tasks have such results and no mask: they stay unlabelled",
    "cancelled": "tasks have only cancelled annotations: they stay unlabelled",
    "predicted": "tasks have only predictions, which are no labels: they stay unlabelled",
    "empty": "masks hold no pixel: their types are on the frame, but nobody knows where",
}


def _label_file(path: Path) -> Path | None:
    """The JSON file that is meant; ``None`` if there is none, or no telling which."""
    if (path / LABELS).is_file():
        return path / LABELS
    candidates = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = [file for file in candidates if _begins_like_tasks(file)]
    return found[0] if len(found) == 1 else None


def _begins_like_tasks(path: Path) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(65_536)
    return bool(
        re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", begin)
        and re.search(rb'"(annotations|predictions)"\s*:\s*\[', begin)
    )


def _tasks(path: Path) -> list[object]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise LabelError(
                f"{path}: larger than {_MAX_FILE_BYTES >> 20} MB, expected less; export the tasks"
                " in parts"
            )
        tasks = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected a JSON file; check the path"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabelError(
            f"{path}: damaged JSON ({reason[:120]}), expected a complete export; export the tasks"
            " again"
        ) from error
    if not isinstance(tasks, list):
        raise LabelError(
            f"{path}: expected a list of tasks, found {_told(tasks)}; export as 'JSON'"
        )
    return tasks


def _task_name(task: object, number: int) -> str:
    """How a task is called in messages: by its id, which Label Studio shows, or its place."""
    task_id = task.get("id") if isinstance(task, dict) else None
    return f"task {task_id}" if type(task_id) is int and task_id < 10**12 else f"task no. {number}"


def _read_config(path: Path) -> _Config:
    if not path.is_file():
        return _Config()
    names: dict[str, None] = {}
    image_keys: dict[str, None] = {}

    def start(tags: list[str], attributes: dict[str, str], _: int) -> None:
        match tags:
            case [*_, "BrushLabels" | "PolygonLabels", "Label"]:
                name = attributes.get("alias") or attributes.get("value", "")
                names[name.strip()] = None
            case [*_, "Image"]:
                image_keys[attributes.get("value", "").removeprefix("$")] = None

    parse_xml(path, start)
    return _Config(tuple(names), tuple(image_keys))


def _path_parts(address: str, where: str) -> tuple[list[str], bool]:
    """Folders and file name of an image's address, and whether it was uploaded by hand."""
    try:
        url = urlsplit(address)
        path = address
        if "/data/local-files/" in url.path:
            path = parse_qs(url.query, max_num_fields=9).get("d", [""])[0]
        elif url.scheme in ("http", "https") or url.path.startswith("/data/upload/"):
            path = unquote(url.path)
        elif "://" in address:
            path = address.partition("://")[2].partition("/")[2]
        elif url.scheme == "data":
            path = ""
    except ValueError:
        path = ""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise LabelError(
            f"{where}: {shown(address)} names no image file, expected a path or address that ends"
            " in one; export the tasks again"
        )
    # Folders that are left away are checked too: a path with .. is meant to lead somewhere else.
    check_image_name("/".join(parts), where)
    return parts, "/data/upload/" in address


def _checked_size(width: object, height: object, what: str) -> tuple[int, int]:
    if (
        type(width) is not int
        or type(height) is not int
        or min(width, height) < 1
        or max(width, height) > MAX_MASK_PX
        or width * height > MAX_MASK_PX
    ):
        raise LabelError(
            f"{what} is {shown(f'{width!r} x {height!r}')}, expected whole numbers from 1 up and at"
            f" most {MAX_MASK_PX} pixels; export the tasks again"
        )
    return width, height


def _draws(kind: object) -> bool:
    return not isinstance(kind, str) or kind not in _MARKS_NO_PLACE


def _told_size(data: Json, where: str) -> tuple[int, int] | None:
    if "width_px" not in data or "height_px" not in data:
        return None
    what = f"{where}, data: width_px x height_px"
    return _checked_size(data["width_px"], data["height_px"], what)


def _split(data: Json, image: str, where: str) -> str | None:
    told = data.get("split")
    if told in (None, ""):
        return split_of(image)
    if not isinstance(told, str) or told.casefold() not in SPLIT_FOLDERS:
        raise LabelError(
            f"{where}: the split is {_told(told)}, expected train, val or test; correct the"
            " data of the task"
        )
    return SPLIT_FOLDERS[told.casefold()]


def _union_rle(shapes: Sequence[tuple[str, Json]], size_wh: tuple[int, int]) -> str:
    """Kaggle RLE of all regions of one type, each with its place for error messages."""
    rles = []
    polygons_xy = []
    for at, result in shapes:
        value = result["value"]
        if result["type"] == "polygonlabels":
            polygons_xy.append(_polygon(value, size_wh, at))
            continue
        if value.get("format") != "rle":
            raise LabelError(
                f"{at}: format is {_told(value.get('format'))}, expected 'rle'; export the"
                " tasks again"
            )
        runs = decode_brush(value.get("rle"), size_wh, where=at)
        rles.append(kaggle_from_rows(*runs, size_wh))
    if polygons_xy:
        rles.append(rasterise_rle(polygons_xy, size_wh, where=shapes[0][0]))
    return rles[0] if len(rles) == 1 else union_rle(rles)


def _polygon(value: Json, size_wh: tuple[int, int], at: str) -> NDArray[np.float64]:
    """Points in pixels."""
    points = value.get("points")
    try:
        # An error for texts, other depths, and numbers beyond any float.
        percent_xy = np.array(points, np.float64, ndmin=2) if _are_pairs(points) else None
    except OverflowError:
        percent_xy = None
    if percent_xy is None or not np.isfinite(percent_xy).all():
        raise LabelError(
            f"{at}: the points are {_told(points)}, expected a list of [x, y] in per cent of"
            " the image; export the tasks again"
        )
    if value.get("closed") is False:
        raise LabelError(
            f"{at}: the polygon is not closed, expected an area; close it in Label Studio, or"
            " delete it"
        )
    points_xy: NDArray[np.float64] = percent_xy * np.array(size_wh) / 100
    return points_xy


def _are_pairs(points: object) -> bool:
    return (
        isinstance(points, list)
        and len(points) > 0
        and all(isinstance(p, list) and len(p) == 2 for p in points)
        and all(type(number) in (int, float) for p in points for number in p)
    )


# Writing -----------------------------------------------------------------------------------------


def _task_line(
    number: int, frame: FrameLabels, size_wh: tuple[int, int], names: Mapping[str, str]
) -> str:
    """A task as JSON, without line ends."""
    width, height = size_wh
    data: Json = {"image": f"/data/local-files/?d={quote(f'{IMAGE_FOLDER}/{frame.image}')}"}
    data |= {"width_px": width, "height_px": height}
    if frame.split:
        data["split"] = frame.split
    results = []
    brushed = []
    for class_id, rle in frame.rle_by_class.items():
        runs = row_runs(rle, size_wh, where=f"image {shown(frame.image)}")
        brushed.append(",".join(map(_BYTE_TEXTS.__getitem__, encode_brush(*runs, size_wh))))
        value = {"format": "rle", "rle": None, "brushlabels": [names[class_id]]}
        results.append(
            {
                "id": f"{number}-{class_id}",
                "type": "brushlabels",
                "from_name": "type",
                "to_name": "image",
                "origin": "manual",
                "image_rotation": 0,
                "original_width": width,
                "original_height": height,
                "value": value,
            }
        )
    annotation = {"id": number, "was_cancelled": False, "ground_truth": False, "result": results}
    task = {
        "id": number,
        "data": data | {k: v for k, v in frame.attributes.items() if k not in data},
        "annotations": [annotation],
    }
    # The json module takes three times as long for the bytes, so they are put in afterwards. No
    # text can hold this mark, because quotes in texts have a backslash in front.
    parts = json.dumps(task, separators=(",", ":")).split('"rle":null')
    return parts[0] + "".join(
        f'"rle":[{text}]{part}' for text, part in zip(brushed, parts[1:], strict=True)
    )


def _config(names: Mapping[str, str]) -> str:
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="{_COLOURS[i % len(_COLOURS)]}"/>\n'
        for i, name in enumerate(names.values())
    )
    return (
        "<View>\n"
        '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        '  <BrushLabels name="type" toName="image">\n'
        f"{labels}"
        "  </BrushLabels>\n"
        "</View>\n"
    )
