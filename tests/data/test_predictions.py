"""Results of a model: read, matched, and what confident learning makes of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelsight.data.predictions import confident_suspects, match_images, read_predictions
from steelsight.errors import InputError


def test_predictions_are_read_from_results(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(
        '{"image": "a.jpg", "faulty_probability": 0.25}\n\n'
        '{"image": "b.jpg", "faulty_probability": null}\n'
        '{"image": "ü/c.jpg", "faulty_probability": 1}\n',
        encoding="utf-8",
    )
    assert read_predictions(path) == {"a.jpg": 0.25, "ü/c.jpg": 1.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"image": "a", "faulty', "line 1: .* is no JSON"),
        (b"[" * 100_000, "line 1: .* is no JSON"),
        (b"[1]", "names no image"),
        (b'{"image": 5, "faulty_probability": 0.5}', "names no image"),
        (b'{"image": "a"}', "faulty_probability is 'nothing'"),
        (b'{"image": "a", "faulty_probability": "0.5x"}', "is '0.5x'"),
        (b'{"image": "a", "faulty_probability": 1.5}', "'1.5', expected a number from 0 to 1"),
        (b'{"image": "a", "faulty_probability": NaN}', "is 'nan'"),
        (b'{"image": "a", "faulty_probability": true}', "is 'True'"),
        (b'{"image": "a", "faulty_probability": ' + b"9" * 5000 + b"}", "line 1"),
        (b'{"image": "a", "faulty_probability": 0}\n' * 2, "line 2: .*'a' stands in line 1"),
        (b'\xff\xfe{"image": 1}', "byte 0xff is not UTF-8"),
    ],
)
def test_broken_results_give_one_line(tmp_path, content, said):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path)


def test_names_are_matched_whole_or_as_file_names_where_these_are_unique():
    images = ["a/1.png", "b/1.png", "b/2.png"]
    assert match_images({"b/1.png": 0.5, "2.png": 0.25}, images) == {
        "b/1.png": 0.5,
        "b/2.png": 0.25,
    }
    assert match_images({"2.png": 0.25, "1.png": 0.5}, images) == {"b/2.png": 0.25}
    assert match_images({}, images) == {}


def naive_confident(faulty: list[bool], p: list[float]) -> list[bool]:
    """The paper's counting, word for word: thresholds, then the likeliest class above its own."""
    probability = [{True: q, False: 1 - q} for q in p]
    threshold = {}
    for label in (True, False):
        own = [probability[i][label] for i in range(len(p)) if faulty[i] == label]
        threshold[label] = math.fsum(own) / len(own)
    suspects = []
    for i, label in enumerate(faulty):
        above = [j for j in (label, not label) if probability[i][j] >= threshold[j]]
        counted = max(above, key=lambda j: probability[i][j], default=label)
        suspects.append(counted != label)
    return suspects


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 64).map(lambda n: n / 64)), min_size=2, max_size=30
    ).filter(lambda rows: len({label for label, _ in rows}) == 2)
)
def test_confident_learning_against_the_paper(rows):
    faulty, p = zip(*rows, strict=True)
    found = confident_suspects(np.array(faulty), np.array(p))
    assert found.tolist() == naive_confident(list(faulty), list(p))


def test_one_label_alone_has_no_suspects():
    assert not confident_suspects(np.array([True, True]), np.array([0.1, 0.9])).any()
