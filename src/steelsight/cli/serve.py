"""``steelsight serve``: the service for machines and people, until a signal ends it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from steelsight.cli.inspect import EngineName, Threads
from steelsight.cli.terminal import DONE, BundleFolder, console_for
from steelsight.errors import InputError

MIN_TOKEN_CHARACTERS = 16


def serve(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen at; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = 8765,
    data: Annotated[
        Path, Parameter(help="Folder for results (store.db) and frames that are kept.")
    ] = Path("service"),
    bundle: BundleFolder = None,
    decision: Annotated[
        Path | None,
        Parameter(
            help="Decision file to use instead of the bundle's; severstal-r50 has first-look, too."
        ),
    ] = None,
    models: Annotated[
        Path | None, Parameter(help="Folder with bundles that may be activated while it runs.")
    ] = None,
    shadow: Annotated[
        Path | None, Parameter(help="A bundle that judges along; only its verdicts are compared.")
    ] = None,
    engine: EngineName = "auto",
    threads: Threads = None,
    queue: Annotated[
        int, Parameter(help="Frames that may wait; beyond that requests get 503.")
    ] = 32,
    keep: Annotated[
        Literal["review", "all", "none"],
        Parameter(help="Frames kept: NG, UNKNOWN and one OK in 100; all; none."),
    ] = "review",
    token_file: Annotated[
        Path | None, Parameter(help="File with the secret that every request must carry.")
    ] = None,
    certificate: Annotated[Path | None, Parameter(help="For HTTPS: certificate, PEM.")] = None,
    key: Annotated[Path | None, Parameter(help="For HTTPS: its key, PEM.")] = None,
    allow_colour: Annotated[
        bool, Parameter(negative="", help="Turn coloured frames grey instead of UNKNOWN.")
    ] = False,
    mm_per_px: Annotated[
        float | None, Parameter(help="Size of a pixel, for questions in millimetres.")
    ] = None,
    open_page: Annotated[
        bool, Parameter(name="--open", negative="", help="Open the page in a browser.")
    ] = False,
) -> int:
    """Serve an HTTP interface for machines and a page for people.

    Every answer with a verdict is on the disk before it is given. SIGTERM and Ctrl-C end it after
    the frames that were taken.

    Example: steelsight serve --open
    """
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise InputError(
            f"expected {', '.join(missing)} for serve, not installed: "
            "pip install 'steelsight[service]'"
        )
    if queue < 1:
        raise InputError(f"expected --queue of at least 1, got {queue}")
    if (certificate is None) != (key is None):
        raise InputError("expected --certificate together with --key, got one of them")
    token = _token(token_file)
    # Spinning threads of the engines would take the cores from decoding and from answers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from steelsight.service.app import bound, check_address, create_app, run
    from steelsight.service.metrics import Metrics
    from steelsight.service.room import Room, RoomSettings

    check_address(host, token)
    console = console_for(False)
    settings = RoomSettings(
        data=data,
        bundle=bundle,
        decision=decision,
        engine=engine,
        threads=threads,
        queue_frames=queue,
        keep=keep,
        models=models,
        shadow=shadow,
        allow_colour=allow_colour,
        mm_per_px=mm_per_px,
    )
    metrics = Metrics()
    with bound(host, port) as listening, Room(settings, metrics.count_inspection) as room:
        scheme = "https" if certificate else "http"
        shown = f"[{host}]" if ":" in host else host
        url = f"{scheme}://{shown}:{listening.getsockname()[1]}/"

        def on_ready() -> None:
            active = room.active
            console.print(
                f"Serving {active.id} (decision {active.inspector.bundle.decision.id}, "
                f"{active.inspector.engine}) at {url}",
                highlight=False,
                soft_wrap=True,
            )
            console.print(f"Results in {room.store_path}. Ctrl-C ends it.", highlight=False)
            sys.stdout.flush()
            if open_page:
                import webbrowser

                webbrowser.open(url)

        files = (str(certificate), str(key)) if certificate and key else None
        run(create_app(room, metrics, token), listening, on_ready, files)
        console.print("Ending: answering what was taken.", highlight=False)
    return DONE


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a token of ASCII letters in {path}, got: {error}") from None
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise InputError(
            f"expected a token of at least {MIN_TOKEN_CHARACTERS} letters without spaces in {path};"
            " make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token
