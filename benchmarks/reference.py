"""What light and scores a model is used to: the reference of the page "Watch".

python benchmarks/reference.py ../shared/data/severstal/images src/steelsight/service/reference/

Quantiles of brightness, contrast and of the scores of clear frames; no image can be had from them.
The file is named after the model. For its own camera a plant takes frames of a good day instead, on
the page.
"""

import argparse
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelsight.data.threads import frame_by_frame
from steelsight.drift import figures_of
from steelsight.engine import Inspector
from steelsight.service.room import light_of


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, help="a folder, or reference.json")
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    inspector = Inspector.load(options.bundle, engine="onnxruntime", workers=2)
    paths = sorted(options.folder.glob("*.jpg"))
    digest = hashlib.sha256()

    def look(path: Path) -> tuple[str, tuple[float, float] | None, float | None]:
        taken = inspector.take_in(path.read_bytes(), path.name)
        said = inspector.judge(taken)
        return taken.sha256 or "", light_of(taken), said.faulty_probability

    with frame_by_frame(), ThreadPoolExecutor(2) as pool:
        told = list(pool.map(look, paths))
    for sha256, *_ in told:
        digest.update(sha256.encode())
    light = [one for _, one, _ in told if one is not None]
    clear_below = inspector.bundle.decision.gate.clear_below
    clear = [score for *_, score in told if score is not None and score < clear_below]
    facts = {
        "model": inspector.bundle.id,
        "decision": inspector.bundle.decision.sha256,
        "source": f"{options.folder.parent.name}: {len(light)} frames, {len(clear)} of them clear",
        "frames": len(light),
        "clear_frames": len(clear),
        "frames_sha256": digest.hexdigest(),
        "figures": dict(figures_of([b for b, _ in light], [c for _, c in light], clear)),
    }
    target = options.target
    if target.is_dir():
        target = target / f"{inspector.bundle.id.rpartition('@')[2]}.json"
    target.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
