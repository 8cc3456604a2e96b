"""The HTTP interface for machines: ``/v1`` of our own, ``/metrics``.

A body is counted while it comes; no URL is ever fetched. An answer with a verdict is on the disk.
UNKNOWN is an answer (200), not an error: the frame was looked at, and nothing can be said.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import numpy as np
from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from steelsight.defects import Reason, Verdict
from steelsight.errors import InputError, SteelsightError, escaped
from steelsight.exports import StoredResults, result_facts, review_facts
from steelsight.png import encode_png
from steelsight.service.guard import HttpError
from steelsight.service.room import Answer, Job, QueueFullError, Room, sent_name
from steelsight.store.queries import Complete, Filter, Sort

T = TypeVar("T")

SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/webp": ".webp",
    "application/octet-stream": "",
}
_MAGIC = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n": "image/png", b"BM": "image/bmp"}
MAX_BODY_BYTES = 64 << 20
MAX_BATCH_BYTES = 1 << 30
MAX_BATCH_FRAMES = 1000
BODY_PATIENCE_S, BATCH_PATIENCE_S = 30.0, 600.0
"""For a whole body."""
MAX_NAME_CHARACTERS = 255
MAX_ROWS = 1000
SAMPLES = (2, 6, 3, 21, 39, 12)
"""Frames of a drawn coil: each type is on one that the shipped model finds; the last is clean."""
SAMPLE_SEED = 7
_FAULTY: dict[int | str, dict[str, Any]] = {
    500: {"description": "The service failed; `error.id` is in its log."},
    503: {"description": "The queue is full, or the service is ending; see `Retry-After`."},
}


class Activation(BaseModel):
    """Which bundle of the models folder is to be used."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "default"}})

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """A folder below ``--models``, or ``default``."""


def router(room: Room, metrics_text: Callable[[], bytes], *, may_activate: bool) -> APIRouter:
    """All routes of ``/v1``, and ``/metrics``.

    Args:
        room: does the work.
        metrics_text: what Prometheus reads.
        may_activate: the service has a token, so that not everybody can change its model.
    """
    routes = APIRouter()
    add_inspect(routes, room)
    add_batch(routes, room)
    add_explore(routes, room)
    add_results(routes, room)
    add_frames(routes, room)
    add_models(routes, room, may_activate=may_activate)

    @routes.get("/metrics", tags=["service"])
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


# ---------------------------------------------------------------------------------------- inspect


def add_inspect(routes: APIRouter, room: Room) -> None:
    """Frames in, result lines out."""

    @routes.post(
        "/v1/inspect",
        tags=["inspect"],
        responses={
            200: {"content": {"application/json": {"example": EXAMPLE}}},
            400: {"description": "The body is not what its headers say."},
            408: {"description": "The body did not come in time."},
            413: {"description": "The body is too large."},
            415: {"description": "The content type is no image's."},
            **_FAULTY,
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}} for kind in SUFFIXES
                },
            }
        },
    )
    async def inspect(
        request: Request,
        overlay: Annotated[bool, Query(description="Add a picture with outlines.")] = False,
        masks: Annotated[
            str, Query(pattern="^(rle|png|none)$", description="How regions are told.")
        ] = "rle",
        deadline_ms: Annotated[
            float | None,
            Query(gt=0, le=600_000, description="Without a verdict by then it is UNKNOWN."),
        ] = None,
        x_frame_name: Annotated[
            str | None, Header(description="Percent-encoded UTF-8.", max_length=2000)
        ] = None,
        x_coil: Annotated[str | None, Header(max_length=2000)] = None,
        x_position: Annotated[
            int | None, Header(ge=0, le=1 << 40, description="Number of the frame on its coil.")
        ] = None,
        content_digest: Annotated[
            str | None, Header(description="RFC 9530, sha-256 or sha-512.", max_length=500)
        ] = None,
    ) -> JSONResponse:
        """Inspects one frame; its body is the encoded image.

        The answer is the result line, and `id`: of the inspection in the store, where it is already
        on the disk.
        """
        suffix = _suffix(request)
        name = _name(x_frame_name)
        coil = None if x_coil is None else unquote(x_coil)
        accepting(room.check_place)
        image = await read_body(request)
        _check_digest(content_digest, image)
        if name is None:
            name = f"{hashlib.sha256(image).hexdigest()[:16]}{suffix}"
        job = accepting(
            lambda: room.submit(
                image, name, coil=coil, position=x_position, deadline_ms=deadline_ms
            )
        )
        answer = await answer_of(room, job)
        facts = answer_json(answer)
        if overlay or masks == "png":
            facts |= await run_in_threadpool(_pictures, room, answer, image, overlay, masks)
        if masks != "rle":
            for defect in facts["defects"]:
                del defect["rle"]
        return JSONResponse(facts)


def add_batch(routes: APIRouter, room: Room) -> None:
    """Many frames in one request."""

    @routes.post(
        "/v1/inspect/batch",
        tags=["inspect"],
        responses={413: {"description": "Too many bytes."}, **_FAULTY},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "frames": {
                                    "type": "array",
                                    "items": {"type": "string", "format": "binary"},
                                }
                            },
                        }
                    }
                },
            }
        },
    )
    async def batch(
        request: Request, x_coil: Annotated[str | None, Header(max_length=2000)] = None
    ) -> StreamingResponse:
        """Inspects the files of a form, in order; one line of JSON each, as they are done.

        Its frames wait for their places in the queue, so that single frames come in between.
        """
        coil = None if x_coil is None else unquote(x_coil)
        accepting(room.check_place)
        counting = _counting(request, MAX_BATCH_BYTES, BATCH_PATIENCE_S)
        counted = Request(request.scope, counting)
        try:
            form = await counted.form(max_files=MAX_BATCH_FRAMES, max_fields=0)
        except HttpError:
            raise
        except Exception as error:  # of the parser: several kinds
            told = " ".join(str(getattr(error, "detail", error)).split())
            raise HttpError(
                400,
                "no-form",
                f"expected multipart/form-data with at most {MAX_BATCH_FRAMES} files, got: {told}",
            ) from None
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HttpError(
                400, "no-form", "expected multipart/form-data with files, there are none"
            )
        return StreamingResponse(
            _lines(room, files, coil), media_type="application/x-ndjson; charset=utf-8"
        )


def add_explore(routes: APIRouter, room: Room) -> None:
    """Other thresholds, and frames to try."""

    @routes.post("/v1/explore/{inspection_id}", tags=["inspect"], responses=_FAULTY)
    async def explore(
        inspection_id: int,
        changes: Annotated[
            dict[str, Any],
            Body(examples=[{"types": {"3": {"pixel_from": 0.4, "min_area_px": 50}}}]),
        ],
    ) -> JSONResponse:
        """A frame of the last minute under other thresholds; nothing is stored."""
        try:
            inspection = await run_in_threadpool(room.explore, inspection_id, changes)
        except LookupError:
            raise HttpError(
                404,
                "not-at-hand",
                f"expected one of the last frames, {inspection_id} is not at hand; send it again",
            ) from None
        return JSONResponse(inspection.to_json() | {"id": inspection_id})

    @routes.get("/v1/samples", tags=["inspect"])
    async def samples() -> list[dict[str, str]]:
        """Drawn frames to try the service with."""
        numbers = range(1, len(SAMPLES) + 1)
        return [{"name": f"sample-{n}.jpg", "url": f"/v1/samples/{n}"} for n in numbers]

    @routes.get("/v1/samples/{number}", tags=["inspect"], response_class=Response)
    def sample(number: int) -> Response:
        """One of them; JPEG."""
        last = len(SAMPLES)
        if not 1 <= number <= last:
            raise HttpError(404, "no-sample", f"expected a sample from 1 to {last}")
        from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg

        coil = CoilConfig(frames=60, seed=SAMPLE_SEED, faulty_share=1.0)
        frame = draw_frame(coil, SAMPLES[number - 1], with_defects=number < last)
        return Response(encode_jpeg(frame.grey_hw), media_type="image/jpeg")


def shown_as(image: bytes) -> str | None:
    """Content type by the first bytes, of what browsers show."""
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if image.startswith(magic)), None)


def answer_json(answer: Answer) -> dict[str, Any]:
    """The result line with the id of its inspection."""
    return answer.inspection.to_json() | {"id": answer.id}


async def answer_of(room: Room, job: Job) -> Answer:
    """The answer, by the deadline if there is one."""
    future = asyncio.wrap_future(job.future)
    if job.deadline_ms != float("inf"):
        left_s = max(0.0, job.due_s - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait((future,), timeout=left_s)
        if not done:
            await run_in_threadpool(room.expire, job)
    try:
        return await future
    except SteelsightError as error:
        raise HttpError(
            507, "not-kept", f"the verdict could not be kept, so none is given: {error}"
        ) from None


async def read_body(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body, counted while it comes.

    Raises:
        HttpError: it is too large, too slow, or encoded.
    """
    chunks = bytearray()
    counting = _counting(request, most)
    while True:
        message = await counting()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "incomplete", "expected a whole body, the connection ended")
        chunks += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(chunks)


def _counting(
    request: Request, most: int, patience_s: float = BODY_PATIENCE_S
) -> Callable[[], Awaitable[Any]]:
    """``receive`` of a request that ends at a limit of bytes and of time."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "encoded", "expected a body as it is, got a Content-Encoding")
    length = request.headers.get("content-length", "0")
    too_large = HttpError(
        413, "too-large", f"expected at most {most} bytes; send a smaller frame, or fewer at once"
    )
    if not length.isdigit() or int(length) > most:
        raise too_large
    until_s = asyncio.get_running_loop().time() + patience_s
    counted = 0

    async def receive() -> Any:
        nonlocal counted
        try:
            async with asyncio.timeout_at(until_s):
                message = await request.receive()
        except TimeoutError:
            raise HttpError(
                408, "too-slow", f"expected the body within {patience_s:g} s; send it again"
            ) from None
        counted += len(message.get("body", b""))
        if counted > most:
            raise too_large
        return message

    return receive


async def _lines(room: Room, files: list[UploadFile], coil: str | None) -> AsyncIterator[str]:
    """A result line per file, in order; an error line for one that has no verdict."""
    waiting: deque[tuple[str, Job | HttpError]] = deque()
    positions = count()

    async def line() -> str:
        name, job = waiting.popleft()
        try:
            if isinstance(job, HttpError):
                raise job
            facts = answer_json(await answer_of(room, job))
        except HttpError as error:
            facts = {"image": name, "error": {"code": error.code, "message": error.message}}
        return json.dumps({"position": next(positions)} | facts, ensure_ascii=False) + "\n"

    for file in files:
        image = await file.read(MAX_BODY_BYTES + 1)
        await file.close()
        name = safe_name(file.filename or "") or "frame"
        try:
            if len(image) > MAX_BODY_BYTES:
                raise HttpError(
                    413, "too-large", f"expected a frame of at most {MAX_BODY_BYTES} bytes"
                )
            waiting.append((name, await submit_patiently(room, image, name, coil)))
        except HttpError as error:  # or the service is ending
            waiting.append((name, error))
        # Two for each thread keep it busy; the rest of the queue is for others.
        while len(waiting) >= 2 * room.workers:
            yield await line()
    while waiting:
        yield await line()


async def submit_patiently(room: Room, image: bytes, name: str, coil: str | None = None) -> Job:
    """Waits for a place in the queue.

    Raises:
        HttpError: 503, no more frames are taken.
    """
    while True:
        try:
            return room.submit(image, name, coil=coil)
        except QueueFullError as error:
            if not room.is_ready:
                raise _busy(error) from None
        await asyncio.sleep(0.02)


def _busy(error: QueueFullError) -> HttpError:
    headers = {"Retry-After": str(error.retry_after_s)}
    return HttpError(503, "queue-full", str(error), headers)


def accepting(work: Callable[[], T]) -> T:
    """Calls what takes a frame; a full queue is 503."""
    try:
        return work()
    except QueueFullError as error:
        raise _busy(error) from None


def _suffix(request: Request) -> str:
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0]
    try:
        return SUFFIXES[kind.strip().lower()]
    except KeyError:
        raise HttpError(
            415,
            "no-image-type",
            f"expected a content type of {', '.join(SUFFIXES)}, got {escaped(kind)[:80]}",
        ) from None


def _name(given: str | None) -> str | None:
    return None if given is None else safe_name(unquote(given)) or None


def safe_name(given: str) -> str:
    """As it was given, without what ends lines or reaches out of a folder."""
    text = escaped(given).replace("\\", "/").strip("/")
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[-MAX_NAME_CHARACTERS:]


def _check_digest(header: str | None, body: bytes) -> None:
    """Compares with every digest that we know (RFC 9530).

    Raises:
        HttpError: one differs, or none is known.
    """
    if header is None:
        return
    compared = 0
    for algorithm, encoded in re.findall(r"(sha-256|sha-512)=:([A-Za-z0-9+/=]*):", header):
        try:
            expected = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            expected = b""
        found = hashlib.new(algorithm.replace("-", ""), body).digest()
        if not hmac.compare_digest(expected, found):
            raise HttpError(
                400,
                "digest-mismatch",
                f"expected a body with the {algorithm} of Content-Digest, got another; it was "
                "damaged on its way: send it again",
            )
        compared += 1
    if not compared:
        raise HttpError(
            400,
            "no-digest",
            "expected Content-Digest with sha-256=:BASE64: or sha-512=:BASE64:, as in RFC 9530",
        )


def _pictures(
    room: Room, answer: Answer, image: bytes, overlay: bool, masks: str
) -> dict[str, Any]:
    """Base64 of what was asked for; empty where the frame could not be decoded."""
    from steelsight.report.overlays import class_masks, draw_overlay
    from steelsight.report.overlays import encode_jpeg as encode_overlay

    inspector = room.active.inspector
    frame = inspector.take_in(image, answer.inspection.image).frame
    facts: dict[str, Any] = {}
    if frame is None:
        return facts
    defects, classes = answer.inspection.defects, inspector.bundle.classes
    if overlay:
        picture = encode_overlay(draw_overlay(frame.grey_hw, defects, classes))
        facts["overlay_jpeg"] = base64.b64encode(picture).decode()
    if masks == "png":
        facts["masks_png"] = {
            class_id: base64.b64encode(encode_png(mask.astype(np.uint8) * 255, 8)).decode()
            for class_id, mask in class_masks(defects, frame.size_wh).items()
        }
    return facts


# ---------------------------------------------------------------------------------------- results


def add_results(routes: APIRouter, room: Room) -> None:
    """Questions to the store, and people's verdicts."""

    @routes.get("/v1/results", tags=["results"])
    def results(
        verdict: Verdict | None = None,
        reason: Reason | None = None,
        class_id: Annotated[str | None, Query(alias="type", max_length=100)] = None,
        coil: Annotated[str | None, Query(max_length=1000)] = None,
        run: Annotated[int | None, Query(ge=0, le=(1 << 63) - 1)] = None,
        overruled: bool | None = None,
        sort: Sort = Sort.NEWEST,
        limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 50,
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    ) -> dict[str, Any]:
        """Results of the store, newest first, and how many there are of each verdict."""
        where = Filter(
            verdict=verdict,
            reason=reason,
            class_id=class_id,
            coil=coil,
            run=run,
            overruled=overruled,
        )

        return _ask(room, lambda store: _listed(store, where, sort, limit, offset))

    @routes.get("/v1/results/{inspection_id}", tags=["results"])
    def result(inspection_id: int) -> dict[str, Any]:
        """All that is stored of one inspection."""
        name, whole = _found(room, inspection_id)
        facts = whole.inspection.to_json() | {"image": name}
        reviews = [review_facts(one) for one in whole.reviews]
        return {"id": whole.id} | facts | {"reviews": reviews}

    @routes.get("/v1/runs", tags=["results"])
    def runs() -> dict[str, Any]:
        """What ran, with which model and decision; ``seen == ok + ng + unknown``."""
        return _ask(room, _runs)


def add_frames(routes: APIRouter, room: Room) -> None:
    """Frames that were kept."""

    @routes.get(
        "/v1/results/{inspection_id}/frame",
        tags=["results"],
        response_class=Response,
        responses={404: {"description": "The frame was not kept."}},
    )
    def frame(inspection_id: int) -> Response:
        """The kept frame as it came; TIFF, which browsers do not show, as PNG."""
        _, whole = _found(room, inspection_id)
        image = room.kept(whole.origin)
        if image is None:
            raise HttpError(
                404,
                "not-kept",
                f"expected the frame of inspection {inspection_id}, it was not kept; --keep says "
                "which are",
            )
        kind = shown_as(image)
        if kind is None:
            taken = room.active.inspector.take_in(image, whole.inspection.image)
            if taken.frame is None:
                raise HttpError(
                    404, "not-shown", "expected a frame that browsers can show, it cannot be read"
                )
            kind, image = "image/png", encode_png(taken.frame.grey_hw, 8)
        # Strangers made it: nothing in it may run, and the browser must not guess.
        return Response(
            image,
            media_type=kind,
            headers={"Content-Security-Policy": "sandbox; default-src 'none'"},
        )


def _listed(
    store: StoredResults, where: Filter, sort: Sort, limit: int, offset: int
) -> dict[str, Any]:
    rows = list(store.inspections(where, sort=sort, limit=limit, offset=offset))
    counts = {verdict.value: n for verdict, n in store.by_verdict(where).items()}
    return {
        "matching": sum(counts.values()),
        "counts": counts,
        "results": [
            result_facts(row, store.types_on(row.id), store.said(row.id))
            | {"image": sent_name(row.name)}
            for row in rows
        ],
    }


def _runs(store: StoredResults) -> dict[str, Any]:
    counts = {row.run: row._asdict() for row in store.counts()}
    none = {"seen": 0, "ok": 0, "ng": 0, "unknown": 0}
    return {
        "runs": [
            counts.get(row.id, {"run": row.id} | none)
            | {
                "model": row.run.model_id,
                "decision": row.run.decision_sha256[:8],
                "engine": row.run.engine,
                "source": row.run.source,
                "started_ms": row.started_ms,
                "finished_ms": row.finished_ms,
                "complete": row.complete,
            }
            for row in store.runs()
        ]
    }


def _ask(room: Room, question: Callable[[StoredResults], T]) -> T:
    with StoredResults(room.store_path) as store, store.one_state():
        return question(store)


def _found(room: Room, inspection_id: int) -> tuple[str, Complete]:
    """The name that its sender gave, and all that is stored.

    Raises:
        HttpError: 404, there is no such inspection.
    """
    try:
        whole = _ask(room, lambda store: store.inspection(inspection_id))
    except (InputError, OverflowError):
        raise HttpError(
            404, "no-inspection", f"expected an inspection, there is no number {inspection_id}"
        ) from None
    return sent_name(whole.inspection.image), whole


# ----------------------------------------------------------------------------------------- models


def add_models(routes: APIRouter, room: Room, *, may_activate: bool) -> None:
    """Which models there are, which is active, and how to change it."""

    def folders() -> dict[str, Path]:
        found = {}
        if room.settings.models is not None and room.settings.models.is_dir():
            for manifest in sorted(room.settings.models.glob("*/manifest.toml")):
                found[manifest.parent.name] = manifest.parent
        return found

    @routes.get("/v1/models", tags=["models"])
    def models() -> dict[str, Any]:
        """The active model with its types and thresholds, and the names of others."""
        shadow = room.shadow
        return {
            "active": room.active.to_json(),
            "available": ["default", *folders()],
            "shadow": None
            if shadow is None
            else {
                "model": shadow.id,
                "frames": shadow.frames,
                "verdicts": dict(room.shadow_counts),
            },
        }

    @routes.post("/v1/models/activate", tags=["models"])
    def activate(wanted: Activation) -> dict[str, Any]:
        """Switches to another bundle: loads, checks, tests and warms it up, then takes it.

        Frames in work end on the old one. If anything is wrong nothing changes.
        """
        if not may_activate:
            raise HttpError(
                403,
                "no-token",
                "expected a service that was started with --token-file; start it so to change "
                "models",
            )
        known = folders()
        if wanted.name != "default" and wanted.name not in known:
            names = ", ".join(["default", *known])
            raise HttpError(404, "no-model", f"expected one of {names}, got {wanted.name}")
        settings = room.settings
        given = (settings.bundle, settings.decision)
        try:
            model = room.activate(*(given if wanted.name == "default" else (known[wanted.name],)))
        except SteelsightError as error:
            raise HttpError(
                409, "refused", f"{error}; the active model stays {room.active.id}"
            ) from None
        return {"active": model.to_json()}


EXAMPLE = {
    "image": "coil7-0001.jpg",
    "sha256": "5f0c...",
    "verdict": "NG",
    "reason": None,
    "detail": None,
    "faulty_probability": 0.93,
    "class_probabilities": {"1": 0.91, "2": 0.02, "3": 0.05, "4": 0.01},
    "defects": [
        {
            "class": "1",
            "area_px": 812,
            "bbox_xywh": [310, 20, 41, 37],
            "length_px": 52.1,
            "width_px": 19.8,
            "orientation_deg": 12.0,
            "probability": 0.88,
            "rle": "79381 4 79637 5",
        }
    ],
    "size_wh": [1600, 256],
    "model": "severstal-r50@d3023489",
    "decision": "1a2b3c4d",
    "engine": "onnxruntime-int8",
    "milliseconds": {"decode": 2.6, "gate": 40.2, "segment": 18.1, "decide": 0.4},
    "notes": [],
    "id": 17,
}
