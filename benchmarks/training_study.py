r"""What each part of the training recipe is worth: cross-validations side by side.

    python benchmarks/training_study.py ../shared/data/severstal out/study \
        --start ../shared/weights/resnet50_imagenet_conv1_layer3.safetensors

Runs ``steelsight train --folds 3 --no-final`` once for each variant (each resumable, so that the
same command goes on after a stop), then prints a table of out-of-fold figures. Further arguments go
to every run, such as ``--plan quality`` or ``--steps 1400``; ``--only NAME`` picks variants. On an
H100 a variant of 3 x 1,400 steps should take minutes; on two CPU cores it takes a day.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

VARIANTS: dict[str, list[str]] = {
    "shared": [],
    "two": ["--arch", "two"],
    "half-resolution": ["--set", "network.input_stride=2"],
    "random-start": ["--start", "random"],
    "no-balance": ["--set", "sampling.balance=false"],
    "no-copy-paste": ["--set", "sampling.copy_paste=0"],
    "no-black-out": ["--set", "augment.black_out=0"],
    "no-edge": ["--set", "augment.edge=0"],
    "no-region": ["--set", "loss.region=none"],
    "dice": ["--set", "loss.region=dice"],
    "tversky": ["--set", "loss.region=tversky"],
    "focal": ["--set", "loss.pixels=focal"],
    "pos-weight": ["--set", "loss.pos_weight=0.5"],
    "no-ema": ["--set", "optimiser.ema=0"],
    "flips": ["--set", "flips=true"],
    "stride-1": ["--set", "network.mask_stride=1"],
    "residual": ["--set", "network.residual=true"],
}
FIGURES = ("auroc", "average_precision", "recall_at_2_percent", "recall_at_5_percent", "mean_dice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", required=True)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--folds", default="3")
    options, further = parser.parse_known_args()
    for name in options.only:
        out = options.out / name
        if not (out / "summary.json").exists():
            train(options, out, [*further, *VARIANTS[name]])
        print(row(name, json.loads((out / "summary.json").read_text())), flush=True)


def train(options: argparse.Namespace, out: Path, further: list[str]) -> None:
    # The last of equal options counts, so a variant may have another start.
    given = [] if "--start" in further else ["--start", options.start]
    resume = ["--resume"] if out.exists() else []
    command = [sys.executable, "-m", "steelsight", "train", str(options.data), "--out", str(out)]
    command += ["--folds", options.folds, "--no-final", "--bundle", "none"]
    subprocess.run([*command, *resume, *given, *further], check=True, stdout=subprocess.DEVNULL)


def row(name: str, figures: dict) -> str:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    types = " / ".join(text(of_type["best_dice"]) for of_type in figures["types"].values())
    low, high = figures["mean_dice_interval"] or (None, None)
    shown = "  ".join(f"{figure} {text(figures[figure])}" for figure in FIGURES)
    return f"{name:16}{shown} [{text(low)}, {text(high)}]  Dice by type {types}"


if __name__ == "__main__":
    main()
