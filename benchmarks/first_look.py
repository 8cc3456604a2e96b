"""What a first look saves and what it costs, on frames that neither network had seen.

    python -m benchmarks.first_look ../shared

Joins two sets of out-of-fold scores by frame: those of the default bundle's recipe
(``weights/out_of_fold.csv``) and those of the fast form (``benchmarks/fast_out_of_fold.csv``,
written by ``python -m benchmarks.fast_out_of_fold``). For each share of the clean frames that the
first look may settle: the faulty frames that it hides from a stage 1 that would have passed them,
with an exact 95 % interval, and the time of a frame in a mix with 10 % faulty ones, in times of
stage 1, if a first look takes a quarter of it (three quarters of the operations are saved).

Ends with the ``[first_look]`` of the default decision, chosen as ``steelsight calibrate`` does.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.out_of_fold import TYPES, read

from steelsight.bundle import load_bundle
from steelsight.evaluation.intervals import binomial_interval
from steelsight.evaluation.metrics import auroc
from steelsight.evaluation.predictions import Predictions
from steelsight.evaluation.thresholds import FIRST_LOOK_SHARE, FalseAlarms, choose
from steelsight.evaluation.verdicts import faulty_met_by

SCORES = Path(__file__).parent / "fast_out_of_fold.csv"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
"""The rule false-alarms leaves no room for more."""
FAULTY_SHARE = 0.1
FIRST_LOOK_TIME = 0.25


def joined(shared: Path) -> Predictions:
    """The default recipe's predictions, with the fast form's scores as those of a first look."""
    found = read(shared / "weights" / "out_of_fold.csv")
    with SCORES.open(newline="") as file:
        fast = {row["image"]: float(row["faulty_logit"]) for row in csv.DictReader(file)}
    found = found.take(np.array([image in fast for image in found.images]))
    logits = np.array([fast[image] for image in found.images], np.float32)
    return replace(found, first_look_logits=logits)


def main(shared: Path) -> None:
    found = joined(shared)
    faulty = found.faulty
    gate = load_bundle().decision.gate
    passed = {
        "5 % point": found.faulty_probability >= gate.clear_below,
        "2 % point": found.faulty_probability >= gate.ng_from,
    }
    print(f"{faulty.sum()} faulty, {(~faulty).sum()} clean frames")
    for name, passed_n in passed.items():
        counts = [(passed_n & faulty).sum(), (passed_n & ~faulty).sum()]
        print(f"stage 1 alone passes at its {name}: {counts[0]} faulty, {counts[1]} clean")
    print(f"AUROC of stage 1 alone: {auroc(found.faulty_probability, faulty):.4f}\n")
    print("settled | faulty hidden of those passed at 5 % | types | at 2 % | clean passed | ", end="")
    print(f"time, {100 * FAULTY_SHARE:g} % faulty | AUROC")
    for share in SHARES:
        rule = choose(found, FalseAlarms(), first_look=share).first_look
        assert rule is not None
        decision = load_bundle().decision.model_copy(update={"first_look": rule})
        settled = rule.calibrated(found.first_look_probability) < rule.clear_below
        hidden = settled & faulty & passed["5 % point"]
        count, of = int(hidden.sum()), int((faulty & passed["5 % point"]).sum())
        low, high = binomial_interval(count, of)
        types = {c: int(found.present_nk[hidden, k].sum()) for k, c in enumerate(TYPES)}
        at_two = int((settled & faulty & passed["2 % point"]).sum())
        on = FAULTY_SHARE * (~settled[faulty]).mean() + (1 - FAULTY_SHARE) * (
            ~settled[~faulty]
        ).mean()
        score = auroc(faulty_met_by(decision, found), faulty)
        clean = [int((p & ~settled & ~faulty).sum()) for p in passed.values()]
        print(
            f"{100 * settled[~faulty].mean():.0f} % | {count} of {of} "
            f"({100 * low:.1f} to {100 * high:.1f} %) | "
            f"{', '.join(f'{c}: {n}' for c, n in types.items() if n) or 'none'} | {at_two} | "
            f"{clean[0]} and {clean[1]} | {FIRST_LOOK_TIME + on:.2f} | {score:.4f}"
        )
    chosen = choose(found, FalseAlarms(), first_look=FIRST_LOOK_SHARE)
    text = chosen.to_toml("", "")
    print("\n" + text[text.index("[first_look]") : text.index("[input]")].strip())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
