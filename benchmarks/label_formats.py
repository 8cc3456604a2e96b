"""How long a whole label file takes into every format and back, and whether it comes back the same.

    python benchmarks/label_formats.py ../shared [format ...]

The 5,610 masks of Severstal's ``train.csv`` as far as it is shared (5,186 frames of 1600 x 256),
without images. Per format: seconds to write it, to read it, and from CSV to CSV (also reading and
writing the CSV itself); CPU seconds of all threads, which count on a machine with other users; and
whether the CSV is the same byte for byte.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steelsight.data.formats.registry import FORMATS, load
from steelsight.data.labels import Placement, ReadOptions

LABELS = "data/severstal/train_partial.csv"
NEED_IMAGES = ("mvtec",)


def main(shared: Path, names: list[str]) -> None:
    print(f"{'format':22}{'write':>8}{'read':>8}{'CSV to CSV':>12}{'CPU':>8}   identical")
    for name, label_format in FORMATS.items():
        if label_format.write and name not in NEED_IMAGES and (not names or name in names):
            with tempfile.TemporaryDirectory() as folder:
                _round_trip(shared / LABELS, name, Path(folder))


def _round_trip(labels: Path, name: str, folder: Path) -> None:
    for part in ("source", "written", "back"):
        (folder / part).mkdir()
    source = shutil.copy(labels, folder / "source" / "train.csv")
    write = FORMATS[name].write
    write_csv = FORMATS["severstal"].write
    assert write is not None
    assert write_csv is not None
    cpu = time.process_time()
    with _seconds() as whole:
        label_set = load(source)
        with _seconds() as writing:
            write(label_set, folder / "written", Placement.LEAVE)
        # Not every format tells the size of a frame whose image is not there.
        sizes = {image: f.size_wh for image, f in label_set.frames.items() if f.size_wh}
        with _seconds() as reading:
            label_set = load(
                folder / "written", label_format=name, options=ReadOptions(sizes_wh=sizes)
            )
        write_csv(label_set, folder / "back", Placement.LEAVE)
    cpu = time.process_time() - cpu
    identical = source.read_bytes() == (folder / "back" / "train.csv").read_bytes()
    print(
        f"{name:22}{writing[0]:7.1f}s{reading[0]:7.1f}s{whole[0]:11.1f}s{cpu:7.1f}s"
        f"   {'yes' if identical else 'NO'}",
        flush=True,
    )


@contextmanager
def _seconds() -> Iterator[list[float]]:
    taken: list[float] = []
    begin = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - begin)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
