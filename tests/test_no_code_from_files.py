"""Nothing that is read can run: no pickle, no shell, no text that becomes code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for folder in ("ladd_jax", "configs", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)

# Modules whose files run code as they are read.
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
BUILT_IN = {"eval", "exec", "compile"}


def imported(node):
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def faults(source):
    """What in a file would run what it reads, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if imported(node) & PICKLES:
            found.append(f"{node.lineno} imports a pickle")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in CALLS | BUILT_IN or given.get("shell", "False") != "False":
            found.append(f"{node.lineno} {name} runs a text")
        if given.get("allow_pickle", "False") != "False" or name.endswith("read_pickle"):
            found.append(f"{node.lineno} {name} reads pickles")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{node.lineno} {name} unpickles more than weights")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{node.lineno} {name} runs code of the hub")
    return found


def test_no_file_that_is_read_runs_code():
    told = [
        f"{file.relative_to(ROOT)}:{fault}"
        for file in SOURCES
        for fault in faults(file.read_text())
    ]
    assert len(SOURCES) > 100 and told == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "np.load(file, allow_pickle=True)",
        "subprocess.run(words, shell=True)", "os.system('ls')", "eval(text)", "torch.load(file)",
        "torch.load(file, weights_only=False)", "load(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_runs_code_is_found(source):
    assert len(faults(source)) == 1


def test_what_does_not_is_not():
    assert not faults("np.load(file)\ntorch.load(file, weights_only=True)\nsubprocess.run(['ls'])")
