"""``steelsight data``: draw, convert, check, explore and split data sets."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from steelsight.cli.terminal import DONE, Json, console_for, print_json, progress

data_app = App(
    name="data", help="Data sets: convert, check, explore, split, draw.", help_format="plaintext"
)


@data_app.command
def synth(
    *,
    out: Annotated[Path, Parameter(help="New or empty folder.")],
    frames: Annotated[int, Parameter(help="How many frames to draw.")] = 200,
    seed: Annotated[int, Parameter(help="Same seed, same frames, byte for byte.")] = 0,
    faulty_share: Annotated[float, Parameter(help="Chance of a frame to be faulty.")] = 0.25,
    json: Json = False,
) -> int:
    """Draw steel strip frames with exact masks, in the Severstal layout.

    Writes images/, train.csv (Kaggle form), images.csv and SYNTHETIC.txt. The frames are drawn,
    not photographed; accuracy on them says nothing about real steel.

    Example: steelsight data synth --frames 200 --out drawn/
    """
    from steelsight.data.synthetic import CoilConfig, write_severstal

    console = console_for(json)
    config = CoilConfig(frames=frames, seed=seed, faulty_share=faulty_share)
    with progress("drawing", frames) as advance:
        write_severstal(config, out, progress=lambda _: advance(""))
    if json:
        print_json({"folder": str(out), "frames": frames, "seed": seed, "synthetic": True})
    else:
        console.print(f"{frames} drawn frames with exact masks in {out}.")
    return DONE
