"""``steelsight train`` as people and scripts meet it, alone and in several processes."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.predicted import predictions_of

from steelsight import cli
from steelsight.cli.train import _Panel, _shown
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.errors import GateError
from steelsight.evaluation.metrics import Summary, summary
from steelsight.evaluation.predictions import BINS, Predictions
from steelsight.training import session
from steelsight.training.config import setting_names
from steelsight.training.loop import Moment

TINY = (
    "--start", "random", "--plan", "none", "--bundle", "none", "--steps", "6", "--batch", "4",
    *(part for setting in (
        "validate_every=3", "checkpoint_every=2", "pictures_every=0", "precision=fp32",
        "device=cpu", "threads=1", "network.width=0.125", "sampling.crop_hw=64x64",
        "network.dropout=0", "augment.noise=1", "optimiser.freeze_batchnorm=true",
    ) for part in ("--set", setting)),
)  # fmt: skip
"""A run that takes seconds."""

Call = Callable[..., Any]


def with_options(options: tuple[str, ...], changed: Mapping[str, object]) -> list[str]:
    """The options with other values for ``--steps`` or, without dashes, for settings."""
    new = list(options)
    for name, value in changed.items():
        if name.startswith("--"):
            new[new.index(name) + 1] = str(value)
        else:
            (place,) = (i for i, part in enumerate(new) if part.startswith(f"{name}="))
            new[place] = f"{name}={value}"
    return new


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = (0.25, 0.25, 0.25, 0.25)
    config = CoilConfig(28, 3, 0.7, (128, 96), class_weights=weights)
    return write_severstal(config, tmp_path_factory.mktemp("train") / "drawn")


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Before a run ------------------------------------------------------------------------------------


def test_help_needs_no_torch_and_shows_an_example() -> None:
    code = (
        "import sys; from steelsight import cli; sys.argv = ['steelsight', 'train', '--help']\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'lightning_fabric'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: steelsight train" in done.stdout
    assert "Example: steelsight train drawn/ --start random --plan small --out run/" in done.stdout
    for option in ("--start", "--plan", "--set", "--folds", "--further", "--resume", "--dry-run"):
        assert option in done.stdout
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("missing", ["torch", "lightning_fabric"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from steelsight import cli\n"
        "sys.argv = ['steelsight', 'train', 'drawn', '--start', 'random']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"steelsight: training needs {missing}, which is not installed;"
        " run: pip install 'steelsight[train]'\n"
    )


def test_all_settings_are_listed(call: Call) -> None:
    answer = call("train", "--settings")
    assert answer.code == 0
    for name in setting_names():
        assert name in answer.out
    assert "256x512" in answer.out


def test_all_settings_are_listed_for_machines(call: Call) -> None:
    answer = call("train", "--settings", "--json")
    assert answer.code == 0
    told = json.loads(answer.out)
    assert list(told) == setting_names()
    assert all(entry["default"] and entry["about"] for entry in told.values())


def test_dry_run_tells_the_plan_and_writes_nothing(call: Call, drawn: Path, tmp_path: Path) -> None:
    before = files_below(drawn)
    answer = call("train", drawn, "--start", "random", "--out", tmp_path / "run", "--dry-run",
                  "--plan", "small", "--set", "device=cpu")  # fmt: skip
    assert answer.code == 0
    assert "Learns from 22 frames" in answer.out
    assert "Plan: a quarter of the channels at half resolution: profile small." in answer.out
    assert list(tmp_path.iterdir()) == []
    assert files_below(drawn) == before


def test_dry_run_for_machines(call: Call, drawn: Path, tmp_path: Path) -> None:
    answer = call("train", drawn, *TINY, "--out", tmp_path / "run", "--dry-run", "--json")
    assert answer.code == 0
    told = json.loads(answer.out)
    assert told["config"]["steps"] == 6
    assert (
        told["config"]["sampling"] | {"batch": 4, "crop_hw": [64, 64]}
        == (told["config"]["sampling"])
    )
    assert told["reasons"] == ["no plan: the defaults"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "expected the PATH of a data set; try: steelsight train --help"),
        (["{drawn}"], 1, "expected --start with a file of pretrained weights, or --start random"),
        (["{drawn}", "--start", "nothing.safetensors"], 1, "nothing.safetensors"),
        (["nowhere", "--start", "random"], 1, "nowhere"),
        (["{drawn}", "--start", "random", "--plan", "best"], 1, "expected --plan out of auto,"),
        (["{drawn}", "--start", "random", "--set", "steps"], 1, "expected --set NAME=VALUE"),
        (["{drawn}", "--start", "random", "--set", "stesp=3"], 1, "a setting such as steps"),
        (["{drawn}", "--start", "random", "--set", "steps=x"], 1, "setting steps"),
        (["{drawn}", "--start", "random", "--steps", "0"], 1, "setting steps"),
        (["{drawn}", "--start", "random", "--steps", "x"], 2, "Try: steelsight --help"),
        (["{drawn}", "--start", "random", "--arch", "three"], 1, "setting network.arch"),
        (["{drawn}", "--start", "random", "--bundle", "fp16"], 1, "int8, fp32 or none, got 'fp16'"),
        (["{drawn}", "--start", "random", "--held-out", "val"], 1, "give --split too"),
        (["{drawn}", "--start", "random", "--folds", "99"], 1, "cannot fill 99 folds"),
        (["{drawn}", "--start", "random", "--nothing"], 2, "--nothing"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    code: int,
    said: str,
    call: Call,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("train", *(a.format(drawn=drawn) for a in arguments))
    assert answer.code == code
    *_, last = answer.err.splitlines()
    assert last.startswith("steelsight: ")
    assert said in last
    assert answer.err.count("steelsight: ") == 1
    assert "Traceback" not in answer.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


# A run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps; what it printed lies beside its folder."""
    out = tmp_path_factory.mktemp("finished") / "run"
    printed, shown = io.StringIO(), io.StringIO()
    command = ["steelsight", "train", str(drawn), *TINY, "--out", str(out), "--json"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(shown):
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0, shown.getvalue()
    (out.parent / "stdout").write_text(printed.getvalue())
    (out.parent / "stderr").write_text(shown.getvalue())
    return out


def test_a_run_tells_machines_what_it_made(finished: Path) -> None:
    told = json.loads((finished.parent / "stdout").read_text())
    assert told["folder"] == str(finished)
    assert told["report"] == str(finished / "report.html")
    assert told["bundle"] is None
    assert told["refused"] is None
    kept = json.loads((finished / "summary.json").read_text())
    assert told["figures"]["auroc"] == kept["auroc"]
    assert told["figures"]["frames"] == kept["frames"]
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["command"].startswith(f"steelsight train {finished.parents[1]}"[:17])
    assert "--set network.width=0.125" in environment["command"]


def test_a_run_shows_a_line_per_validation_on_standard_error(finished: Path) -> None:
    lines = (finished.parent / "stderr").read_text().splitlines()
    shown = [line for line in lines if line.startswith("run step")]
    assert shown[0].startswith("run step 3/6  loss ")
    assert shown[1].startswith("run step 6/6  loss ")
    assert "AUROC" in shown[0]
    assert "type 4: " in shown[0]
    assert not any("Warning" in line or "Traceback" in line for line in lines)


def test_a_second_run_does_not_write_over_the_first(
    call: Call, drawn: Path, finished: Path
) -> None:
    before = {name: (finished / name).read_bytes() for name in ("last.safetensors", "config.json")}
    answer = call("train", drawn, *TINY, "--out", finished)
    assert answer.code == 1
    assert "it holds a run; add --resume" in answer.err
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_resumed_after_its_end_it_tells_the_figures(
    call: Call, drawn: Path, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    # Without settings: those of the run hold.
    answer = call("train", drawn, "--start", "random", "--bundle", "none", "--resume", "--out", out)
    assert answer.code == 0
    assert "Plan: settings of the run that is resumed." in answer.out
    assert f"Open {out / 'report.html'} in a browser." in answer.out
    assert "AUROC" in answer.out


def test_resumed_with_other_settings_it_is_refused_in_one_line(
    call: Call, drawn: Path, finished: Path
) -> None:
    answer = call("train", drawn, *TINY, "--resume", "--out", finished, "--seed", "3")
    assert answer.code == 1
    assert "seed 0 (now 3)" in answer.err.splitlines()[-1]


def test_a_bundle_that_is_refused_ends_with_exit_code_4(
    call: Call, drawn: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise GateError("bundle refused: 3 of 6 verdicts flip")

    monkeypatch.setattr(session, "make_bundle", refuse)
    out = shutil.copytree(finished, tmp_path / "run")
    arguments = ("train", drawn, "--start", "random", "--resume", "--out", out)
    answer = call(*arguments)
    assert answer.code == 4
    assert answer.err.splitlines()[-1] == "steelsight: bundle refused: 3 of 6 verdicts flip"
    assert "steelsight inspect" not in answer.out
    assert "AUROC" in answer.out
    answer = call(*arguments, "--json")
    assert answer.code == 4
    told = json.loads(answer.out)
    assert told["bundle"] is None
    assert told["refused"] == "bundle refused: 3 of 6 verdicts flip"


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], longest_s: float) -> None:
    until = time.monotonic() + longest_s
    while not what():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")  # type: ignore[union-attr]
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kills it and all below it; torchrun gives each worker a process group of its own."""

    def below(pid: int) -> Iterator[int]:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield child
                yield from below(child)

    # The parent first: it would start workers again, or end the others in another way.
    for pid in (process.pid, *list(below(process.pid))):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def started(*command: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which no process is left afterwards."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                kill_all(process)


def test_ctrl_c_ends_with_130_and_the_run_can_go_on(
    call: Call, drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Long enough that the signal comes in its middle on any machine.
    settings = {"--steps": 50, "--batch": 2, "validate_every": 50, "checkpoint_every": 50}
    arguments = ("train", drawn, *with_options(TINY, settings), "--out", out)
    with started(sys.executable, "-m", "steelsight", *arguments) as process:
        wait_for(lambda: (out / "metrics.csv").exists(), process, 120)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"Go on with: --resume --out {out}" in said
    assert said.count("stopped") == 1
    assert "Traceback" not in said
    done = len(rows(out / "metrics.csv"))
    assert 1 <= done < 50
    answer = call(*arguments, "--resume")
    assert answer.code == 0
    assert [row["step"] for row in rows(out / "metrics.csv")] == list(range(1, 51))


# What a run shows --------------------------------------------------------------------------------


def figures(clean: int = 3) -> Summary:
    rng = np.random.default_rng(0)
    present = np.array([[True, False], [True, False], [False, True]] + clean * [[False, False]])
    n = len(present)
    counts = rng.integers(1, 9, (2, n, 2, BINS))
    return summary(
        predictions_of(
            present,
            class_ids=("1", "dent"),
            masked_nk=present,
            faulty_logits=rng.normal(size=n),
            head_probabilities_nk=rng.random((n, 2)),
            peaks_nk=rng.random((n, 2)),
            inside_nkb=counts[0] * present[..., None],
            outside_nkb=counts[1],
        )
    )


def moment(step: int, validation: Summary | None = None, doing: str = "") -> Moment:
    losses = {"total": 1.25, "pixels": 0.5, "region": 0.75, "faulty": 0.1, "types": 0.2}
    return Moment(step, 40, losses, 12.5, validation, doing)


def drawn_text(panel: _Panel, *, width: int = 110) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(panel)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_panel_shows_losses_speed_and_figures_by_type() -> None:
    panel = _Panel()
    assert drawn_text(panel).strip()
    assert not panel.update("fold-1", moment(3))
    text = drawn_text(panel)
    assert "fold-1" in text
    assert "3/40 steps" in text
    assert "loss 1.250  12.5 crops/s" in text
    assert "AUROC" not in text
    found = figures()
    assert panel.update("fold-1", moment(4, found))
    assert not panel.update("fold-1", moment(5, found))
    text = drawn_text(panel)
    assert f"AUROC {found.auroc:.3f}" in text
    assert "pixels 0.500  region 0.750" in text
    (first, second) = found.types
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "2", f"{first.detection:.3f}", f"{first.best_dice:.3f}"] in lines
    assert ["dent", "1", f"{second.detection:.3f}", f"{second.best_dice:.3f}"] in lines
    panel.update("fold-1", moment(5, found, "validating 7/10"))
    assert "validating 7/10" in drawn_text(panel)


def test_panel_shows_any_name_of_a_folder() -> None:
    panel = _Panel()
    panel.update("[old/] run[/b]", moment(4, figures()))
    assert "[old/] run[/b]" in drawn_text(panel)


def test_panel_begins_again_with_each_part() -> None:
    panel = _Panel()
    panel.update("fold-0", moment(40, figures()))
    panel.update("fold-1", moment(1))
    text = drawn_text(panel)
    assert "1/40 steps" in text
    assert "fold-0" not in text
    assert "AUROC" not in text


def test_line_holds_the_figures() -> None:
    panel = _Panel()
    found = figures(clean=0)
    panel.update("run", moment(4, found))
    line = panel.line()
    assert "\n" not in line
    assert line.startswith("run step 4/40  loss 1.250  AUROC -  detection/Dice type 1: -/0.")
    assert "type dent: -/0." in line


def test_shown_elsewhere_than_on_a_terminal_it_is_a_line_per_validation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = figures()
    with _shown(True) as (show, tell):
        for given in (moment(1), moment(2, found), moment(3, found), moment(4, figures())):
            show("run", given)
        tell("the start [is] old")
    answer = capsys.readouterr()
    assert answer.out == ""
    first, second, note = answer.err.splitlines()
    assert first.startswith("run step 2/40")
    assert second.startswith("run step 4/40")
    assert "type dent: " in first
    assert note == "Note: the start [is] old."


def test_only_the_first_process_shows_anything(capsys: pytest.CaptureFixture[str]) -> None:
    with _shown(False) as (show, tell):
        show("run", moment(2, figures()))
        tell("nothing")
    assert capsys.readouterr() == ("", "")


# Several processes -------------------------------------------------------------------------------

# In two processes sums are rounded otherwise, and BatchNorm over four crops of 2 x 2 deep features
# blows that up a thousandfold in each step, as it does between one and two threads of one process.
# With the encoder's BatchNorm frozen (the decoder's is not) six steps stay within rounding: TINY.
WITH_BATCHNORM = {"optimiser.freeze_batchnorm": "false"}
LOSSES = ("total", "pixels", "region", "faulty", "types")


@contextmanager
def in_two_processes(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The two dashes: torchrun takes --start for one of its own options.
    with started(
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port,
        "-m", "--", "steelsight", *arguments, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1",
    ) as process:  # fmt: skip
        yield process


def run_in_two_processes(*arguments: object) -> tuple[str, str]:
    with in_two_processes(*arguments) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out, err


def assert_same_losses(one: Path, two: Path, rel: float, steps: int = 6) -> None:
    alone, together = (rows(path / "metrics.csv")[:steps] for path in (one, two))
    assert len(alone) == len(together) == steps
    for a, b in zip(alone, together, strict=True):
        assert (a["step"], a["epoch"], a["lr"]) == (b["step"], b["epoch"], b["lr"])
        for name in LOSSES:
            assert b[name] == pytest.approx(a[name], rel=rel), (a["step"], name)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=100 * rel)


@pytest.mark.soak
def test_two_processes_learn_as_one(drawn: Path, finished: Path, tmp_path: Path) -> None:
    run_in_two_processes("train", drawn, *TINY, "--out", tmp_path / "run")
    assert_same_losses(finished, tmp_path / "run", rel=1e-5)
    names = [[p.name for p in sorted(f.iterdir())] for f in (tmp_path / "run", finished)]
    assert names[0] == names[1]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_run_of_one_process_goes_on_in_two_as_if_alone(
    call: Call, drawn: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two share each batch and learn the same; all that is random follows from the step."""
    asked = iter(range(1, 10))

    @contextmanager
    def third_step() -> Iterator[Callable[[], bool]]:
        yield lambda: next(asked) == 3

    monkeypatch.setattr(sys.modules["steelsight.cli.train"], "ctrl_c", third_step)
    out = tmp_path / "run"
    assert call("train", drawn, *TINY, "--out", out).code == 130
    assert len(rows(out / "metrics.csv")) == 3
    printed, shown = run_in_two_processes("train", drawn, *TINY, "--resume", "--out", out)
    assert rows(out / "metrics.csv")[:3] == rows(finished / "metrics.csv")[:3]
    # Measured: 2e-7; 1e-5 leaves room for other processors.
    assert_same_losses(finished, out, rel=1e-5)
    found, expected = (Predictions.load(path / "predictions.npz") for path in (out, finished))
    assert found.images == expected.images
    np.testing.assert_allclose(found.faulty_logits, expected.faulty_logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.peaks_nk, expected.peaks_nk, rtol=1e-3, atol=1e-4)
    # One of them writes and speaks: a file of events each would make three.
    assert {p.name for p in out.iterdir()} == {p.name for p in finished.iterdir()}
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert printed.count("Learns from") == printed.count("in a browser") == 1
    assert shown.count("run step 6/6") == shown.count("run step")


@pytest.mark.soak
def test_with_batchnorm_the_first_step_of_two_processes_is_that_of_one(
    call: Call, drawn: Path, tmp_path: Path
) -> None:
    """Gradients are compared in double precision in tests/models/test_distributed.py."""
    arguments = ("train", drawn, *with_options(TINY, WITH_BATCHNORM), "--out")
    assert call(*arguments, tmp_path / "one").code == 0
    run_in_two_processes(*arguments, tmp_path / "two")
    one, two = (rows(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for name in ("pixels", "region", "total"):
        assert two[0][name] == pytest.approx(one[0][name], rel=2e-6)
    for name in ("faulty", "types"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4)
    for a, b in zip(one, two, strict=True):
        assert b["pixels"] == pytest.approx(a["pixels"], rel=5e-3)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_processes_that_were_ended_go_on(drawn: Path, tmp_path: Path) -> None:
    """However they were ended, they go on from the last checkpoint, and end the same."""
    settings = {"--steps": 60, "validate_every": 20, "checkpoint_every": 4}
    arguments = ("train", drawn, *with_options(TINY, settings), "--out")
    run_in_two_processes(*arguments, tmp_path / "whole")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        out = tmp_path / number.name
        with in_two_processes(*arguments, out) as process:
            wait_for((out / "last.safetensors").exists, process, 120)
            if number is signal.SIGKILL:
                # Of torchrun alone, its workers would go on, and hold the folder.
                kill_all(process)
            else:
                os.killpg(process.pid, number)
            process.communicate(timeout=120)
        assert process.returncode != 0
        assert not (out / "predictions.npz").exists()
        run_in_two_processes(*arguments, out, "--resume")
        for name in ("metrics.csv", "validation.csv", "predictions.npz"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.soak
def test_two_processes_cross_validate(drawn: Path, tmp_path: Path) -> None:
    out, _ = run_in_two_processes("train", drawn, *TINY, "--folds", 2, "--out", tmp_path / "run")
    assert out.count("in a browser") == 1
    found = Predictions.load(tmp_path / "run" / "predictions.npz")
    assert len(found) == 28
    assert (tmp_path / "run" / "final" / "best.safetensors").exists()
