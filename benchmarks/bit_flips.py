"""How many flipped bits in real JPEG frames go unnoticed: JPEG has no checksum.

    python benchmarks/bit_flips.py ../shared/data/severstal/images

For 50 frames and 20 trials each: share of trials in which the decoded picture differs and nothing
was refused, and share in which more than 1 % of its pixels differ; with and without ``grey_only``.
"""

import random
import sys
from pathlib import Path

from steelsight.errors import DecodeError
from steelsight.imaging import DecodePolicy, decode

TRIALS = 20


def main(folder: Path) -> None:
    frames = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[::15][:50]]
    for grey_only in (False, True):
        for flips in (1, 4, 16, 64):
            unnoticed, wide = _count(frames, flips, DecodePolicy(grey_only=grey_only))
            total = len(frames) * TRIALS
            print(
                f"grey_only={grey_only!s:5} flips={flips:2}: "
                f"unnoticed {unnoticed / total:5.1%}, spoiling over 1 % {wide / total:5.1%}",
                flush=True,
            )


def _count(frames: list[bytes], flips: int, policy: DecodePolicy) -> tuple[int, int]:
    rng = random.Random(0)
    unnoticed = wide = 0
    for data in frames:
        true_hw = decode(data).grey_hw
        for _ in range(TRIALS):
            damaged = bytearray(data)
            for _ in range(flips):
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            try:
                grey_hw = decode(bytes(damaged), policy=policy).grey_hw
            except DecodeError:
                continue
            wrong = (grey_hw != true_hw).mean() if grey_hw.shape == true_hw.shape else 1.0
            unnoticed += wrong > 0
            wide += wrong > 0.01
    return unnoticed, wide


if __name__ == "__main__":
    main(Path(sys.argv[1]))
