import re

import pytest

from ensemble.reports.table import BOLD, GREEN, PLAIN, Table

WIDE = Table(
    "A wide table",
    ("rule", *(f"column {j}" for j in range(12))),
    tuple((name, *(f"{j}.{row:03d}" for j in range(12))) for row, name in enumerate(("one", "two", "three"))),
    ("A note of several words that is too long to stand in one line of 80 columns, so that it must be wrapped.",),
    best=1,
)


def blocks(text: str) -> list[list[list[str]]]:
    """Return the cells of each block, which are parted by two spaces at least; the title and notes are left out."""
    body = text.partition("\n")[2].partition("A note")[0].rstrip()
    return [[re.split(" {2,}", line) for line in block.splitlines()] for block in body.split("\n\n")]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 400])
def test_what_does_not_fit_goes_on_in_another_block(width: int) -> None:
    text = WIDE.text(width)
    assert max(map(len, text.splitlines())) <= width
    found = blocks(text)
    names = ["rule", "one", "two (best)", "three"]
    assert all([row[0] for row in block] == names for block in found), "the first column is repeated"
    joined = [[cell for block in found for cell in block[index][1:]] for index in range(4)]
    assert joined == [list(WIDE.columns[1:]), *(list(row[1:]) for row in WIDE.rows)]
    assert (len(found) == 1) == (width == 400)


def test_notes_and_titles_are_wrapped_and_paths_left_whole() -> None:
    path = "/a/very/long/path" * 6
    text = Table("Title " * 20, ("a",), (), (*WIDE.notes, f"Report: {path}")).text(60)
    lines = text.splitlines()
    assert max(len(line) for line in lines if path not in line) <= 60
    assert path in lines
    assert " ".join(lines).count("A note of several words that is too long to stand in one line of 80 columns") == 1


def test_cells_of_text_are_wrapped_in_their_column() -> None:
    about = "what it does in more words than fit beside its name in a terminal of forty columns"
    lines = Table("Recipes", ("name", "what it is"), (("x" * 12, about),), numbers=False).text(40).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[2].startswith("x" * 12 + "  what")
    assert {line[:14] for line in lines[3:]} == {" " * 14}
    assert " ".join(line[14:] for line in lines[2:]) == about
    long = Table("Sets", ("set", "images", "HTER"), (("n" * 200, "12", "0.1000"),)).text(80)
    assert max(map(len, long.splitlines())) <= 80 and long.count("n" * 20) > 2


def test_colours_are_bold_and_green_and_none_without() -> None:
    plain, coloured = WIDE.text(80), WIDE.text(80, colour=True)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
    assert coloured.startswith(f"{BOLD}A wide table{PLAIN}\n")
    marked = [line for line in coloured.splitlines() if GREEN in line]
    assert len(marked) == len(blocks(plain)) > 1
    assert all(re.fullmatch(r"\x1b\[32mtwo \(best\) .*\x1b\[0m", line) for line in marked)


def test_a_table_without_columns_is_a_title_with_notes() -> None:
    summary = Table("In short", (), (), ("One.", "Two."))
    assert summary.text() == "In short\nOne.\nTwo.\n"
    assert summary.markdown() == "## In short\n\nOne.\n\nTwo.\n"


def test_markdown_keeps_its_columns_whatever_a_member_is_called() -> None:
    lines = Table("T", ("rule", "n"), (("a|b", "1"),), ("Note.",), best=0).markdown().splitlines()
    assert lines == ["## T", "", "| rule | n |", "| --- | ---: |", "| a\\|b (best) | 1 |", "", "Note."]
