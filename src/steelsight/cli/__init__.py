"""The command line: parse, call, print. Heavy imports stand inside the commands.

Exit codes: 0 done; 1 error; 2 usage; 3 done, but some frames are UNKNOWN; 4 a gate refused (parity,
self-test); 130 stopped by Ctrl-C, with everything up to then written.
"""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from steelsight import __version__
from steelsight.cli.terminal import (
    DONE,
    ERROR,
    GATE,
    INTERRUPTED,
    USAGE,
    BundleFolder,
    Json,
    console_for,
    fail,
    print_json,
    progress,
    table,
)
from steelsight.errors import GateError, InputError, SteelsightError

if TYPE_CHECKING:
    from steelsight.bundle import ClassEntry

app = App(
    name="steelsight",
    version=__version__,
    help="Finds and outlines manufacturing defects on steel from camera images. Every frame gets a "
    "verdict: OK, NG, or UNKNOWN with a reason. Nothing is silently OK.",
    help_format="plaintext",
    help_epilogue="""Examples:

  steelsight demo                         drawn steel, report in demo/

  steelsight inspect frames/ --out out/   verdicts, masks, pictures, report

  steelsight inspect one.jpg              one result line on standard output

  steelsight results out/                 questions about results, exports

  steelsight doctor                       what works on this machine

Exit codes: 0 done, 1 error, 2 usage, 3 some frames UNKNOWN, 4 a gate refused, 130 stopped.""",
    version_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # else it ends the process without a word
)
model_app = App(name="model", help="Model bundles: what is inside.", help_format="plaintext")
LAZY = {
    "demo": ("inspect:demo", "Draw a coil with known truth, inspect it, write a report."),
    "inspect": ("inspect:inspect", "Inspect images and write results, pictures and a report."),
    "results": (
        "results:results",
        "Ask a store about results, coils, runs and defects, and export them.",
    ),
    "review": ("results:review", "Write a person's verdict beside the model's."),
    "replay": ("results:replay", "Derive a stored verdict again, and compare it bit for bit."),
    "serve": ("serve:serve", "Serve an HTTP interface for machines and a page for people."),
    "data": (
        "data:data_app",
        "Data sets: convert labels, check, explore, split; draw a synthetic one.",
    ),
    "train": (
        "train:train",
        "Train classifier and segmenter on a labelled data set; ends with a bundle and a report.",
    ),
    "evaluate": (
        "evaluate:evaluate",
        "Say how many bad frames are missed, how many good ones blocked, and how sure that is.",
    ),
    "calibrate": (
        "calibrate:calibrate",
        "Choose thresholds by a rule, and say what they give on frames they were not chosen on.",
    ),
    "compare": (
        "compare:compare",
        "Say whether B is better than A on the same frames, or whether it is noise.",
    ),
    "benchmark": (
        "benchmark:benchmark",
        "Measure the whole pipeline, from encoded bytes to the result line, on every engine.",
    ),
}
"""Commands by name: module and function, and the first line of its help; imported when called."""

for _name, (_where, _help) in LAZY.items():
    app.command(f"steelsight.cli.{_where}", name=_name, help=_help)
app.command(model_app)


@model_app.command
def info(bundle: BundleFolder = None, *, json: Json = False) -> int:
    """Show what a bundle is, what it was trained on, and how it decides.

    Example: steelsight model info --bundle my-bundle/
    """
    from steelsight.bundle import load_bundle
    from steelsight.cli.inspect import thresholds

    loaded = load_bundle(bundle)
    facts = {
        "model": loaded.id,
        "folder": str(loaded.folder),
        "manifest": loaded.manifest.model_dump(mode="json"),
        "decision": loaded.decision.model_dump(mode="json"),
        "parity": loaded.parity,
    }
    if json:
        print_json(facts)
        return DONE
    console = console_for(json)
    manifest, decision = loaded.manifest, loaded.decision
    console.print(f"{loaded.id}  {manifest.precision}, made by {manifest.code_version}")
    console.print(f"Trained on: {manifest.training.data}")
    console.print(f"Terms: {manifest.training.terms}")
    console.print(f"Decision {decision.id} ({decision.name}): {decision.rule}")
    console.print(f"Chosen on: {decision.chosen_on}\n")
    console.print(table(thresholds(loaded)))
    parity = loaded.parity
    console.print(
        f"\nAgainst the trained network, on {parity['frames']} real frames: "
        f"{len(parity['verdict_flips'])} verdicts differ, masks overlap with a Dice of "
        f"{parity['mask_agreement_dice']}"
    )
    console.print(f"\n{loaded.card}", markup=False, highlight=False)
    return DONE


@model_app.command
def first_look(
    bundle: Annotated[Path, Parameter(help="Bundle, folder or shipped name.")],
    fast: Annotated[
        Path, Parameter(help="A faster bundle of the same types (train --plan fastest).")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="New or empty folder for the new bundle.")],
    decision: Annotated[
        Path | None, Parameter(help="Decision file to put in; that of BUNDLE if left out.")
    ] = None,
    json: Json = False,
) -> int:
    """Put the gate of a faster bundle in front of another one, to clear most clean frames.

    It clears nothing before the decision says so: evaluate the new bundle on labelled frames with
    --save-predictions, then let `calibrate` choose [first_look] and tell what it costs.

    Example: steelsight model first-look my-bundle/ my-fast-bundle/ --out both/
    """
    from steelsight.bundle import load_bundle
    from steelsight.engine.first_look import add_first_look

    made = add_first_look(load_bundle(bundle), load_bundle(fast), out, decision)
    rule = made.decision.first_look
    if json:
        print_json({"model": made.id, "folder": str(out), "used": rule is not None})
        return DONE
    console = console_for(json)
    console.print(f"{made.id} in {out}", highlight=False)
    if rule is None:
        console.print(
            "Its decision has no [first_look] yet: nothing is cleared by it. Next:\n"
            f"  steelsight evaluate DATA --bundle {out} --out eval/ --save-predictions\n"
            "  steelsight calibrate eval/ --first-look 0.7 --out decision.toml",
            highlight=False,
        )
    return DONE


@model_app.command
def convert_weights(
    source: Annotated[Path, Parameter(help="A .pth file from somebody you trust.")],
    target: Annotated[Path, Parameter(help="New .safetensors file.")],
    /,
    *,
    json: Json = False,
) -> int:
    """Turn a .pth file (a Python pickle) into safetensors, once (extra: train).

    Example: steelsight model convert-weights resnet50.pth resnet50.safetensors
    """
    from steelsight.cli.train import training_installed

    with training_installed("convert-weights"):
        from steelsight.training.starts import CONVERT_WARNING, convert_pth

    print(f"steelsight: {CONVERT_WARNING}", file=sys.stderr)
    sha256 = convert_pth(source, target)
    if json:
        print_json({"file": str(target), "sha256": sha256})
    else:
        console_for(json).print(f"{target}, sha256 {sha256}")
    return DONE


@app.command
def export(
    weights: Annotated[Path, Parameter(help="Trained Res-UNet, safetensors.")],
    /,
    *,
    frames: Annotated[Path, Parameter(help="Folder of real frames for calibration and parity.")],
    truth: Annotated[Path, Parameter(help="Their labels (Kaggle CSV).")],
    decision: Annotated[Path, Parameter(help="Decision file to ship.")],
    card: Annotated[Path, Parameter(help="Model card to ship, Markdown.")],
    self_test: Annotated[Path, Parameter(help="A frame you may ship, for `steelsight doctor`.")],
    out: Annotated[Path, Parameter(help="New or empty folder for the bundle.")],
    name: Annotated[str, Parameter(help="The bundle's name in results.")],
    trained_on: Annotated[str, Parameter(help="What the network learned from.")],
    terms: Annotated[str, Parameter(help="Terms of that data.")],
    classes: Annotated[
        str | None,
        Parameter(
            help="Defect types in channel order: id=name, separated by commas; those that training "
            "noted in WEIGHTS if left out, else 1=Type 1 to 4=Type 4."
        ),
    ] = None,
    precision: Annotated[str, Parameter(help="int8 or fp32.")] = "int8",
    full_range: Annotated[
        bool, Parameter(negative="", help="8-bit weights: only for CPUs with VNNI.")
    ] = False,
    keep_weights: Annotated[
        bool, Parameter(negative="", help="Put the weights in, as the start of other trainings.")
    ] = False,
    calibration_frames: int = 32,
    parity_frames: int = 128,
    seed: Annotated[int, Parameter(help="Of the choice of frames.")] = 0,
    json: Json = False,
) -> int:
    """Make a bundle from trained weights and prove that it answers the same (extra: train).

    Form and size of the network are those that training noted in WEIGHTS, else the defaults.
    Exit code 4 if the bundle is too far from the trained network.

    Example: steelsight export best.safetensors --frames images/ --truth train.csv ...
    """
    from steelsight.cli.train import training_installed

    with training_installed("export"):
        from steelsight.training.export import (
            ExportConfig,
            choose_frames,
            describe_weights,
            export_bundle,
        )

    from steelsight.bundle import Precision
    from steelsight.data.formats.severstal import read_csv

    if precision not in set(Precision):
        raise InputError(f"expected --precision {' or '.join(Precision)}, got {precision}")
    if classes is None:
        noted = describe_weights(weights)[1] or ("1", "2", "3", "4")
        classes = ",".join(f"{i}={f'Type {i}' if i.isdecimal() else i}" for i in noted)
    labels = {image: dict(frame.rle_by_class) for image, frame in read_csv(truth).items()}
    faulty = {image for image, rles in labels.items() if rles}
    calibration, parity = choose_frames(frames, faulty, calibration_frames, parity_frames, seed)
    config = ExportConfig(
        weights=weights,
        calibration=calibration,
        parity=parity,
        decision=decision,
        card=card,
        self_test=self_test,
        classes=_classes(classes),
        name=name,
        training=(trained_on, terms),
        precision=Precision(precision),
        truth={path: labels.get(path.name, {}) for path in parity},
        reduce_range=not full_range,
        keep_weights=keep_weights,
    )
    with progress("exporting", len(parity) + 2) as advance:
        bundle = export_bundle(config, out, progress=lambda step, _done, _total: advance(step))
    if json:
        print_json({"model": bundle.id, "folder": str(out), "parity": bundle.parity})
    else:
        console = console_for(json)
        flips = bundle.parity["verdict_flips"]
        console.print(f"{bundle.id} in {out}")
        console.print(f"{len(flips)} of {len(parity)} verdicts differ from the trained network.")
    return DONE


@app.command
def doctor(*, bundle: BundleFolder = None, json: Json = False) -> int:
    """Check this installation: versions, engines, and the bundle's self-test on each engine.

    The self-test inspects the frame that the bundle carries and compares with the answer that its
    maker recorded. Exit code 4 if an engine answers differently on this machine.

    Example: steelsight doctor
    """
    from steelsight.doctor import diagnose

    report = diagnose(bundle)
    if json:
        print_json(report.to_json())
    else:
        console = console_for(json)
        console.print(table(report.rows()), highlight=False)
        console.print(report.sentence)
    return DONE if report.healthy else GATE


def main() -> None:
    """Entry point: one line for every error of a user, never a traceback."""
    # Names of files may hold bytes that are no text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Errors of parsing are ours to print: one line, exit code 2.
        code = app(_words(), exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        text = " ".join(str(error).split())
        code = fail(f"{text} Try: steelsight --help", USAGE)
    except GateError as error:
        code = fail(str(error), GATE)
    except SteelsightError as error:
        code = fail(str(error), ERROR)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        code = ERROR
    except OSError as error:  # a full disk, mostly
        code = fail(f"{error.strerror}: {error.filename or 'standard output'}", ERROR)
        # What is still buffered would fail again at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if code == INTERRUPTED:
        fail("stopped; what was finished until then is complete", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else DONE)


def _words() -> list[str]:
    """What was given, for the parser."""
    # The parser takes a lone - for an option; as a path it is standard input.
    words = ["./-" if word == "-" else word for word in sys.argv[1:]]
    if words and words[0] in LAZY and app[words[0]].default_command:
        app[words[0]].help = None  # a command's own page is its docstring
    return words


def _classes(text: str) -> "tuple[ClassEntry, ...]":
    from pydantic import ValidationError

    from steelsight.bundle import class_entries

    pairs = [pair.partition("=") for pair in text.split(",")]
    try:
        return class_entries((k.strip(), n.strip() or k.strip()) for k, _, n in pairs)
    except ValidationError:
        raise InputError(
            f"expected --classes such as '1=Pits,2=Scratches' with ids of letters, digits, - and "
            f"_, got {text!r}"
        ) from None
