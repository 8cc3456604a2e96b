import random
import threading
from dataclasses import replace
from fnmatch import fnmatchcase

import apsw
import pytest
from tests.store.results import key_of, result, run_of

from steelsight.defects import Reason, Verdict
from steelsight.errors import InputError, StoreError
from steelsight.store.queries import Filter, Results, Sort
from steelsight.store.store import Store

SCALES = {1: 0.5, 2: 0.8, 3: 0.5}
VERDICTS = list(Verdict)


class Model:
    """The same questions, answered in Python from what was added."""

    def __init__(self):
        self.inspections = {}  # id -> (Inspection, inspected_ms)
        self.sightings = {}  # (run, name) -> (position, id, coil)
        self.reviews = []  # (id, verdict, who, note)

    def rows(self, where):
        found = []
        for (run, name), (position, id_, coil) in self.sightings.items():
            one, inspected_ms = self.inspections[id_]
            later = any(
                other_run > run and other_name == name and other[1] == id_
                for (other_run, other_name), other in self.sightings.items()
            )
            scale = SCALES.get(run) or where.mm_per_px
            near = [
                d
                for d in one.defects
                if (where.class_id is None or d.class_id == where.class_id)
                and (
                    where.within_edge_mm is None or self.edge_px(d) * scale <= where.within_edge_mm
                )
            ]
            said = [r for r in self.reviews if r[0] == id_]
            overruled = bool(said) and said[-1][1] is not one.verdict
            by_defect = where.class_id is not None or where.within_edge_mm is not None
            wanted = (
                (not later if where.run is None else run == where.run)
                and (where.verdict is None or one.verdict is where.verdict)
                and (where.reason is None or one.reason is where.reason)
                and (where.coil is None or coil == where.coil)
                and (where.name is None or fnmatchcase(name, where.name))
                and (where.since_ms is None or inspected_ms >= where.since_ms)
                and (where.overruled is None or overruled is where.overruled)
            )
            if wanted:
                listed = not by_defect or bool(near)
                overruling = said[-1][1:] if overruled else (None, None, None)
                found.append((run, position, name, id_, one, coil, near, listed, overruling))
        return sorted(found, key=lambda row: row[:3])

    @staticmethod
    def edge_px(defect):
        x, _, w, _ = defect.bbox_xywh
        return min(x, 1600 - x - w)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A store of 3 runs and the model of it."""
    path = tmp_path_factory.mktemp("queries") / "store.sqlite"
    rng = random.Random(5)
    model = Model()
    clock = [0.0]
    with Store(path, group_ms=LONG_MS, clock=lambda: clock[0]) as store:
        for run_id, scale in SCALES.items():
            assert store.begin(run_of(f"run {run_id}", scale)) == run_id
            futures = []
            for position in range(90):
                # Every second frame again in another run; some twice in one.
                number = rng.choice([position, position + 1000 * run_id, position // 2])
                name = f"{rng.choice('ab')}/{position % 80}.jpg"
                coil = rng.choice([None, "coil 1", "coil 2", "coil 3"])
                clock[0] = float(number % 40)
                one = result(number, name=name)
                key = None if number % 11 == 0 else key_of(number)
                future = store.add(run_id, position, "/o", one, key, coil)
                store.finish(run_id, complete=run_id != 3)
                id_ = future.result()
                model.inspections.setdefault(id_, (one, int(clock[0] * 1000)))
                model.sightings[run_id, name] = (position, id_, coil)
                futures.append(id_)
            for id_ in rng.sample(futures, 30):
                if (id_,) in store._reader.execute("SELECT id FROM inspections").fetchall():
                    verdict = rng.choice(VERDICTS)
                    store.review(id_, verdict, rng.choice(["Ada", "Bob"]), "note")
                    said = (id_, verdict, None, "note")
                    model.reviews.append(said)
    # Who said it is taken from the file: it is no condition.
    with Results(path) as results:
        model.reviews = [(r.inspection, r.verdict, r.who, r.note) for r in results.reviews()]
    return path, model


LONG_MS = 3_600_000


@pytest.fixture
def results(both):
    with Results(both[0]) as opened:
        yield opened


@pytest.fixture
def model(both):
    return both[1]


def filters(count):
    rng = random.Random(11)
    choices = {
        "verdict": VERDICTS,
        "reason": [Reason.BLANK, Reason.NOT_LOCALISED],
        "class_id": ["1", "3", "none"],
        "coil": ["coil 1", "coil 2", "none"],
        "run": [1, 2, 3, 9],
        "name": ["a/*", "*1?.jpg", "b/[1-3]*", "A/*"],
        "since_ms": [0, 12_000, 39_000, 10**9],
        "within_edge_mm": [0, 20.0, 64.0, 10_000.0],
        "overruled": [True, False],
    }
    for name, values in choices.items():
        yield from (Filter(**{name: value}) for value in values)
    for _ in range(count):
        names = rng.sample(list(choices), rng.randint(0, 4))
        yield Filter(**{name: rng.choice(choices[name]) for name in names})


class TestAgainstTheModel:
    @pytest.mark.parametrize("where", list(filters(120)), ids=str)
    def test_inspections_and_defects(self, results, model, where):
        wanted = model.rows(where)
        listed = [row for row in wanted if row[7]]
        rows = list(results.inspections(where))
        assert [(r.run, r.name, r.id, r.coil) for r in rows] == [
            (run, name, id_, coil) for run, _, name, id_, _, coil, *_ in listed
        ]
        for row, (*_, one, _, _, _, overruling) in zip(rows, listed, strict=True):
            assert row.verdict is one.verdict
            assert row.reason is one.reason
            assert row.faulty_probability == one.faulty_probability
            assert row.n_defects == len(one.defects)
            assert row.defect_area_px == sum(d.area_px for d in one.defects)
            assert (row.model, row.decision, row.engine) == (one.model, one.decision, one.engine)
            assert (row.overruled_verdict, row.overruled_by, row.overruled_note) == overruling
        assert results.count_inspections(where) == len(rows)
        # Defects come as they were written: by the id of their inspection.
        found = list(results.defects(where))
        assert sorted((d.run, d.name, d.inspection, d.defect.rle) for d in found) == sorted(
            (run, name, id_, d.rle) for run, _, name, id_, _, _, near, *_ in wanted for d in near
        )
        assert [(d.inspection, d.ordinal) for d in found] == sorted(
            (d.inspection, d.ordinal) for d in found
        )
        for row in found:
            assert row.edge_px == model.edge_px(row.defect)
            assert row.edge_mm == row.edge_px * SCALES[row.run]
            assert row.defect in model.inspections[row.inspection][0].defects
        assert results.count_defects(where) == len(found)

    def test_pages(self, results):
        everything = list(results.inspections())
        pages = [list(results.inspections(limit=7, offset=i)) for i in range(0, 400, 7)]
        assert [row for page in pages for row in page] == everything
        defects = list(results.defects())
        pages = [list(results.defects(limit=7, offset=i)) for i in range(0, 400, 7)]
        assert [row for page in pages for row in page] == defects

    @pytest.mark.parametrize("sort", list(Sort))
    def test_orders(self, results, sort):
        rows = list(results.inspections(sort=sort))
        assert set(rows) == set(results.inspections())
        values = {
            Sort.RUN: lambda row: row.run,
            Sort.NEWEST: lambda row: -row.id,
            Sort.FAULTY: lambda row: -(row.faulty_probability or -1.0),
            Sort.AREA: lambda row: -row.defect_area_px,
            Sort.DEFECTS: lambda row: -row.n_defects,
        }
        assert [values[sort](row) for row in rows] == sorted(values[sort](row) for row in rows)
        assert list(results.inspections(sort=sort, limit=20)) == rows[:20]

    @pytest.mark.parametrize("since_ms", [None, 15_000, 39_000])
    def test_worst_coils(self, results, model, since_ms):
        frames = {}
        for _, id_, coil in model.sightings.values():
            one, inspected_ms = model.inspections[id_]
            if coil is not None and (since_ms is None or inspected_ms >= since_ms):
                at = frames.setdefault(coil, {})
                at[one.sha256] = max(at.get(one.sha256, 0), id_)
        wanted = []
        for coil, ids in frames.items():
            of_coil = [model.inspections[id_][0] for id_ in ids.values()]
            defects = [d for one in of_coil for d in one.defects]
            wanted.append(
                (
                    coil,
                    len(of_coil),
                    sum(one.verdict is Verdict.NG for one in of_coil),
                    sum(one.verdict is Verdict.UNKNOWN for one in of_coil),
                    len(defects),
                    sum(d.area_px for d in defects),
                )
            )
        wanted.sort(key=lambda row: (-row[2], -row[4], -row[5], row[0]))
        assert results.worst_coils(since_ms) == wanted
        assert results.worst_coils(since_ms, limit=1) == wanted[:1]

    def test_counts_add_up(self, results, model):
        for row in results.counts():
            verdicts = [
                model.inspections[id_][0].verdict
                for (run, _), (_, id_, _) in model.sightings.items()
                if run == row.run
            ]
            assert row.seen == row.ok + row.ng + row.unknown == len(verdicts)
            assert (row.ok, row.ng, row.unknown) == tuple(map(verdicts.count, VERDICTS))
        assert [row.run for row in results.counts()] == [1, 2, 3]

    def test_runs(self, results):
        assert [(row.id, row.run, row.complete) for row in results.runs()] == [
            (id_, run_of(f"run {id_}", scale), id_ != 3) for id_, scale in SCALES.items()
        ]

    def test_one_complete(self, results, model):
        for (run, name), (position, id_, coil) in model.sightings.items():
            complete = results.inspection(id_)
            one, inspected_ms = model.inspections[id_]
            last = complete.sightings[0]
            assert complete.inspection.image == last.name
            assert replace(complete.inspection, image=one.image) == one
            assert complete.inspected_ms == inspected_ms
            assert (run, position, name, "/o", coil) in {
                (s.run, s.position, s.name, s.origin, s.coil) for s in complete.sightings
            }
            assert last.run == max(s.run for s in complete.sightings)
            assert complete.origin == "/o"
            assert complete.run == results.runs()[last.run - 1]
            facts = run_of("")
            assert (complete.manifest, complete.decision) == (facts.manifest, facts.decision)
            assert complete.settings == facts.settings
            assert complete.model_sha256 == facts.model_sha256
            assert complete.decision_sha256 == facts.decision_sha256
            assert [(r.inspection, r.verdict, r.who, r.note) for r in complete.reviews] == [
                said for said in model.reviews if said[0] == id_
            ]
            assert all(r.overruled == (r.verdict is not one.verdict) for r in complete.reviews)


def test_known_by_its_key(results, both, model):
    seen = {id_ for _, id_, _ in model.sightings.values()}
    keyed = [id_ for id_ in sorted(seen) if results.inspection(id_).key is not None]
    for id_ in keyed[:20]:
        known = results.known(results.inspection(id_).key)
        assert replace(known, image="") == replace(model.inspections[id_][0], image="")
    assert results.known(bytes(32)) is None


class TestScale:
    def test_a_run_without_scale_is_not_left_out_unseen(self, path):
        with Store(path, group_ms=1) as store:
            with_scale, without = store.begin(run_of("a", 0.5)), store.begin(run_of("b", None))
            for run, number in ((with_scale, 1), (without, 2), (without, 5)):
                store.add(run, 0, "/o", result(number), key_of(number)).result()
        with Results(path) as results:
            where = Filter(within_edge_mm=1e6)
            for ask in (
                results.count_inspections,
                results.count_defects,
                lambda where: list(results.inspections(where)),
                lambda where: list(results.defects(where)),
            ):
                with pytest.raises(InputError, match="scale of run 2"):
                    ask(where)
            assert results.count_defects(replace(where, run=with_scale)) == 1
            assert results.count_defects(replace(where, mm_per_px=2.0)) == 4
            assert results.count_inspections(replace(where, mm_per_px=2.0)) == 3
            edges_mm = [row.edge_mm for row in results.defects(Filter())]
            assert edges_mm[0] is not None
            assert edges_mm[1:] == [None] * 3

    @pytest.mark.parametrize("scale", [0.1, 0.3, 1 / 3, 0.7, 2.5])
    def test_the_limit_itself_is_within(self, path, scale):
        with Store(path, group_ms=1) as store:
            store.add(store.begin(run_of("a", scale)), 0, "/o", result(2), key_of(2)).result()
        with Results(path) as results:
            for row in results.defects():
                near = Filter(within_edge_mm=row.edge_px * scale)
                assert row in set(results.defects(near))
                nearer = Filter(within_edge_mm=row.edge_px * scale * (1 - 1e-12) - 1e-300)
                assert row.edge_px == 0 or row not in set(results.defects(nearer))


class TestErrors:
    def test_no_such_inspection(self, results):
        with pytest.raises(InputError, match="no number 99999"):
            results.inspection(99999)
        assert results.count_inspections() > 0

    def test_a_reason_of_another_version(self, path, run):
        with Store(path) as store:
            store.add(store.begin(run), 0, "/o", result(3), key_of(3))
        with apsw.Connection(str(path)) as connection:
            connection.execute("UPDATE inspections SET reason = 'too-cold'")
        with Results(path) as results:
            with pytest.raises(StoreError, match="too-cold"):
                list(results.inspections())
            with pytest.raises(StoreError, match="too-cold"):
                results.inspection(1)

    def test_an_empty_store(self, path):
        Store(path).close()
        with Results(path) as results:
            assert list(results.inspections()) == list(results.defects()) == []
            assert results.worst_coils() == results.counts() == results.runs() == []
            assert results.count_inspections(Filter(within_edge_mm=5)) == 0


class TestBesideAWriter:
    def test_a_reader_sees_whole_groups_and_blocks_nobody(self, path, run):
        group, seen, errors = 8, [], []
        stop = threading.Event()

        def read():
            try:
                while not stop.is_set():
                    with Results(path) as results:
                        seen.append(results.count_inspections())
                        assert len(list(results.inspections())) >= seen[-1]
            except BaseException as error:
                errors.append(error)

        with Store(path, group_ms=LONG_MS, group_frames=group) as store:
            run_id = store.begin(run)
            reader = threading.Thread(target=read)
            reader.start()
            try:
                for start in range(0, 60 * group, group):
                    futures = [
                        store.add(run_id, i, "/o", result(i), key_of(i))
                        for i in range(start, start + group)
                    ]
                    for future in futures:
                        future.result(60)
            finally:
                stop.set()
                reader.join()
        assert not errors
        assert seen == sorted(seen)
        assert all(count % group == 0 for count in seen)

    def test_a_slow_reader_sees_one_state_and_the_writer_goes_on(self, store, run):
        run_id = store.begin(run)
        for i in range(100):
            future = store.add(run_id, i, "/o", result(i), key_of(i))
        future.result()
        with Results(store.path) as results:
            slow = results.inspections()
            next(slow)
            for i in range(100, 200):
                future = store.add(run_id, i, "/o", result(i), key_of(i))
            assert future.result(60)
            assert len(list(slow)) == 99
            assert results.count_inspections() == 200


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (Filter(class_id="3", within_edge_mm=50), "defects_by_edge"),
        (Filter(overruled=True), "reviews_by_inspection"),
        (Filter(coil="coil 1"), "sightings_by_coil"),
        (Filter(run=1), "sightings_by_position"),
    ],
    ids=str,
)
def test_questions_use_their_index(results, where, index):
    """An index that is not used costs every insertion, and the answer its 200 ms."""
    plans = []
    results._connection.exec_trace = lambda _, sql, values: plans.append((sql, values)) or True
    list(results.inspections(where))
    results._connection.exec_trace = None
    sql, values = plans[-1]
    steps = results._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    assert index in " ".join(step[-1] for step in steps)
