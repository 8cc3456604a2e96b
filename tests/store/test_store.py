import json
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import apsw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.store.results import SIZE_WH, key_of, result, run_of

from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.errors import StoreError
from steelsight.store import store as store_module
from steelsight.store.queries import Results
from steelsight.store.store import NoSuchReviewError, Store

LONG_MS = 3_600_000


def same(given, taken) -> bool:
    """Whether a result line is equal to the byte but for the image and the times."""

    def line(inspection):
        return replace(inspection, image="", milliseconds={}).to_json_line()

    return line(given) == line(taken)


def rows(path, sql, *values):
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        return connection.execute(sql, values).fetchall()


# Without -0.0, which SQLite does not tell from 0.0.
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
texts = st.text(st.characters())
sizes = st.integers(1, 2**40)
defects = st.builds(
    Defect,
    class_id=st.text(min_size=1),
    area_px=sizes,
    bbox_xywh=st.tuples(sizes, sizes, sizes, sizes),
    length_px=numbers,
    width_px=numbers,
    orientation_deg=numbers,
    probability=numbers,
    rle=st.text("0123456789 "),
)
inspections = st.builds(
    result,
    st.integers(0, 100),
    name=texts.filter(bool),
    verdict=st.just(Verdict.NG),
    reason=st.none() | st.sampled_from(Reason),
    detail=st.none() | texts,
    faulty_probability=st.none() | numbers,
    class_probabilities=st.dictionaries(st.text(), numbers),
    defects=st.lists(defects, max_size=3).map(tuple),
    size_wh=st.tuples(sizes, sizes),
    notes=st.lists(texts, max_size=3).map(tuple),
    engine=st.text(),
)


class TestRoundTrip:
    @pytest.mark.parametrize("number", range(8))
    def test_gives_back_what_was_added(self, store, run, number):
        one = result(number)
        future = store.add(store.begin(run), 0, "/origin", one, key_of(number))
        id_ = future.result()
        found, back = store.known(key_of(number))
        assert found == id_
        assert back.image == ""
        assert same(one, back)
        assert back.milliseconds == one.milliseconds

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inspection=inspections)
    def test_gives_back_anything(self, store, run, inspection):
        self.count = getattr(self, "count", 0) + 1
        run_id = store.begin(run)
        store.add(run_id, 0, "/o", inspection, key_of(-self.count)).result()
        _, back = store.known(key_of(-self.count))
        assert same(inspection, back)
        assert replace(back, image="", milliseconds={}) == replace(
            inspection, image="", milliseconds={}
        )
        assert list(back.class_probabilities) == list(inspection.class_probabilities)

    def test_never_read(self, store, run):
        one = result(3, sha256=None, size_wh=None, reason=Reason.UNREADABLE)
        id_ = store.add(store.begin(run), 0, "/o", one, None).result()
        with Results(store.path) as results:
            assert same(one, results.inspection(id_).inspection)

    def test_numpy_scalars_become_numbers(self, store, run):
        plain = result(1)
        of_numpy = replace(
            plain,
            faulty_probability=np.float64(plain.faulty_probability),
            class_probabilities={k: np.float32(v) for k, v in plain.class_probabilities.items()},
            defects=tuple(
                replace(
                    d,
                    area_px=np.int64(d.area_px),
                    bbox_xywh=tuple(np.array(d.bbox_xywh)),
                    probability=np.float32(0.1),
                )
                for d in plain.defects
            ),
            size_wh=tuple(np.array(plain.size_wh)),
        )
        store.add(store.begin(run), 0, "/o", of_numpy, key_of(1)).result()
        back = store.known(key_of(1))[1]
        assert back.defects[0].probability == float(np.float32(0.1))
        assert back.class_probabilities["4"] == float(np.float32(plain.class_probabilities["4"]))
        json.dumps(back.to_json(), allow_nan=False)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"faulty_probability": float("nan")}, "finite"),
            ({"class_probabilities": {"1": float("inf")}}, "finite"),
            ({"sha256": "xyz"}, "hex"),
            ({"sha256": "AB" * 32}, "sha256"),
            ({"size_wh": None}, "size"),
            ({"model": "another@bbbbbbbb"}, "another@bbbbbbbb"),
            ({"decision": "eeeeeeee"}, "eeeeeeee"),
        ],
    )
    def test_refuses_what_it_could_not_give_back(self, store, run, changes, says):
        run_id = store.begin(run)
        with pytest.raises(ValueError, match=says):
            store.add(run_id, 0, "/o", result(1, **changes), key_of(1))

    def test_unknown_key(self, store):
        assert store.known(key_of(1)) is None

    def test_an_ok_that_was_tampered_with_is_no_ok(self, path, run):
        with Store(path) as store:
            store.add(store.begin(run), 0, "/o", result(0), key_of(0))
        with apsw.Connection(str(path)) as connection:
            connection.execute("UPDATE inspections SET reason = 'blank'")
        with Store(path) as store, pytest.raises(StoreError, match="damaged"):
            store.known(key_of(0))

    def test_a_lost_defect_is_damage(self, path, run):
        with Store(path) as store:
            store.add(store.begin(run), 0, "/o", result(2), key_of(2))
        with apsw.Connection(str(path)) as connection:
            connection.execute("DELETE FROM defects WHERE ordinal = 1")
        with Store(path) as store, pytest.raises(StoreError, match="damaged"):
            store.known(key_of(2))


class TestKeysAndNames:
    def test_the_first_of_a_key_stays(self, store, run):
        run_id = store.begin(run)
        first = store.add(run_id, 0, "/a", result(1), key_of(1)).result()
        second = store.add(run_id, 1, "/b", result(2), key_of(1)).result()
        assert first == second
        assert same(result(1), store.known(key_of(1))[1])
        assert rows(store.path, "SELECT count(*) FROM inspections") == [(1,)]
        assert rows(store.path, "SELECT count(*) FROM defects") == [(1,)]
        assert rows(store.path, "SELECT name FROM sightings ORDER BY position") == [
            ("frame 1.jpg",),
            ("frame 2.jpg",),
        ]

    def test_the_first_of_a_key_in_one_group(self, opened, run):
        store = opened(group_ms=LONG_MS)
        run_id = store.begin(run)
        futures = [store.add(run_id, i, "/o", result(i), key_of(1)) for i in range(5)]
        store.finish(run_id, complete=True)
        assert len({future.result() for future in futures}) == 1

    def test_the_last_of_a_name_stays(self, store, run):
        run_id = store.begin(run)
        store.add(run_id, 0, "/a", result(1, name="x"), key_of(1), "coil 1").result()
        id_ = store.add(run_id, 5, "/b", result(2, name="x"), key_of(2), "coil 2").result()
        found = rows(
            store.path,
            "SELECT position, origin, inspection, c.name "
            "FROM sightings s JOIN coils c ON c.id = coil",
        )
        assert found == [(5, "/b", id_, "coil 2")]
        # A keyed one is kept: the next run may know it.
        assert store.known(key_of(1)) is not None

    def test_an_unkeyed_one_nobody_refers_to_is_removed(self, store, run):
        run_id = store.begin(run)
        first = store.add(run_id, 0, "/a", result(2, name="x"), None).result()
        second = store.add(run_id, 0, "/a", result(2, name="x"), None).result()
        assert second > first
        assert rows(store.path, "SELECT id FROM inspections") == [(second,)]
        assert rows(store.path, "SELECT count(*) FROM defects") == [(2,)]

    def test_an_id_is_never_given_again(self, store, run):
        run_id = store.begin(run)
        kept = store.add(run_id, 0, "/a", result(1), key_of(1)).result()
        removed = store.add(run_id, 1, "/a", result(3, name="x"), None).result()
        store.add_known(run_id, 1, "/a", "x", kept).result()
        assert store.add(run_id, 2, "/a", result(2), key_of(2)).result() > removed

    def test_an_unkeyed_one_is_kept_while_another_run_shows_it(self, store, run):
        first_run, second_run = store.begin(run), store.begin(run_of("run 2"))
        first = store.add(first_run, 0, "/a", result(3), None).result()
        store.add_known(second_run, 0, "/a", result(3).image, first).result()
        store.add(first_run, 0, "/a", result(3), None).result()
        assert (first,) in rows(store.path, "SELECT id FROM inspections")

    def test_a_reviewed_one_is_kept(self, store, run):
        run_id = store.begin(run)
        first = store.add(run_id, 0, "/a", result(3), None).result()
        store.review(first, Verdict.NG, "Ada")
        store.add(run_id, 0, "/a", result(3), None).result()
        assert (first,) in rows(store.path, "SELECT id FROM inspections")
        with Results(store.path) as results:
            assert results.inspection(first).sightings == ()
            assert results.inspection(first).run is None
            assert results.inspection(first).origin is None
            assert [row.name for row in results.reviews()] == [None]

    def test_a_verdict_that_was_taken_back_stands_no_more(self, store, run):
        id_ = store.add(store.begin(run), 0, "/a", result(3), None).result()
        first = store.review(id_, Verdict.NG, "Ada", labels={"2": "1 3"})
        second = store.review(id_, Verdict.OK, "Ada")
        with pytest.raises(NoSuchReviewError, match="Bob"):
            store.undo_review(second, "Bob")
        assert store.undo_review(second, "Ada") == id_
        with pytest.raises(NoSuchReviewError):
            store.undo_review(second, "Ada")
        with Results(store.path) as results:
            assert [(row.id, row.labels) for row in results.reviews()] == [(first, {"2": "1 3"})]
            (row,) = results.inspections()
            assert (row.overruled_verdict is Verdict.NG) == (row.verdict is not Verdict.NG)
        assert len(rows(store.path, "SELECT id FROM reviews WHERE undone_ms > 0")) == 1

    def test_light_and_what_was_kept_are_stored(self, store, run):
        run_id = store.begin(run)
        store.add(run_id, 0, "/a", result(3), None, light=(61.5, 12.25), kept=True).result()
        store.add(run_id, 1, "/b", result(4), None).result()
        light = rows(store.path, "SELECT brightness, contrast FROM inspections ORDER BY id")
        assert light == [(61.5, 12.25), (None, None)]
        assert rows(store.path, "SELECT kept FROM sightings ORDER BY id") == [(1,), (None,)]

    def test_equal_content_under_two_names_is_one_inspection(self, store, run):
        run_id = store.begin(run)
        id_ = store.add(run_id, 0, "/a", result(1, name="a"), key_of(1)).result()
        assert store.add_known(run_id, 1, "/b", "b", id_).result() == id_
        assert rows(store.path, "SELECT name, inspection FROM sightings ORDER BY name") == [
            ("a", id_),
            ("b", id_),
        ]

    def test_one_row_by_natural_key(self, store, run):
        for key in ("run 1", "run 2"):
            run_id = store.begin(run_of(key))
            for number in range(4):
                store.add(run_id, number, "/o", result(number), None, "coil").result()
        for table, count in {
            "models": 1,
            "decisions": 1,
            "setups": 1,
            "coils": 1,
            "frames": 4,
        }.items():
            assert rows(store.path, f"SELECT count(*) FROM {table}") == [(count,)], table

    def test_names_that_are_no_unicode(self, store, run):
        name, origin = "caf\udce9.jpg", "/data/caf\udce9.jpg"
        run_id = store.begin(replace(run, command=f"inspect {name}"))
        id_ = store.add(run_id, 0, origin, result(1, name=name), key_of(1), name).result()
        store.review(id_, Verdict.OK, name, name)
        with Results(store.path) as results:
            complete = results.inspection(id_)
            assert complete.inspection.image == name
            assert complete.origin == origin
            assert complete.sightings[0].coil == name
            assert complete.reviews[0].note == name
            assert results.runs()[0].run.command == f"inspect {name}"


class TestRuns:
    def test_the_same_key_continues_a_run(self, path, run):
        with Store(path, clock=lambda: 10.0) as store:
            first = store.begin(run)
            store.add(first, 0, "/o", result(0), key_of(0))
            store.finish(first, complete=False)
        with Store(path, clock=lambda: 20.0) as store:
            assert store.begin(replace(run, command="again")) == first
            with Results(path) as results:
                (row,) = results.runs()
            assert (row.started_ms, row.finished_ms, row.complete) == (10_000, None, False)
            store.add(first, 1, "/o", result(1), key_of(1))
            store.finish(first, complete=True)
        with Results(path) as results:
            (row,) = results.runs()
            assert (row.started_ms, row.finished_ms, row.complete) == (10_000, 20_000, True)
            assert row.run == replace(run, command="again")
            assert results.counts()[0].seen == 2

    def test_another_key_is_another_run(self, store):
        assert store.begin(run_of("a")) != store.begin(run_of("b"))

    def test_results_keep_the_settings_they_were_made_with(self, path, run):
        with Store(path) as store:
            first = store.add(store.begin(run), 0, "/o", result(0), key_of(0))
        with Store(path) as store:
            changed = replace(run, settings='{"version":"1"}')
            second = store.add(store.begin(changed), 1, "/o", result(1), key_of(1))
        with Results(path) as results:
            assert results.inspection(first.result()).settings == '{"version":"0"}'
            assert results.inspection(second.result()).settings == '{"version":"1"}'

    def test_a_run_of_nobody(self, store):
        for call in (
            lambda: store.add(7, 0, "/o", result(0), None),
            lambda: store.add_known(7, 0, "/o", "x", 1),
            lambda: store.finish(7, complete=True),
        ):
            with pytest.raises(ValueError, match="begun"):
                call()

    def test_what_is_not_there_fails_alone(self, opened, run):
        store = opened(group_ms=LONG_MS)
        run_id = store.begin(run)
        good = store.add(run_id, 0, "/o", result(0), key_of(0))
        bad = store.add_known(run_id, 1, "/o", "x", 99)
        also_good = store.add(run_id, 2, "/o", result(2), key_of(2))
        store.finish(run_id, complete=True)
        with pytest.raises(StoreError, match="no number 99"):
            bad.result()
        with pytest.raises(StoreError, match="no number 99"):
            store.review(99, Verdict.OK, "Ada")
        assert {good.result(), also_good.result()} == {1, 2}
        store.close()


class TestClock:
    def test_a_clock_that_steps_back_loses_nothing(self, path, run):
        times = iter([2e9 - 1000 * i for i in range(1000)])
        with Store(path, group_ms=1, clock=lambda: next(times)) as store:
            run_id = store.begin(run)
            futures = [store.add(run_id, i, "/o", result(i), key_of(i)) for i in range(40)]
            ids = [future.result() for future in futures]
            store.review(ids[0], Verdict.NG, "Ada")
            store.review(ids[0], Verdict.OK, "Ada")
            store.finish(run_id, complete=True)
        assert ids == sorted(set(ids))
        with Results(path) as results:
            listed = list(results.inspections())
            assert [row.id for row in listed] == ids
            assert listed[0].overruled_verdict is None  # what was said last, not what was latest
            assert results.runs()[0].complete

    @pytest.mark.parametrize("seconds", [0.0, -1e6, 1e11])
    def test_a_clock_that_is_wrong_loses_nothing(self, opened, run, seconds):
        store = opened(clock=lambda: seconds)
        store.add(store.begin(run), 0, "/o", result(1), key_of(1)).result()
        with Results(store.path) as results:
            assert [row.inspected_ms for row in results.inspections()] == [int(seconds * 1000)]


class TestGroups:
    def test_a_group_is_committed_when_it_is_full(self, opened, run):
        store = opened(group_ms=LONG_MS, group_frames=4)
        run_id = store.begin(run)
        futures = [store.add(run_id, i, "/o", result(i), key_of(i)) for i in range(3)]
        assert not any(future.done() for future in futures)
        assert store.known(key_of(0)) is None
        futures.append(store.add(run_id, 3, "/o", result(3), key_of(3)))
        assert [future.result(60) for future in futures] == [1, 2, 3, 4]

    def test_a_group_is_committed_when_it_is_old(self, opened, run):
        store = opened(group_ms=20, group_frames=1000)
        run_id = store.begin(run)
        for i in range(3):
            assert store.add(run_id, i, "/o", result(i), key_of(i)).result(60)

    def test_acknowledged_means_committed(self, opened, run, monkeypatch):
        store = opened(group_ms=LONG_MS, group_frames=2)
        run_id = store.begin(run)
        seen = []

        def look(_):
            with Results(store.path) as results:
                seen.append(results.count_inspections())

        for i in range(4):
            store.add(run_id, i, "/o", result(i), key_of(i)).add_done_callback(look)
        store.finish(run_id, complete=True)
        store.close()
        assert seen in ([2, 2, 4, 4], [4, 4, 4, 4])

    def test_closing_commits_what_waits(self, path, run):
        with Store(path, group_ms=LONG_MS) as store:
            future = store.add(store.begin(run), 0, "/o", result(1), key_of(1))
        assert future.result(0) == 1
        assert rows(path, "SELECT count(*) FROM sightings") == [(1,)]

    def test_an_acknowledgement_cannot_be_cancelled(self, opened, run):
        store = opened(group_ms=LONG_MS)
        future = store.add(store.begin(run), 0, "/o", result(1), key_of(1))
        assert not future.cancel()
        store.close()
        assert future.result(0) == 1

    def test_threads_add_at_once(self, store, run, monkeypatch):
        monkeypatch.setattr(store_module, "MOST_WAITING", 8)
        run_id = store.begin(run)
        found = [[] for _ in range(4)]

        def work(thread):
            for i in range(thread, 200, 4):
                future = store.add(run_id, i, "/o", result(i), key_of(i % 50))
                found[thread].append((i, future))
                store.known(key_of(i % 50))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = {i: future.result(60) for one in found for i, future in one}
        assert len(ids) == 200
        assert all(ids[i] == ids[i % 50] for i in ids)
        assert rows(store.path, "SELECT count(*) FROM sightings") == [(200,)]
        assert rows(store.path, "SELECT count(*) FROM inspections") == [(50,)]

    def test_closed_twice_and_used_after(self, path, run):
        store = Store(path)
        run_id = store.begin(run)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.add(run_id, 0, "/o", result(1), key_of(1)).result(0)
        with pytest.raises(StoreError, match="closed"):
            store.begin(run)
        with pytest.raises(StoreError, match="closed"):
            store.known(key_of(1))

    def test_no_thread_is_left(self, path):
        before = threading.active_count()
        with Store(path):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before


class TestOneWriter:
    def test_a_second_one_is_refused_at_once(self, store):
        with pytest.raises(StoreError, match="only writer") as caught:
            Store(store.path)
        assert "\n" not in str(caught.value)

    def test_of_another_process_too(self, store):
        program = (
            "import sys; from pathlib import Path; from steelsight.store.store import Store\n"
            "from steelsight.errors import StoreError\n"
            "try: Store(Path(sys.argv[1]))\n"
            "except StoreError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, store.path], capture_output=True, text=True, check=True
        )
        assert "only writer" in done.stdout

    def test_the_next_one_may_come(self, path):
        for _ in range(3):
            Store(path).close()

    def test_a_forked_process_does_not_hold_the_lock(self, path):
        store = Store(path)
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the parent is done
            os._exit(0)
        try:
            store.close()
            Store(path).close()
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(child, 0)

    def test_a_refused_one_lets_go_of_the_lock(self, path):
        path.write_bytes(b"no database" * 1000)
        for _ in range(2):
            with pytest.raises(StoreError, match="no SQLite database"):
                Store(path)


def test_imports_nothing_heavy():
    program = (
        "import sys, steelsight.store.store, steelsight.store.queries\n"
        "heavy = ('numpy', 'cv2', 'torch', 'onnxruntime', 'pydantic')\n"
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_size_of_a_frame_belongs_to_the_inspection(store, run):
    """The same bytes may be refused or decoded, by what was asked for."""
    run_id = store.begin(run)
    store.add(run_id, 0, "/o", result(1), key_of(1)).result()
    refused = result(3, sha256=result(1).sha256, size_wh=None, reason=Reason.WRONG_EXTENSION)
    store.add(run_id, 1, "/o", refused, key_of(2)).result()
    assert store.known(key_of(1))[1].size_wh == SIZE_WH
    assert store.known(key_of(2))[1].size_wh is None
    assert isinstance(store.known(key_of(2))[1], Inspection)
