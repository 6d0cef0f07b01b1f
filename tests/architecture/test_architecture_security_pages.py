"""The pages on security say what is there: each test and file that they name exists, the ASVS's rows are all of the
standard's, counts are right, and every field that a node sends is told."""

from __future__ import annotations

import ast
import functools
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
import sqlalchemy as sa
from concilia_aggregator import tables as aggregator_tables
from concilia_chain import tables as chain_tables
from concilia_client_node.consortium import Consortium
from concilia_kit.wire import auth
from concilia_model import tables as model_tables
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
ASVS, PROTECTION, SECURITY = "docs/asvs.md", "docs/data-protection.md", "SECURITY.md"
STATES = ("met", "not applicable", "not yet")
TOP_FILES = {".dockerignore", "constraints.txt", "SECURITY.md", "docker-compose.yml"}

# Section, and the numbers of its requirements: OWASP ASVS 5.0.0, level by level.
LEVEL_1 = (
    "1.2:1-5 1.3:1-2 1.5:1 2.1:1 2.2:1-2 2.3:1 3.2:1-2 3.3:1 3.4:1-2 3.5:1-3 4.1:1 4.4:1 5.2:1-2 5.3:1-2 6.1:1 6.2:1-8 "
    "6.3:1-2 6.4:1-2 7.2:1-4 7.4:1-2 8.1:1 8.2:1-2 8.3:1 9.1:1-3 9.2:1 10.4:1-5 11.3:1-2 11.4:1 12.1:1 12.2:1-2 13.4:1 "
    "14.2:1 14.3:1 15.1:1 15.2:1 15.3:1"
)
LEVEL_2 = (
    "1.1:1-2 1.2:6-9 1.3:3-11 1.4:1-3 1.5:2 2.1:2-3 2.2:3 2.3:2-4 2.4:1 3.3:2-4 3.4:3-6 3.5:4-5 3.7:1-2 4.1:2-3 4.2:1 "
    "4.3:1-2 4.4:2-4 5.1:1 5.2:3 5.4:1-3 6.1:2-3 6.2:9-12 6.3:3-4 6.4:3-4 6.5:1-5 6.6:1-3 6.8:1-4 7.1:1-3 7.3:1-2 "
    "7.4:3-5 7.5:1-2 7.6:1-2 8.1:2 8.2:3 8.4:1 9.2:2-4 10.1:1-2 10.2:1-2 10.3:1-4 10.4:6-11 10.5:1-5 10.6:1-2 10.7:1-3 "
    "11.1:1-2 11.2:1-3 11.3:3 11.4:2-4 11.5:1 11.6:1 12.1:2-3 12.3:1-4 13.1:1 13.2:1-5 13.3:1-2 13.4:2-5 14.1:1-2 "
    "14.2:2-4 14.3:2-3 15.1:2-3 15.2:2-3 15.3:2-7 16.1:1 16.2:1-5 16.3:1-4 16.4:1-3 16.5:1-3 17.1:1 17.2:1-4 17.3:1-2"
)
# As the standard counts them itself.
TOTALS = {1: 70, 2: 183}

_ID = re.compile(r"\d{1,2}\.\d{1,2}\.\d{1,2}")


class Row(NamedTuple):
    id: str
    level: str
    requirement: str
    state: str
    how: str
    shown: str


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{heading.split(' ')[0]} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def asvs_rows() -> list[Row]:
    tables = page(ASVS).partition("\n## V1 ")[2].partition("\n## Level 2, left out")[0]
    lines = [line for line in tables.splitlines() if line.startswith("|") and not line.startswith(("| id |", "|---"))]
    return [Row(*cells(line)) for line in lines]


def ids(level: str) -> set[str]:
    found: set[str] = set()
    for part in level.split():
        where, _, numbers = part.partition(":")
        first, _, last = numbers.partition("-")
        found |= {f"{where}.{number}" for number in range(int(first), int(last or first) + 1)}
    return found


# --------------------------------------------------------------------------------------------------------------- names


@functools.cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def named(text: str) -> Iterator[str]:
    """What stands in backticks and is a path of this repository: of a known folder or of a file at the top."""
    top = {each.name for each in ROOT.iterdir()}
    for word in re.findall(r"`([^`\s]+)`", text):
        if ("/" in word and word.split("/")[0] in top) or word in TOP_FILES:
            yield word


def faults(words: Iterable[str]) -> list[str]:
    wrong = []
    for word in words:
        path, _, test = word.partition("::")
        found = sorted(ROOT.glob(path)) if "*" in path else [ROOT / path]
        if (
            not found
            or not all(each.exists() for each in found)
            or (test and not any(test in functions(each) for each in found))
        ):
            wrong.append(word)
    return wrong


@pytest.mark.parametrize("name", [ASVS, PROTECTION])
def test_every_test_and_file_that_a_page_names_exists(name: str) -> None:
    words = [word for word in named(page(name)) if not word.startswith("var/")]
    assert len(words) > 10
    assert faults(words) == []


@pytest.mark.parametrize("name", [ASVS, PROTECTION, SECURITY])
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page(name))
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not ((ROOT / name).parent / target).exists()] == []


def test_a_name_that_is_wrong_is_found() -> None:
    right = "tests/architecture/test_architecture_security_pages.py::test_a_name_that_is_wrong_is_found"
    assert faults([right, "docs", "tests/integration/test_auth_*.py"]) == []
    wrong = [right + "_not", "docs/none.md", "tests/unit/none_*.py", "SECURITY.md/x"]
    assert faults(wrong) == wrong


def test_what_the_table_of_attackers_names_exists() -> None:
    table = [cells(line) for line in page(SECURITY).splitlines() if line.startswith("|")]
    (head, _, *rows), seen = table, 0
    assert head[-1] == "shown by"
    for row in rows:
        folder = ""
        words = re.findall(r"`([^`]+)`", row[-1])
        assert words, row
        for word in words:
            if word.startswith("make "):
                assert f"\n{word.removeprefix('make ')}:" in page("Makefile"), word
                continue
            # A file without its folder lies where the one before does.
            path = word if "/" in word else f"{folder}/{word}"
            assert faults([path]) == [], row
            folder = str(Path(path.partition("::")[0]).parent)
            seen += 1
    assert seen > 30


# ---------------------------------------------------------------------------------------------------------------- ASVS


def test_the_requirements_are_the_standards() -> None:
    assert len(ids(LEVEL_1)) == TOTALS[1]
    assert len(ids(LEVEL_2)) == TOTALS[2]
    rows = asvs_rows()
    assert [row.id for row in rows if not re.fullmatch(rf"v5\.0\.0-{_ID.pattern}", row.id)] == []
    plain = [row.id.removeprefix("v5.0.0-") for row in rows]
    assert [number for number, times in Counter(plain).items() if times > 1] == []
    assert [
        number
        for number, row in zip(plain, rows, strict=True)
        if number not in ids({"1": LEVEL_1, "2": LEVEL_2}[row.level])
    ] == []
    assert ids(LEVEL_1) - set(plain) == set(), "level 1 is to be whole"
    left_out = _ID.findall(section(page(ASVS), "## Level 2, left out"))
    assert [number for number, times in Counter(left_out).items() if times > 1] == []
    assert set(left_out) == ids(LEVEL_2) - set(plain), "each of level 2 has a row, or is said to be left out"
    keys = [tuple(map(int, number.split("."))) for number in plain]
    assert keys == sorted(keys)


def test_each_row_has_a_state_and_what_it_needs() -> None:
    for row in asvs_rows():
        assert row.state in STATES, row
        assert row.requirement, row
        assert row.how, row
        if row.state == "met":
            assert list(named(row.shown)), row
        if row.state == "not applicable":
            assert row.shown == "", row


def test_the_counts_at_the_top_are_right() -> None:
    rows = asvs_rows()
    table = page(ASVS).partition("| level | met |")[2].splitlines()[2:4]
    for line, level in zip(table, ("1", "2"), strict=True):
        counted = Counter(row.state for row in rows if row.level == level)
        numbers = [counted[state] for state in STATES]
        assert [int(cell) for cell in cells(line)] == [int(level), *numbers, sum(numbers)]


def test_what_is_missing_of_level_1_is_said_at_the_top() -> None:
    states = {row.id.removeprefix("v5.0.0-"): (row.level, row.state) for row in asvs_rows()}
    said = set(_ID.findall(section(page(ASVS), "## Not yet, in short")))
    assert {number for number in said if states[number][1] != "not yet"} == set()
    assert {number for number, (level, state) in states.items() if level == "1" and state == "not yet"} <= said


# ------------------------------------------------------------------------------------------------------ data protection


def models_in(hint: Any) -> Iterator[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for part in get_args(hint):
        yield from models_in(part)


def sent_models() -> set[type[BaseModel]]:
    """All wire models that a node sends: what its calls take, what signing in sends, and what is inside of these."""
    calls = [each for name, each in vars(Consortium).items() if callable(each) and not name.startswith("_")]
    waiting: list[type[BaseModel]] = [auth.ChallengeRequest, auth.SignIn, auth.TokenRequest]
    for call in calls:
        hints = get_type_hints(call, include_extras=True)
        waiting += [model for name, hint in hints.items() if name != "return" for model in models_in(hint)]
    found: set[type[BaseModel]] = set()
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.add(model)
            waiting += [inner for field in model.model_fields.values() for inner in models_in(field.annotation)]
    return found


def test_every_field_that_a_node_sends_is_told_and_no_other() -> None:
    models = sent_models()
    names = {model.__name__ for model in models}
    assert {
        "UpdateSubmission",
        "UpdateMetrics",
        "EvaluationReport",
        "NodeRegistration",
        "Progress",
        "Application",
    } < names
    fields = {f"{model.__name__}.{field}" for model in models for field in model.model_fields}
    told = section(page(PROTECTION), "## What leaves a hospital")
    assert set(re.findall(r"`([A-Z]\w+\.[a-z]\w*)`", told)) == fields


TABLES = {"aggregator": aggregator_tables, "chain": chain_tables, "model": model_tables}


def test_every_table_and_key_that_is_kept_is_told() -> None:
    kept = section(page(PROTECTION), "## What each service keeps")
    for name, tables in TABLES.items():
        for table in tables.metadata.tables:
            assert f"`{table}`" in kept, f"{name}: {table}"
    keys: set[str] = set()
    for path in sorted((ROOT / "services").glob("*/concilia_*/**/*.py")) + sorted((ROOT / "libs/kit").rglob("*.py")):
        keys |= set(re.findall(r'"(concilia:[a-z:-]+)', path.read_text()))
    assert len(keys) >= 11
    assert [key for key in sorted(keys) if f"`{key}`" not in kept] == []


STATEMENTS = re.findall(r"<!-- sql: (\w+) -->\n\s*```sql\n(.*?)```", (ROOT / PROTECTION).read_text(), re.DOTALL)


def test_the_statements_of_erasure_do_what_is_said() -> None:
    """On SQLite, with the tables that the services have: one hospital's rows go, another's stay."""
    ours, other = "0x" + 39 * "0" + "1", "0x" + 39 * "0" + "2"
    databases = {}
    for name, tables in TABLES.items():
        databases[name] = sqlite3.connect(":memory:")
        for table in tables.metadata.sorted_tables:
            databases[name].execute(
                str(sa.schema.CreateTable(table).compile(dialect=sa.create_engine("sqlite://").dialect))
            )
    for number, hospital in enumerate((ours, other)):
        chain, aggregator = databases["chain"], databases["aggregator"]
        digest, metrics = f"{number}d" * 32, f"{number}e" * 32
        arguments = f'{{"digest": "{digest}", "metrics": "{metrics}"}}'
        chain.execute(
            "INSERT INTO events (deployment, block, log_index, name, account, arguments) VALUES (1, 1, ?, ?, ?, ?)",
            (number, "UpdateRecorded", hospital, arguments),
        )
        chain.execute("INSERT INTO metrics VALUES (?, '{}')", (metrics,))
        chain.execute("INSERT INTO orders (hospital, document) VALUES (?, '{}')", (hospital,))
        document = f'{{"update": {{"digest": "{number}f"}}}}'
        chain.execute(
            "INSERT INTO leaves (deployment, job, round, hospital, document) VALUES (1, 'j', 1, ?, ?)",
            (hospital, document),
        )
        aggregator.execute("INSERT INTO nodes VALUES (?, '{}', 0)", (hospital,))
        aggregator.execute("INSERT INTO reports VALUES ('j', 1, ?, '{}')", (hospital,))
        aggregator.execute("INSERT INTO progress VALUES ('j', 1, ?, '{}')", (hospital,))
        aggregator.execute("INSERT INTO outbox (hospital) VALUES (?)", (hospital,))
    assert [name for name, _ in STATEMENTS] == ["chain", "aggregator", "chain"]
    found = []
    for name, text in STATEMENTS:
        for statement in filter(str.strip, text.split(";")):
            found += databases[name].execute(statement.replace(":'hospital'", "?"), _given(statement, ours)).fetchall()
    assert sorted(found) == [("0d" * 32,), ("0f",)], "what is to be deleted is listed, and nothing of another's"
    for table, column in (
        ("nodes", "address"),
        ("reports", "hospital"),
        ("progress", "hospital"),
        ("outbox", "hospital"),
    ):
        assert databases["aggregator"].execute(f"SELECT {column} FROM {table}").fetchall() == [(other,)]
    assert databases["chain"].execute("SELECT digest FROM metrics").fetchall() == [("1e" * 32,)]
    assert databases["chain"].execute("SELECT hospital FROM orders WHERE document IS NULL").fetchall() == [(ours,)]
    for database in databases.values():
        database.close()


def _given(statement: str, hospital: str) -> tuple[str, ...]:
    return (hospital,) * statement.count(":'hospital'")


def test_the_pages_are_linked() -> None:
    for name in ("asvs", "data-protection"):
        assert f"(docs/{name}.md)" in page("README.md")
        assert f"(docs/{name}.md)" in page(SECURITY)
