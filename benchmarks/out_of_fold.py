"""Honest figures of the default decision, from scores of networks that had not seen the frame.

    python benchmarks/out_of_fold.py ../shared

Reads ``weights/out_of_fold.csv`` (3-fold; three networks of the shipped one's recipe) and prints
AUROC, recall and false alarms at the thresholds of the default bundle. The masks are not in that
file: a type counts as found from its score alone, so the last line is an upper bound of both.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from steelsight.bundle import load_bundle

KINDS = ("mask", "nomask", "clean")
"""Left out: frames that are officially clean and visibly defective."""


def main(shared: Path) -> None:
    decision = load_bundle().decision
    with (shared / "weights" / "out_of_fold.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] in KINDS]
    faulty = np.array([row["kind"] != "clean" for row in rows])
    logit = np.array([float(row["faulty_logit"]) for row in rows])
    print(f"{faulty.sum()} faulty, {(~faulty).sum()} clean frames")
    auroc, ap = roc_auc_score(faulty, logit), average_precision_score(faulty, logit)
    print(f"AUROC {auroc:.3f}, average precision {ap:.3f}")
    thresholds = {"ng_from": decision.gate.ng_from, "clear_below": decision.gate.clear_below}
    probability = 1 / (1 + np.exp(-logit))
    for name, threshold in thresholds.items():
        told = probability >= threshold
        print(f"from {name}: recall {told[faulty].mean():.3f}, false {told[~faulty].mean():.3f}")
    by_type = np.zeros(len(rows), bool)
    for k, rule in decision.types.items():
        by_type |= np.array([float(row[f"gate_{k}"]) >= rule.label_from for row in rows])
    ng = (probability >= decision.gate.ng_from) | (
        by_type & (probability >= decision.gate.clear_below)
    )
    print(f"verdict NG, at most: recall {ng[faulty].mean():.3f}, false {ng[~faulty].mean():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
