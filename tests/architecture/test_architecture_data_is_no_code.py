"""Bytes from outside are never code: nothing reads pickles, evaluates text or loads YAML's objects."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from concilia_kit import queue
from kombu import serialization
from kombu.exceptions import ContentDisallowed

ROOT = Path(__file__).parents[2]
FOLDERS = ("libs", "services", "deploy", "audit", "benchmarks", "frontend", "contracts")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "imp"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.package", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tarfile.open", "shutil.unpack_archive"),
    *("os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle", "tempfile.mktemp"),
}
METHODS = {"extractall", "extract", "read_pickle", "to_pickle"}
"""Of whatever object: archives that would choose where their members go."""
FROM = {("numpy", "load"), ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("builtins", "eval")}


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if {"node_modules", "build", "dist"}.isdisjoint(path.parts):
                yield path


def faults(text: str) -> list[str]:
    """What a module does that makes code of data, by line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                bad = [each.name for each in names if each.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                bad = [module] if module.split(".")[0] in MODULES else []
                bad += [f"{module}.{each.name}" for each in names if (module, each.name) in FROM]
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                given = {each.arg: ast.unparse(each.value) for each in keywords}
                bad = [name] if name in CALLS or (name.rsplit(".", 1)[-1] in METHODS and "." in name) else []
                if name in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
                    bad.append(f"{name} without allow_pickle=False")
                if given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
                    bad.append(f"{name} that reads pickles")
                if given.get("shell") == "True":
                    bad.append(f"{name} through a shell")
            case _:
                continue
        found += [f"line {node.lineno}: {each}" for each in bad]
    return found


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_makes_code_of_data(path: Path) -> None:
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "import os, marshal as m", "from cPickle import loads", "import joblib.numpy_pickle"),
        *("torch.load(f)", "np.load(f)", "numpy.load(f, allow_pickle=True)", "np.save(f, a, allow_pickle=True)"),
        *("yaml.load(t)", "eval(t)", "exec(t)", "from numpy import load", "tarfile.open(p).extractall()"),
        *("zip.extract(name)", "subprocess.run(t, shell=True)", "os.system(t)", "shutil.unpack_archive(p)"),
    ],
)
def test_the_rule_finds_it(line: str) -> None:
    assert len(faults(f"import x\n{line}")) >= 1


@pytest.mark.parametrize(
    "line", ["np.load(f, allow_pickle=False)", "yaml.safe_load(t)", "model.eval()", "ast.literal_eval(t)"]
)
def test_the_rule_lets_it_pass(line: str) -> None:
    assert faults(line) == []


HOOK = """
import pickle, sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(arguments) if event == "pickle.find_class" else None)
import pytest
if sys.argv[1] == "prove":
    pickle.loads(pickle.dumps(pickle.PickleError))
    status = 0
else:
    status = pytest.main(["-q", "--no-header", *sys.argv[1:]])
print("unpickled:", seen)
raise SystemExit(status)
"""


def under_the_hook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HOOK, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_training_and_aggregation_unpickle_nothing() -> None:
    """By Python's own audit event (PEP 578), over the tests that train a round, encode, store, screen and fold."""
    done = under_the_hook(
        "tests/unit/client_node/test_client_node_service.py::test_a_round_ends_with_a_signed_update_whose_bytes_are_stored",
        "tests/unit/client_node/test_client_node_service.py::test_an_evaluation_hands_in_counts_of_the_held_out_lesions",
        "tests/unit/aggregator/test_aggregator_folding.py::test_a_file_is_folded_across_blocks_to_the_bit",
        "tests/unit/aggregator/test_aggregator_encodings.py",
        "tests/unit/kit/test_kit_consuming.py",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("unpickled: []\n"), done.stdout[-3000:]
    assert "'PickleError'" in under_the_hook("prove").stdout, "the hook sees what it should"


def test_a_worker_takes_json_and_nothing_else() -> None:
    app = queue.application("test", "redis://127.0.0.1:1/0")
    assert list(app.conf.accept_content) == ["json"]
    assert app.conf.task_serializer == "json"
    accepted = serialization.prepare_accept_content(app.conf.accept_content)  # as a consumer does
    body = pickle.dumps({"a": 1})
    for kind in ("application/x-python-serialize", "application/x-yaml", "application/x-msgpack"):
        with pytest.raises(ContentDisallowed):
            serialization.loads(body, kind, "binary", accept=accepted)
    assert serialization.loads(b'{"a":1}', "application/json", "utf-8", accept=accepted) == {"a": 1}
