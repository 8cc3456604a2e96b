"""Is a faster form as good as the default one? Scores of networks that had not seen the frame.

    python -m benchmarks.fast_out_of_fold ../shared fastest
    python -m benchmarks.fast_out_of_fold ../shared fastest out/fastest

The forms are those of the plans ``fast`` and ``fastest``. The first command takes the scores in
``benchmarks/fastest_out_of_fold.csv``, the second one writes that file anew, from a run of
``steelsight train --plan fastest --folds 3`` (the command in full stands in docs/severstal.md).
Compares its out-of-fold scores with those of the default bundle's recipe
(``weights/out_of_fold.csv``) on the frames that both have: how well faulty frames are ranked, how
many are found at 2 % and 5 % false alarms (thresholds on the same clean frames), and each type's
AUROC. The difference has a 95 % interval: frames drawn 2,000 times, the same for both, faulty and
clean ones apart. Folds, seeds and processors of the two differ.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.out_of_fold import TYPES, read
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from steelsight.evaluation.predictions import Predictions

DRAWS = 2000
FORMS = ("fast", "fastest")
Scores = NDArray[np.floating]
Figure = Callable[[NDArray[np.bool_], Scores], float]


def recall(faulty: NDArray[np.bool_], scores: Scores, false_alarms: float) -> float:
    """Of faulty frames above the threshold that so many clean ones reach."""
    clean = np.sort(scores[~faulty])[::-1]
    return float(np.mean(scores[faulty] > clean[int(false_alarms * len(clean))]))


FIGURES: dict[str, Figure] = {
    "AUROC": roc_auc_score,
    "average precision": average_precision_score,
    "recall at 2 % false alarms": lambda faulty, scores: recall(faulty, scores, 0.02),
    "recall at 5 % false alarms": lambda faulty, scores: recall(faulty, scores, 0.05),
}


def scores_of(form: str) -> Path:
    """A table without frames and masks: names, folds and scores."""
    if form not in FORMS:
        sys.exit(f"expected {' or '.join(FORMS)}, got {form}")
    return Path(__file__).parent / f"{form}_out_of_fold.csv"


def write(run: Path, table_path: Path) -> None:
    """The scores of a cross-validation, as a table."""
    with table_path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "fold", "faulty_logit", *(f"score_{c}" for c in TYPES)])
        for fold, path in enumerate(sorted(run.glob("fold-*/predictions.npz"))):
            found = Predictions.load(path)
            for image, logit, scores in zip(
                found.images, found.faulty_logits, found.type_scores_nk, strict=True
            ):
                name = Path(image).name  # whatever folder it is in
                table.writerow([name, fold, f"{logit:.6g}", *(f"{s:.6g}" for s in scores)])


def main(shared: Path, form: str = "fastest", run: Path | None = None) -> None:
    table_path = scores_of(form)
    if run is not None:
        write(run, table_path)
    default = read(shared / "weights" / "out_of_fold.csv")
    with table_path.open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    both = [i for i, name in enumerate(default.images) if name in rows]
    of_fast = [rows[default.images[i]] for i in both]
    faulty = default.faulty[both]
    print(f"{faulty.sum()} faulty, {(~faulty).sum()} clean frames that both have\n")
    scores = (
        default.faulty_logits[both],
        np.array([float(row["faulty_logit"]) for row in of_fast]),
    )
    folds = np.array([int(row["fold"]) for row in of_fast])
    print(f"{'':28}{'default':>9}{form:>9}   {form} - default")
    for name, figure in FIGURES.items():
        compare(name, figure, faulty, scores)
    for k, class_id in enumerate(TYPES):
        present = default.present_nk[both][:, k]
        used = present | ~faulty
        of_type = (
            default.type_scores_nk[both][:, k],
            np.array([float(row[f"score_{class_id}"]) for row in of_fast]),
        )
        name = f"AUROC, type {class_id} ({present.sum()})"
        compare(name, roc_auc_score, present[used], tuple(s[used] for s in of_type))
        # One network may fail where the others do not.
        for fold in np.unique(folds):
            here = used & (folds == fold)
            before, after = (roc_auc_score(present[here], s[here]) for s in of_type)
            name = f"  frames of its fold {fold} ({present[here].sum()})"
            print(f"{name:28}{before:9.3f}{after:9.3f}")


def compare(
    name: str, figure: Figure, faulty: NDArray[np.bool_], scores: tuple[Scores, ...]
) -> None:
    random = np.random.default_rng(0)
    parts = [np.flatnonzero(faulty), np.flatnonzero(~faulty)]
    differences = np.zeros(DRAWS)
    for n in range(DRAWS):
        drawn = np.concatenate([random.choice(part, len(part)) for part in parts])
        before, after = (figure(faulty[drawn], s[drawn]) for s in scores)
        differences[n] = after - before
    before, after = (figure(faulty, s) for s in scores)
    low, high = np.percentile(differences, [2.5, 97.5])
    print(
        f"{name:28}{before:9.3f}{after:9.3f}   {after - before:+.3f}  [{low:+.3f}, {high:+.3f}]",
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(Path, sys.argv[3:4]))
