"""Does a bundle answer the same on another kind of CPU?

Run once natively and once under an emulator, then compare:

    python benchmarks/other_cpu.py write BUNDLE FRAMES native.npz
    qemu-x86_64 -cpu Haswell python benchmarks/other_cpu.py write BUNDLE FRAMES haswell.npz
    python benchmarks/other_cpu.py compare native.npz haswell.npz

Takes the middle 320 columns of the first six frames in the folder; about 30 s each when emulated.
"""

import sys
from pathlib import Path

import numpy as np

from steelsight.bundle import load_bundle
from steelsight.engine.runtime import load_runtime
from steelsight.imaging import mask_probabilities, read_file


def write(bundle_folder: Path, frames: Path, target: Path) -> None:
    bundle = load_bundle(bundle_folder)
    precision = bundle.manifest.precision
    gate = load_runtime(bundle.gate_path, precision, threads=1)
    segmenter = load_runtime(bundle.segmenter_path, precision, threads=1)
    faulty, masks = [], []
    for path in sorted(p for p in frames.iterdir() if p.suffix == ".jpg")[:6]:
        grey_hw = read_file(path).grey_hw
        middle = grey_hw.shape[1] // 2
        crop_hw = np.ascontiguousarray(grey_hw[:, middle - 160 : middle + 160])
        outputs = gate.run({"frames": crop_hw[None, None]})
        faulty.append(float(outputs.pop("faulty_probability")[0]))
        outputs.pop("class_probabilities")
        logits_chw = segmenter.run(outputs)["mask_logits"][0]
        masks.append(mask_probabilities(logits_chw, (crop_hw.shape[1], crop_hw.shape[0])))
        print(path.name, faulty[-1], flush=True)
    np.savez_compressed(target, faulty=faulty, masks=masks)


def compare(first: Path, second: Path) -> None:
    a, b = np.load(first), np.load(second)
    print("largest difference of faulty probabilities:", np.abs(a["faulty"] - b["faulty"]).max())
    print("largest difference of mask probabilities:", np.abs(a["masks"] - b["masks"]).max())


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*map(Path, sys.argv[2:]))
    else:
        compare(*map(Path, sys.argv[2:]))
