import random
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data import frames as frames_module
from steelsight.data.frames import FrameSource, LabelledFrame
from steelsight.errors import InputError, LabelError
from steelsight.imaging import read_file
from steelsight.masks import decode_rle, encode_rle


def make_frame(
    folder: Path,
    number: int,
    size_wh: tuple[int, int] = (48, 32),
    types: tuple[str, ...] = (),
    unmasked: tuple[str, ...] = (),
) -> LabelledFrame:
    rng = np.random.default_rng(number)
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), rng.integers(0, 256, size_wh[::-1], dtype=np.uint8))
    masks = {c: encode_rle(rng.random(size_wh[::-1]) < 0.3) for c in types}
    return LabelledFrame(path.name, path, size_wh, masks, (*types, *unmasked))


@pytest.mark.parametrize(("count", "dtype"), [(3, np.uint8), (8, np.uint8), (9, np.uint16)])
def test_pixels_are_the_decoded_frame_and_one_bit_per_type(tmp_path, count, dtype):
    class_ids = [f"t{k}" for k in range(count)]
    on_frame = (class_ids[0], class_ids[-1])
    frame = make_frame(tmp_path, 1, types=on_frame, unmasked=(class_ids[1],))
    grey_hw, types_hw = FrameSource([frame], class_ids, 1 << 20).pixels(0)
    assert types_hw.dtype == dtype
    np.testing.assert_array_equal(grey_hw, read_file(frame.path).grey_hw)
    for bit, class_id in enumerate(class_ids):
        expected = (
            decode_rle(frame.rle_by_class[class_id], frame.size_wh)
            if class_id in on_frame
            else np.zeros((32, 48), bool)
        )
        np.testing.assert_array_equal((types_hw >> bit & 1).astype(bool), expected)


def test_what_is_known_about_a_frame(tmp_path):
    cases = [
        (make_frame(tmp_path, 0), True, False),
        (make_frame(tmp_path, 1, types=("a",)), False, True),
        (make_frame(tmp_path, 2, types=("a",), unmasked=("b",)), False, False),
        (make_frame(tmp_path, 3, unmasked=("b",)), False, False),
        (LabelledFrame("4", tmp_path / "4", (4, 4), {"a": " "}, ("a",)), False, False),
    ]
    for frame, clean, masked in cases:
        assert (frame.clean, frame.masked) == (clean, masked)
    source = FrameSource([frame for frame, *_ in cases], "abc", 0)
    assert source.type_counts().tolist() == [3, 2, 0]


def test_more_types_than_bits_and_unknown_types_are_refused(tmp_path):
    with pytest.raises(InputError, match="at most 16 defect types, got 17"):
        FrameSource([], [str(k) for k in range(17)], 0)
    with pytest.raises(InputError, match=r"'0\.png': expected types out of b, c, got a"):
        FrameSource([make_frame(tmp_path, 0, types=("a",))], "bc", 0)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shrink(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((16, 24), np.uint8))


@pytest.mark.parametrize("change", [cut_in_half, shrink, Path.unlink])
def test_a_file_that_changed_since_the_scan_is_one_clear_line(tmp_path, change):
    frame = make_frame(tmp_path, 0)
    source = FrameSource([frame], "a", 0)
    change(frame.path)
    with pytest.raises(InputError, match="changed since the scan") as caught:
        source.pixels(0)
    message = str(caught.value)
    assert message.startswith(str(frame.path))
    assert "\n" not in message


def test_a_mask_beyond_its_frame_names_the_image_and_the_type(tmp_path):
    clean = make_frame(tmp_path, 0)
    frame = LabelledFrame(clean.image, clean.path, clean.size_wh, {"a": "1500 100"}, ("a",))
    with pytest.raises(LabelError, match=r"image '0\.png', type a: .*past the 1536 pixels"):
        FrameSource([frame], "a", 0).pixels(0)


class NaiveCache:
    """Least recently used first; a frame takes a byte per pixel, another one if it has masks."""

    def __init__(self, budget):
        self.sizes, self.budget, self.reads = OrderedDict(), budget, []

    def ask(self, index, size):
        if index in self.sizes:
            self.sizes.move_to_end(index)
            return
        self.reads.append(index)
        if size <= self.budget:
            while sum(self.sizes.values()) + size > self.budget:
                self.sizes.popitem(last=False)
            self.sizes[index] = size


@pytest.mark.parametrize("budget", [0, 2_000, 7_000, 1 << 20])
def test_the_cache_keeps_the_most_recently_used_within_its_budget(tmp_path, monkeypatch, budget):
    rng = random.Random(budget)
    all_frames = [
        make_frame(tmp_path, n, (rng.randrange(8, 64), 32), ("a",) * (n % 2)) for n in range(12)
    ]
    source, naive, reads = FrameSource(all_frames, "a", budget), NaiveCache(budget), []

    def counted(path, *, policy):
        reads.append(int(path.stem))
        return read_file(path, policy=policy)

    monkeypatch.setattr(frames_module, "read_file", counted)
    for _ in range(300):
        index = min(rng.randrange(12), rng.randrange(12))
        width, height = all_frames[index].size_wh
        naive.ask(index, width * height * (1 + index % 2))
        source.pixels(index)
        assert source.held_bytes == sum(naive.sizes.values()) <= budget
    assert reads == naive.reads


def test_many_threads_get_the_right_frames_and_the_budget_holds(tmp_path):
    all_frames = [make_frame(tmp_path, n, types=("a",) * (n % 2)) for n in range(10)]
    expected = [FrameSource(all_frames, "a", 0).pixels(n) for n in range(10)]
    source = FrameSource(all_frames, "a", 5 * 48 * 32)
    held = []

    def ask(index):
        pixels = source.pixels(index)
        held.append(source.held_bytes)
        return all(map(np.array_equal, pixels, expected[index]))

    indices = np.random.default_rng(0).integers(0, 10, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, indices))
    assert max(held) <= 5 * 48 * 32
    arrays = [a for pair in source._cache.values() for a in pair if a is not None]
    assert source.held_bytes == sum(a.nbytes for a in arrays)


def test_real_masks_lie_where_their_rle_says(shared_dir):
    folder = shared_dir / "data/severstal"
    image, class_id, rle = (folder / "train.csv").read_text().splitlines()[1].split(",")
    frame = LabelledFrame(
        image, folder / "images" / image, (1600, 256), {class_id: rle}, (class_id,)
    )
    types_hw = FrameSource([frame], "1234", 0).pixels(0).types_hw
    numbers = list(map(int, rle.split()))
    expected = np.zeros(1600 * 256, np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        expected[start - 1 : start - 1 + length] = 1 << int(class_id) - 1
    np.testing.assert_array_equal(types_hw, expected.reshape(1600, 256).T)
