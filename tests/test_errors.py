import pytest

from steelsight.errors import escaped, first_names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["rolled in", "Höhe"], "rolled in, Höhe"),
        (map(str, range(10)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (map(str, range(11)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"),
        (["x" * 60], "x" * 60),
        (["x" * 61], "x" * 57 + "..."),
        (["a\x1b[2J\n\udc80\u202e"], r"a\x1b[2J\n\udc80\u202e"),
    ],
)
def test_names_are_told_as_many_as_a_line_can_take(names, said):
    assert first_names(names) == said


def test_no_list_of_names_makes_a_long_line():
    for name in ("x" * 10**6, "\x00" * 10**6, "\U0010ffff" * 10**6):
        line = first_names([name] * 10_000)
        assert len(line) < 700
        assert line.isprintable()
        assert line.endswith("... and 9990 more")
    assert first_names("abc", 2) == "a, b and 1 more"


def test_only_what_cannot_be_printed_is_escaped():
    assert escaped("Höhe 'a' \\x 🙂") == "Höhe 'a' \\x 🙂"
    assert escaped("\x1b]0;\x07\r\n\t\x7f\u2028") == r"\x1b]0;\x07\r\n\t\x7f\u2028"
