"""Markdown of anybody's text, read by a parser that did not write it."""

from __future__ import annotations

from concilia_aggregator.card import markdown
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

READER = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")


def visible(text: str) -> str:
    """What a text is when nothing is markup: printable letters, blanks in a row as one."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@given(st.text())
@example("<script>alert(1)</script>")
@example("[a](javascript:b) ![c](d) **e** _f_ ~~g~~ `h` &amp; \\i")
@example("- a")
@example("10) b")
@example("# c")
@example("a\n\n    b")
@example("---")
@example("===")
@example("+")
def test_text_reads_as_it_is(text: str) -> None:
    tokens = READER.parse(markdown.plain(text))
    if not visible(text):
        assert tokens == []
        return
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    inline = tokens[1].children or []
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline) == visible(text)


@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_cell_stays_in_its_cell(rows: list[list[str]]) -> None:
    made = markdown.table(("a", "b"), [[markdown.plain(cell) for cell in row] for row in rows])
    tokens = READER.parse(made)
    assert sum(token.type == "tr_open" for token in tokens) == len(rows) + 1
    assert sum(token.type == "td_open" for token in tokens) == 2 * len(rows)


@given(st.text())
@example("a`b")
@example("A-Z|")
def test_code_is_code_or_plain(text: str) -> None:
    made = markdown.code(text)
    assert made in {f"`{text}`", markdown.plain(text)}
    if made.startswith("`"):
        assert [token.type for token in READER.parse(made)[1].children or []] == ["code_inline"]


def test_links_that_readers_make_by_themselves_are_none() -> None:
    made = markdown.plain("https://e.org www.e.org a@e.org")
    assert made == "https:\\//e.org www\\.e.org a\\@e.org"


def test_a_table_without_rows_is_nothing() -> None:
    assert markdown.table(("a",), []) == ""
