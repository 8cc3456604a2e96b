"""The Open Inference Protocol (V2), so that clients of Triton and KServe work as they are.

https://github.com/kserve/open-inference-protocol. The model has one input and two outputs:

- ``image``: BYTES ``[N]``, encoded images (base64 in JSON, raw with the binary extension), or
  UINT8 ``[N, H, W]`` or ``[N, H, W, 3]`` RGB, pixels.
- ``verdict``: BYTES ``[N]``, OK, NG or UNKNOWN; ``result``: BYTES ``[N]``, result lines.
"""

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steelsight import __version__
from steelsight.service.api import (
    MAX_BODY_BYTES,
    accepting,
    answer_json,
    answer_of,
    read_body,
    safe_name,
    submit_patiently,
)
from steelsight.service.guard import HttpError
from steelsight.service.room import Room

HEADER_LENGTH = "inference-header-content-length"
OUTPUTS = ("verdict", "result")
MAX_FRAMES = 64


_EXAMPLE = {
    "id": "coil-7",
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["/9j/4AAQSkZJRg..."]}],
    "outputs": [{"name": "verdict"}],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "examples": [_EXAMPLE]}}},
    }
}


class _Input(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[int] = Field(min_length=1, max_length=4)
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str


class _Inference(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str | None = Field(default=None, max_length=1000)
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] = Field(default_factory=list)


def router(room: Room) -> APIRouter:
    """All routes of ``/v2``."""
    routes = APIRouter(tags=["Open Inference Protocol"])

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": "steelsight", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process answers; true also where the queue is full."""
        return {"live": True}

    @routes.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        """Frames are taken."""
        return JSONResponse({"ready": room.is_ready}, 200 if room.is_ready else 503)

    @routes.get("/v2/models/{name}")
    @routes.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs."""
        name, version = _known(room, name, version)
        return {
            "name": name,
            "versions": [version],
            "platform": room.active.inspector.engine,
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": n, "datatype": "BYTES", "shape": [-1]} for n in OUTPUTS],
        }

    @routes.get("/v2/models/{name}/ready")
    @routes.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> JSONResponse:
        """Whether this model is the active one, and takes frames."""
        name, _ = _known(room, name, version)
        return JSONResponse({"name": name, "ready": room.is_ready}, 200 if room.is_ready else 503)

    @routes.post("/v2/models/{name}/infer", openapi_extra=_BODY)
    @routes.post("/v2/models/{name}/versions/{version}/infer", openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> JSONResponse:
        """Inspects images; each is one frame of the queue."""
        name, version = _known(room, name, version)
        asked, images = _images(await read_body(request), request.headers.get(HEADER_LENGTH))
        accepting(room.check_place)
        label = safe_name(asked.id or "") or "image"
        # The first finds a place, the others wait for theirs.
        jobs = [await submit_patiently(room, image, f"{label}-{n}") for n, image in images]
        answers = await asyncio.gather(*(answer_of(room, job) for job in jobs))
        values = {
            "verdict": [one.inspection.verdict.value for one in answers],
            "result": [json.dumps(answer_json(one), ensure_ascii=False) for one in answers],
        }
        wanted = [one.name for one in asked.outputs] or list(OUTPUTS)
        outputs = [
            {"name": n, "datatype": "BYTES", "shape": [len(answers)], "data": values[n]}
            for n in wanted
        ]
        said: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
        return JSONResponse(said | ({"id": asked.id} if asked.id else {}))

    return routes


def _known(room: Room, name: str, version: str | None) -> tuple[str, str]:
    own_name, _, own_version = room.active.id.rpartition("@")
    if name not in (own_name, room.active.id) or version not in (None, own_version):
        raise HttpError(
            404, "no-model", f"expected {own_name}, version {own_version}; got another model"
        )
    return own_name, own_version


def _images(body: bytes, header_length: str | None) -> tuple[_Inference, list[tuple[int, bytes]]]:
    """The request, and its images with their numbers, as encoded bytes.

    Raises:
        HttpError: 400, with what is wrong.
    """
    try:
        length = len(body) if header_length is None else int(header_length)
        if not 0 <= length <= len(body):
            raise ValueError(f"{HEADER_LENGTH} {length} of {len(body)} bytes")
        asked = _Inference.model_validate_json(body[:length])
        (given,) = asked.inputs
        if given.name != "image":
            raise ValueError(f"input {given.name!r}")
        if unknown := [one.name for one in asked.outputs if one.name not in OUTPUTS]:
            raise ValueError(f"output {unknown[0]!r}")
        return asked, list(enumerate(_decoded(given, body[length:])))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        told = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        told = " ".join(str(error).split())[:200]
    raise HttpError(
        400,
        "no-inference",
        "expected an input 'image' of BYTES [N] or UINT8 [N, H, W], outputs verdict and result, "
        f"got {told}",
    )


def _decoded(given: _Input, binary: bytes) -> Iterator[bytes]:
    size = given.parameters.get("binary_data_size")
    if any(length < 0 for length in given.shape):
        raise ValueError(f"shape {given.shape}")
    if given.shape[0] > MAX_FRAMES:
        raise ValueError(f"{given.shape[0]} images, more than {MAX_FRAMES}")
    elements = math.prod(given.shape)
    if given.datatype == "BYTES":
        images = list(_byte_elements(binary, size) if size is not None else _base64(given.data))
        if len(images) != elements:
            raise ValueError(f"{len(images)} images for shape {given.shape}")
        yield from images
    elif given.datatype == "UINT8" and (len(given.shape) == 3 or given.shape[3:] == [3]):
        if elements > MAX_BODY_BYTES:
            raise ValueError(f"shape {given.shape}, more than {MAX_BODY_BYTES} bytes")
        values = (
            np.frombuffer(binary, np.uint8)
            if size is not None
            else np.array(given.data or [], np.uint8).reshape(-1)
        )
        if values.size != elements or not elements:
            raise ValueError(f"{values.size} values for shape {given.shape}")
        for pixels in values.reshape(given.shape):
            # A file, so that the frame can be kept, hashed and replayed as any other.
            bgr = pixels[..., ::-1] if pixels.ndim == 3 else pixels
            done, png = cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, 1))
            if not done:
                raise ValueError(f"shape {given.shape}")
            yield png.tobytes()
    else:
        raise ValueError(f"datatype {given.datatype!r} with shape {given.shape}")


def _byte_elements(binary: bytes, size: object) -> Iterator[bytes]:
    """Elements of a BYTES tensor: four bytes of length, little-endian, before each."""
    if size != len(binary):
        raise ValueError(f"binary_data_size {size!r} with {len(binary)} bytes")
    start = 0
    while start < len(binary):
        length = int.from_bytes(binary[start : start + 4], "little")
        end = start + 4 + length
        if end > len(binary):
            raise ValueError("an element that ends behind the body")
        yield binary[start + 4 : end]
        start = end


def _base64(data: list[Any] | None) -> Iterator[bytes]:
    for text in data or ():
        try:
            yield base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"data that is no base64 ({error})") from None
