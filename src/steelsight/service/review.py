"""What people say about inspected frames: queue, verdicts, agreement, a training set of them."""

import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from steelsight.defects import Verdict
from steelsight.errors import InputError, LabelError
from steelsight.exports import StoredResults, utc
from steelsight.masks import rle_runs, union_rle
from steelsight.service.guard import HttpError
from steelsight.service.room import Room, sent_name
from steelsight.store.queries import Complete
from steelsight.store.rows import Value, shown, stored
from steelsight.store.store import NoSuchReviewError

MOST_ITEMS = 200
_DOS_EPOCH = (1980, 1, 1, 0, 0, 0)

Who = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
"""A person's name."""


class PersonsVerdict(BaseModel):
    """What a person says about an inspection."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"id": 17, "verdict": "NG", "who": "Ann", "labels": {"3": "79381 4 79637 5"}}
        },
    )

    id: int = Field(ge=1, le=(1 << 63) - 1)
    """Of the inspection."""
    verdict: Verdict
    who: Who
    note: str = Field(default="", max_length=10_000)
    labels: dict[str, str] | None = None
    """All defects as the person sees them, RLE by type; none: nothing is said of regions."""


class Undo(BaseModel):
    """Who takes a verdict back."""

    model_config = ConfigDict(extra="forbid")

    who: Who


def router(room: Room) -> APIRouter:
    """``/v1/verdicts`` and ``/v1/review/...``."""
    routes = APIRouter(tags=["review"])
    add_verdicts(routes, room)

    @routes.get("/v1/review/queue")
    def queue(
        who: Annotated[Who, Query(description="The person who is to judge.")],
        kinds: Annotated[
            str,
            Query(
                pattern="^(ng|unknown|ok)(,(ng|unknown|ok)){0,2}$",
                description="Verdicts of the model.",
            ),
        ] = "ng,unknown,ok",
        limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 50,
    ) -> dict[str, Any]:
        """Frames that were kept and that this person has not judged, oldest first.

        What others said is not told before: a second opinion should be one.
        """
        verdicts = {kind.upper() for kind in kinds.split(",")}
        with Reviews(room.store_path) as store, store.one_state():
            return {
                "waiting": store.waiting(who),
                "items": [_item(row) for row in store.queue(who, verdicts, limit)],
            }

    @routes.get("/v1/review/agreement")
    def agreement() -> dict[str, Any]:
        """How far people and model, and two people, agree; with 95 % intervals."""
        from steelsight.agreement import report
        from steelsight.corrected import judgements, reviewed_frames

        with StoredResults(room.store_path) as store, store.one_state():
            return report(judgements(reviewed_frames(store)))

    @routes.post(
        "/v1/review/export",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/zip": {}}, "description": "The training set."},
            409: {"description": "Nobody has reviewed a frame that can be used."},
        },
    )
    def export() -> StreamingResponse:
        """Corrected labels and their frames as a folder that `steelsight train` reads; zip."""
        from steelsight.corrected import write_corrected

        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "corrected"
            with StoredResults(room.store_path) as store, store.one_state():
                try:
                    write_corrected(store, folder, room.kept_at)
                except InputError as error:
                    raise HttpError(409, "nothing-reviewed", str(error)) from None
            packed = stack.enter_context(tempfile.TemporaryFile())
            _pack(folder, packed)
            kept_open = stack.pop_all()
        headers = {
            "Content-Disposition": 'attachment; filename="corrected.zip"',
            "Content-Length": str(packed.seek(0, 2)),
        }
        return StreamingResponse(
            _chunks(packed, kept_open), media_type="application/zip", headers=headers
        )

    return routes


def add_verdicts(routes: APIRouter, room: Room) -> None:
    """A person's verdict, and taking it back."""

    @routes.post("/v1/verdicts", status_code=201)
    def verdicts(said: PersonsVerdict) -> dict[str, Any]:
        """Writes a person's verdict beside the model's; it is on the disk when this answers."""
        with StoredResults(room.store_path) as store:
            try:
                whole = store.inspection(said.id)
            except InputError:
                raise HttpError(
                    404, "no-inspection", f"expected an inspection, there is no number {said.id}"
                ) from None
        labels = None if said.labels is None else _checked(said, whole)
        number = room.review(said.id, said.verdict, said.who, said.note, labels)
        return {
            "review": number,
            "id": said.id,
            "verdict": said.verdict.value,
            "machine": whole.inspection.verdict.value,
            "who": said.who,
            "labels": labels,
        }

    @routes.post("/v1/verdicts/{review}/undo")
    def undo(review: int, said: Undo) -> dict[str, Any]:
        """Takes a verdict back; the store keeps it, with the time."""
        try:
            return {"id": room.undo_review(review, said.who), "review": review}
        except (NoSuchReviewError, OverflowError):
            raise HttpError(
                404, "no-verdict", f"expected a verdict of yours that stands, {review} is none"
            ) from None


def _checked(said: PersonsVerdict, whole: Complete) -> dict[str, str]:
    """Masks in canonical form, without empty ones.

    Raises:
        HttpError: 422, they do not fit the verdict, the model or the frame.
    """

    def refused(told: str) -> HttpError:
        return HttpError(422, "bad-labels", told)

    size_wh = whole.inspection.size_wh
    # Those of the model that was shown: another one may be active now.
    class_ids = [entry["id"] for entry in tomllib.loads(whole.manifest).get("classes", ())]
    if size_wh is None:
        raise refused("expected no labels, this frame could not be decoded; leave them out")
    labels = {}
    for class_id, rle in (said.labels or {}).items():
        if class_id not in class_ids:
            raise refused(f"expected types {', '.join(class_ids)}, got {class_id!r:.80}")
        try:
            rle_runs(rle, size_wh, where=f"labels, type {class_id}")
        except LabelError as error:
            raise refused(" ".join(str(error).split())) from None
        if canonical := union_rle([rle]):
            labels[class_id] = canonical
    if labels and said.verdict is not Verdict.NG:
        raise refused(f"expected no regions with {said.verdict.value}; say NG, or leave them out")
    return labels


class Reviews(StoredResults):
    """Questions about what waits for a person."""

    def waiting(self, who: str) -> dict[str, int]:
        """How many frames wait for this person, by the model's verdict."""
        values: dict[str, Value] = {"who": stored(who)}
        found = dict(self._rows(_WAITING, values))
        return {verdict.value: found.get(verdict.value, 0) for verdict in Verdict}

    def queue(self, who: str, verdicts: set[str], limit: int) -> Iterator[tuple[Any, ...]]:
        """Rows of what waits, oldest first; see ``_item``."""
        chosen = {f"v{n}": verdict for n, verdict in enumerate(sorted(verdicts))}
        names = ", ".join(f":{name}" for name in chosen)
        values: dict[str, Value] = {"who": stored(who), "limit": limit, **chosen}
        return self._rows(_QUEUE.format(verdicts=names), values)


_LEFT = """
FROM (SELECT DISTINCT inspection FROM sightings WHERE kept = 1) k
JOIN inspections i ON i.id = k.inspection
WHERE NOT EXISTS (
  SELECT 1 FROM reviews v WHERE v.inspection = i.id AND v.who = :who AND v.undone_ms IS NULL
)
"""

_WAITING = f"SELECT i.verdict, count(*) {_LEFT} GROUP BY i.verdict"

_QUEUE = f"""
SELECT i.id,
  (SELECT name FROM sightings s WHERE s.inspection = i.id ORDER BY s.run DESC, s.id DESC LIMIT 1),
  i.verdict, i.reason,
  (SELECT c.name FROM sightings s JOIN coils c ON c.id = s.coil WHERE s.inspection = i.id LIMIT 1),
  i.inspected_ms, i.faulty_probability, i.n_defects,
  (SELECT count(DISTINCT who) FROM reviews v WHERE v.inspection = i.id AND v.undone_ms IS NULL)
{_LEFT} AND i.verdict IN ({{verdicts}}) ORDER BY i.id LIMIT :limit
"""  # noqa: S608 - of constants; verdicts are names of parameters


def _item(row: tuple[Any, ...]) -> dict[str, Any]:
    id_, name, verdict, reason, coil, inspected_ms, probability, n_defects, n_said = row
    return {
        "id": id_,
        "image": sent_name(shown(name)),
        "verdict": verdict,
        "reason": reason,
        "coil": None if coil is None else shown(coil),
        "inspected": utc(inspected_ms),
        "faulty_probability": probability,
        "defects": n_defects,
        "n_said": n_said,
    }


def _pack(folder: Path, target: IO[bytes]) -> None:
    """A zip of all files; the same files give the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _DOS_EPOCH)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w") as packed:
                while chunk := source.read(1 << 20):
                    packed.write(chunk)


def _chunks(packed: IO[bytes], kept_open: ExitStack) -> Iterator[bytes]:
    with kept_open:
        packed.seek(0)
        while chunk := packed.read(1 << 20):
            yield chunk
