"""What the shipped bundles say of frames unlike those that they learned from.

    python -m benchmarks.unfamiliar ../shared

``test_images``: Severstal frames of other coils, as far as anybody knows, without labels.
``neu900``: 900 photos of other steel, all faulty, of another size. The first look is asked here
whatever the size, as the gate of ``severstal-fastest``, which it is: the default bundle asks it
only of frames of the size that it was measured on.
"""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelsight.bundle import load_bundle
from steelsight.data.threads import frame_by_frame
from steelsight.defects import Verdict
from steelsight.engine import Inspector


def main(shared: Path) -> None:
    rule = load_bundle(decision=Path("first-look")).decision.first_look
    assert rule is not None
    default, fastest = (
        Inspector.load(Path(name), engine="onnxruntime", workers=2)
        for name in ("severstal-r50", "severstal-fastest")
    )

    def told(path: Path) -> tuple[str, str, bool]:
        data = path.read_bytes()
        said, smaller = (one.inspect(data, path.name) for one in (default, fastest))
        if smaller.faulty_probability is None:
            return said.verdict, smaller.verdict, False
        settled = rule.calibrated(smaller.faulty_probability) < rule.clear_below
        return said.verdict, smaller.verdict, bool(settled)

    for name, folder in (
        ("test_images", shared / "data" / "severstal" / "test_images"),
        ("neu900", shared / "data" / "neu900" / "images"),
    ):
        paths = sorted(folder.iterdir())
        with frame_by_frame(), ThreadPoolExecutor(2) as pool:
            found = list(pool.map(told, paths))
        print(f"{name}: {len(found)} frames")
        for n, bundle in enumerate((default, fastest)):
            counts = Counter(str(one[n]) for one in found)
            print(f"  {bundle.bundle.manifest.name}: {dict(counts)}")
        for verdict in Verdict:
            of = [settled for one, _, settled in found if one == verdict]
            print(f"  of {len(of)} {verdict} the first look would settle {sum(of)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
