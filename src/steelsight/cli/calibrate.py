"""``steelsight calibrate``: from predictions on labelled frames to a decision file."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from steelsight.cli.terminal import DONE, Json, console_for, now, print_json, table, working
from steelsight.errors import GateError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from steelsight.evaluation.predictions import Predictions
    from steelsight.evaluation.thresholds import Choice, Rule

PREDICTIONS = "predictions.npz"
RULES = ("false-alarms", "kaggle", "recall", "cost", "guarantee")


def calibrate(
    path: Annotated[
        Path,
        Parameter(
            name="PREDICTIONS",
            help="predictions.npz of `train` or `evaluate --save-predictions`, or its folder.",
        ),
    ],
    /,
    *,
    rule: Annotated[
        str | None,
        Parameter(
            help="false-alarms (the default), kaggle, recall, cost or guarantee; an option below"
            " that belongs to one rule implies it."
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="The decision file to write.")] = Path("decision.toml"),
    false_alarms: Annotated[
        float | None,
        Parameter(help="false-alarms: share of clean frames that reach each threshold; 0.02."),
    ] = None,
    clear: Annotated[
        float | None,
        Parameter(help="false-alarms: share of clean frames that are segmented at all; 0.05."),
    ] = None,
    recall: Annotated[
        float | None,
        Parameter(help="recall: share of the faulty frames that must be NG; 0.95."),
    ] = None,
    escape_cost: Annotated[
        float | None, Parameter(help="cost: of a faulty frame called OK, in any currency; 400.")
    ] = None,
    overkill_cost: Annotated[
        float | None, Parameter(help="cost: of a clean frame called NG; 15.")
    ] = None,
    prevalence: Annotated[
        float | None, Parameter(help="cost: share of faulty frames on your line; 0.02.")
    ] = None,
    max_escape_rate: Annotated[
        float | None,
        Parameter(help="guarantee: share of the faulty frames that may be called OK; 0.02."),
    ] = None,
    confidence: Annotated[
        float | None, Parameter(help="guarantee: how sure that must be; 0.95.")
    ] = None,
    per_type: Annotated[
        bool, Parameter(negative="", help="guarantee: for the frames of each type.")
    ] = False,
    temperature: Annotated[
        bool, Parameter(negative="", help="Fit stage 1's probabilities to these frames first.")
    ] = False,
    soft_gate: Annotated[
        bool, Parameter(negative="", help="Stage 1's probability weighs the scores of types.")
    ] = False,
    first_look: Annotated[
        float,
        Parameter(
            help="Share of the clean frames that the bundle's first look settles, such as 0.7; none"
            " if left out."
        ),
    ] = 0.0,
    name: Annotated[
        str | None, Parameter(help="Of the decision; folder and rule if left out.")
    ] = None,
    force: Annotated[bool, Parameter(negative="", help="Replace an existing --out.")] = False,
    json: Json = False,
) -> int:
    """Choose thresholds by a rule, and say what they give on frames they were not chosen on.

    Rules: share of false alarms; best Kaggle score; a recall (--recall 0.95); least cost
    (--escape-cost 400 --overkill-cost 15 --prevalence 0.02); a guarantee (--max-escape-rate 0.02
    --confidence 0.95), which is refused if there are too few frames to prove it. The network needs
    no new export: give the file to `inspect --decision`.

    Exit codes: 4 if the frames cannot prove the guarantee.

    Example: steelsight calibrate run/ --recall 0.95 --out line4.toml
    """
    from steelsight.decisions import load_decision
    from steelsight.evaluation.predictions import Predictions
    from steelsight.evaluation.thresholds import choose, nested_verdicts, outcome
    from steelsight.evaluation.verdicts import apply_decision

    if out.exists() and not force:
        raise InputError(f"{out} is there already; give another --out, or --force to replace it")
    rule_name, wanted = _rule(
        rule,
        {
            "false_alarms": false_alarms,
            "clear": clear,
            "recall": recall,
            "escape_cost": escape_cost,
            "overkill_cost": overkill_cost,
            "prevalence": prevalence,
            "max_escape_rate": max_escape_rate,
            "confidence": confidence,
            "per_type": per_type or None,
        },
    )
    file = _predictions_file(path)
    found = Predictions.load(file)

    def choice_of(some: Predictions, *, curve: bool = False) -> "Choice":
        return choose(
            some,
            wanted,
            temperature=temperature,
            soft=soft_gate,
            curve=curve,
            first_look=first_look,
        )

    with working("choosing thresholds, on all frames and nested"):
        choice = choice_of(found, curve=True)
        chosen_on = _chosen_on(found, file, path, rule_name)
        text = choice.to_toml(name or f"{path.resolve().stem}-{rule_name}", chosen_on)
        here = outcome(found, apply_decision(found, choice.decision()))
        nested, why_not = None, None
        try:
            verdicts = nested_verdicts(found, lambda some: choice_of(some).decision())
            nested = outcome(found, verdicts)
        except (GateError, InputError) as error:
            why_not = f"without the frames of a fold: {error}"
    _write(out, text)
    decision = load_decision(out, found.class_ids)
    told = {
        "decision": str(out),
        "id": decision.id,
        **decision.model_dump(exclude={"version", "input"}),
        "strictness": {"allowed": choice.allowed, "clean_frames": choice.clean_frames},
        "on_these_frames": here,
        "nested": nested,
        "nested_not_measured": why_not,
        "cost_curve": choice.curve
        and {**choice.curve.to_json(), "ng_from": list(choice.ng_from_p)},
    }
    if json:
        print_json(told)
    else:
        _print(console_for(json), told, found, wanted)
    return DONE


def _rule(name: str | None, given: Mapping[str, float | bool | None]) -> "tuple[str, Rule]":
    """The rule that is named, or that the options belong to."""
    from steelsight.evaluation.thresholds import Cost, FalseAlarms, Guarantee, Kaggle, Recall

    kinds: dict[str, type[Rule]] = dict(
        zip(RULES, (FalseAlarms, Kaggle, Recall, Cost, Guarantee), strict=True)
    )
    if name is not None and name not in kinds:
        raise InputError(f"expected --rule {', '.join(RULES)}, got {name!r}")
    told: dict[str, Any] = {o: value for o, value in given.items() if value is not None}
    owner = {field.name: rule for rule, kind in kinds.items() for field in fields(kind)}
    implied = name or next((owner[option] for option in told), RULES[0])
    for option in told:
        if owner[option] != implied:
            raise InputError(
                f"--{option.replace('_', '-')} belongs to the rule {owner[option]}, but the rule is"
                f" {implied}; leave one out"
            )
    return implied, kinds[implied](**told)


def _predictions_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = path / PREDICTIONS
    if not file.exists():
        raise InputError(
            f"{path} holds no {PREDICTIONS}; give the folder of a run that is finished, or make one"
            " with: steelsight evaluate DATA --save-predictions"
        )
    return file


def _chosen_on(found: "Predictions", file: Path, path: Path, rule: str) -> str:
    """On which frames, when, by which rule; in the words of the decision file."""
    faulty, folds = int(found.faulty.sum()), len(set(found.folds.tolist()))
    unanswered = len(found.unanswered)
    return (
        f"{faulty} faulty and {len(found) - faulty} clean frames"
        + (f" in {folds} folds, each predicted by the network of the other folds" * (folds > 1))
        + f"{f', {unanswered} UNKNOWN ones left out' if unanswered else ''}; {path.name or path}"
        + (f"/{file.name}" if path != file else "")
        + f", sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}; rule {rule}, {now()}"
    )


def _write(out: Path, text: str) -> None:
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); check the folder and its permissions"
        ) from error


# For people --------------------------------------------------------------------------------------


def _print(console: "Console", told: Mapping[str, Any], found: "Predictions", rule: "Rule") -> None:
    from steelsight.evaluation.thresholds import Cost, Guarantee

    gate, allowed = told["gate"], told["strictness"]["allowed"]
    console.print(f"{told['decision']}  {told['name']}  id {told['id']}")
    console.print(f"Rule: {told['rule']}.")
    console.print(f"On: {told['chosen_on']}.")
    rows = [["threshold", "of frames", *(f"type {c}" for c in told["types"])]]
    blank = [""] * len(told["types"])
    rows += [[key, f"{gate[key]:.4g}", *blank] for key in ("clear_below", "ng_from")]
    if told["first_look"]:
        rows.insert(1, ["first look", f"{told['first_look']['clear_below']:.4g}", *blank])
    if gate["temperature"] != 1:
        rows.append(["temperature", f"{gate['temperature']:.4g}", *blank])
    rows += [
        [key, "", *(f"{of_type[key]:.4g}" for of_type in told["types"].values())]
        for key in ("label_from", "pixel_from", "min_area_px")
    ]
    console.print(table(rows))
    console.print(_outcome_table(told["on_these_frames"], told["nested"]))
    if told["nested"]:
        console.print("Nested: each frame judged by thresholds chosen without it and its fold.")
    else:
        console.print(f"Nested figures could not be measured, {told['nested_not_measured']}.")
    unknown = {kind: told["on_these_frames"][kind]["UNKNOWN"] for kind in ("faulty", "clean")}
    if any(unknown.values()):
        console.print(
            f"UNKNOWN: {unknown['faulty']} faulty and {unknown['clean']} clean frames. They are"
            " neither escapes nor overkill, and in no share above: somebody must look."
        )
    if isinstance(rule, Cost):
        console.print(
            _cost_words(told["cost_curve"], told["on_these_frames"], told["nested"], rule)
        )
    if isinstance(rule, Guarantee):
        console.print(
            "The promise is about the networks that made these predictions, on frames such as"
            " these" + (", not about one trained since." if len(set(found.folds)) > 1 else ".")
        )
    if allowed is not None:
        share = told["on_these_frames"]["overkill_rate"]["value"]
        if share and share > 0.5:
            console.print(f"Beware: {100 * share:.0f} % of the clean frames are blocked.")


def _outcome_table(here: Mapping[str, Any], nested: Mapping[str, Any] | None) -> Any:
    rows = [["share (95 % interval)", "these frames", "nested"]]

    def add(what: str, *keys: str) -> None:
        row = [what]
        for figures in (here, nested):
            value: Any = figures
            for key in keys:
                value = value and value[key]
            row.append(_told_share(value) if value else "not measured")
        rows.append(row)

    add("escapes: faulty OK", "escape_rate")
    add("overkill: clean NG", "overkill_rate")
    add("clean not segmented", "cleared_rate")
    for class_id in here["types"]:
        add(f"type {class_id}: escapes", "types", class_id, "escape_rate")
        add(f"type {class_id}: not outlined", "types", class_id, "not_outlined_rate")
    dice = [figures and figures["kaggle_dice"] for figures in (here, nested)]
    rows.append(["Kaggle Dice", *("not measured" if d is None else f"{d:.4f}" for d in dice)])
    return table(rows)


def _told_share(share: Mapping[str, Any]) -> str:
    if not share["of"]:
        return "no such frame"
    value, low, high = (f"{100 * share[key]:.1f}" for key in ("value", "low", "high"))
    return f"{share['count']}/{share['of']} {value} % ({low} to {high})"


def _cost_words(
    curve: Mapping[str, Any],
    here: Mapping[str, Any],
    nested: Mapping[str, Any] | None,
    rule: "Any",
) -> str:
    def cost(figures: Mapping[str, Any]) -> float:
        return float(
            rule.prevalence * rule.escape_cost * figures["escape_rate"]["value"]
            + (1 - rule.prevalence) * rule.overkill_cost * figures["overkill_rate"]["value"]
        )

    at = curve["allowed"].index(curve["best"])
    from_, to = (
        curve["ng_from"][curve["allowed"].index(curve[end])] for end in ("best_to", "best_from")
    )
    return (
        f"Cost of a frame: {cost(here):.4g} (95 % interval {curve['low'][at]:.4g} to"
        f" {curve['high'][at]:.4g})"
        + (f", nested {cost(nested):.4g}" if nested else "")
        + f". From ng_from {from_:.3g} to {to:.3g} the cost cannot be told from the least one."
    )
