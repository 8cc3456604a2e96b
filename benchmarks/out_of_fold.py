"""Honest figures of the shipped network's recipe, from networks that had not seen the frame.

    python benchmarks/out_of_fold.py ../shared

Reads ``weights/out_of_fold.csv`` (3-fold; three networks of the shipped one's recipe) and prints
how well faulty frames and each type are ranked, with 95 % intervals, and then recall and false
alarms at the thresholds of the default bundle, with exact binomial intervals. AUROC and average
precision are computed by scikit-learn, too, and must agree.

The masks are not in that file: a type counts as found from its score alone, so the last line is an
upper bound of both. The default thresholds were chosen on these very scores: recall and false
alarms at them are slightly too good.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from steelsight.bundle import load_bundle
from steelsight.evaluation.evaluate import evaluate
from steelsight.evaluation.intervals import binomial_interval
from steelsight.evaluation.predictions import BINS, Predictions, sigmoid

KINDS = ("mask", "nomask", "clean")
"""Left out: frames that are officially clean and visibly defective."""
TYPES = ("1", "2", "3", "4")
RANKING = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "recall_at_1_percent": "recall at 1 % false alarms",
    "recall_at_2_percent": "recall at 2 %",
    "recall_at_5_percent": "recall at 5 %",
}


def read(path: Path) -> Predictions:
    """The scores as predictions; masks and frames' sizes are not told, and stay 0."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] in KINDS]
    n, k = len(rows), len(TYPES)

    def columns(*names: str) -> NDArray[np.float64]:
        return np.array([[float(row[name]) for name in names] for row in rows])

    heads_n2k = sigmoid(
        np.stack([columns(*(f"{head}_{c}" for c in TYPES)) for head in ("avg", "mil")], axis=1)
    )
    gates_nk = columns(*(f"gate_{c}" for c in TYPES))
    return Predictions(
        images=tuple(row["ImageId"] for row in rows),
        class_ids=TYPES,
        folds=np.array([int(row["fold"]) for row in rows], np.int64),
        groups=np.arange(n, dtype=np.int64),
        faulty=np.array([row["kind"] != "clean" for row in rows], np.bool_),
        present_nk=np.array([[c in row["classes"].split() for c in TYPES] for row in rows]),
        masked_nk=np.zeros((n, k), np.bool_),
        faulty_logits=columns("faulty_logit")[:, 0].astype(np.float32),
        head_probabilities_nk=heads_n2k.mean(axis=1).astype(np.float32),
        # The file has the type's score, rounded to four digits; the peak is what is missing.
        peaks_nk=(3 * gates_nk - heads_n2k.sum(axis=1)).astype(np.float32),
        inside_nkb=np.zeros((n, k, BINS), np.int64),
        outside_nkb=np.zeros((n, k, BINS), np.int64),
        sizes_n2=np.zeros((n, 2), np.int64),
        brightness_n=np.zeros(n, np.float32),
        region_frames_r=np.zeros(0, np.int64),
        region_types_r=np.zeros(0, np.int64),
        region_boxes_r4=np.zeros((0, 4), np.int64),
        region_counts_rb=np.zeros((0, BINS), np.int64),
    )


def told(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not measured"
    text = f"{figure['value']:.3f}"
    if figure["low"] is not None:
        text += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return text


def share(hits: NDArray[np.bool_]) -> str:
    count, of = int(hits.sum()), len(hits)
    low, high = binomial_interval(count, of)
    return f"{count} of {of}, {100 * count / of:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def check(found: Predictions, facts: dict[str, Any]) -> None:
    """Against scikit-learn."""
    faulty, scores_nk = found.faulty, found.type_scores_nk
    pairs = [
        (facts["ranking"]["auroc"], roc_auc_score(faulty, found.faulty_logits)),
        (
            facts["ranking"]["average_precision"],
            average_precision_score(faulty, found.faulty_logits),
        ),
    ]
    for k, class_id in enumerate(TYPES):
        used = found.present_nk[:, k] | ~faulty
        expected = roc_auc_score(found.present_nk[used, k], scores_nk[used, k])
        pairs.append((facts["types"][class_id]["auroc"], expected))
    for figure, expected in pairs:
        if abs(figure["value"] - expected) > 1e-5:
            sys.exit(f"expected {expected} as scikit-learn, got {figure['value']}")


def main(shared: Path) -> None:
    decision = load_bundle().decision
    found = read(shared / "weights" / "out_of_fold.csv")
    facts = evaluate(found).to_json()
    check(found, facts)
    faulty = found.faulty
    print(f"{faulty.sum()} faulty, {(~faulty).sum()} clean frames; 95 % intervals in brackets\n")
    for name, words in RANKING.items():
        print(f"{words:28} {told(facts['ranking'][name])}")
    print("\ntype  frames  detection              recall at 2 %          AUROC")
    for class_id, figures in facts["types"].items():
        print(
            f"{class_id:5} {figures['frames']:6}  {told(figures['detection']):22}"
            f" {told(figures['recall_at_2_percent']):22} {told(figures['auroc'])}"
        )
    probability, scores_nk = found.faulty_probability, found.type_scores_nk
    by_type = (scores_nk >= [rule.label_from for rule in decision.types.values()]).any(axis=1)
    gate = decision.gate
    alarms = {
        "from ng_from": probability >= gate.ng_from,
        "from clear_below": probability >= gate.clear_below,
        "verdict NG, at most": (probability >= gate.ng_from)
        | (by_type & (probability >= gate.clear_below)),
    }
    print("\nAt the default decision")
    for words, alarm in alarms.items():
        print(f"{words:20} faulty {share(alarm[faulty])}; clean {share(alarm[~faulty])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
