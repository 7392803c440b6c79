"""Requirements, lock, pyproject.toml, environment.yml and the interpreter are one environment."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
AGREED = {
    "pyspark",
    "tensorflow-cpu",
    "pillow",
    "numpy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "papermill",
    "nbval",
}


@pytest.fixture(scope="module")
def required():
    """Requirements by name, as people wrote them in requirements.in."""
    lines = (line.partition("#")[0].strip() for line in read("requirements.in").splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.fixture(scope="module")
def locked():
    """Each name in requirements.lock with its version and its number of hashes."""
    entries = re.split(r"^(?=[A-Za-z0-9])", read("requirements.lock"), flags=re.MULTILINE)
    lock = {}
    for entry in filter(str.strip, entries):
        name, version = re.match(r"(\S+)==(\S+)", entry).groups()
        lock[canonicalize_name(name)] = (
            version,
            len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)),
        )
    return lock


@pytest.fixture(scope="module")
def runtime():
    """What `pip install` of the wheel asks for, by name."""
    declared = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in declared}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_agreed_packages_are_required(required):
    assert set(required) >= AGREED


def test_every_requirement_has_a_reason():
    lines = [line for line in read("requirements.in").splitlines() if line[:1].isalnum()]
    assert [line for line in lines if "  # " not in line] == []


def test_lock_satisfies_requirements(required, locked):
    unmet = [
        f"{requirement}, locked {locked.get(name)}"
        for name, requirement in required.items()
        if name not in locked or not requirement.specifier.contains(locked[name][0])
    ]
    assert unmet == []


def test_runtime_ranges_admit_the_locked_versions(runtime, locked):
    outside = [
        f"{requirement}, locked {locked[name][0]}"
        for name, requirement in runtime.items()
        if not requirement.specifier.contains(locked[name][0])
    ]
    assert outside == []


def test_runtime_ranges_name_every_package_that_the_library_imports(runtime):
    distributions = importlib.metadata.packages_distributions()
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "fruits_lib").rglob("*.py")]
    imports = [node for tree in trees for node in ast.walk(tree)]
    modules = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    tops = {module.partition(".")[0] for module in modules}
    needed = {canonicalize_name(name) for top in tops for name in distributions.get(top, [])}
    assert {"numpy", "pyspark"} <= needed  # or the search found nothing
    # By boto3, by ai-edge-litert, by papermill, by ipykernel (three), by pyspark.
    jupyter = {"ipython", "jupyter-client", "jupyter-core"}
    brought = {"botocore", "flatbuffers", "nbclient", "py4j", *jupyter}
    assert needed - set(runtime) - brought == {"fruits-lib"}


def test_every_locked_package_has_a_hash(locked):
    assert [name for name, (_, hashes) in locked.items() if hashes == 0] == []


def test_lock_names_no_host():
    assert (
        re.findall(r"\w+://\S*|--(?:\w+-)*(?:url|host|links)\b.*| @ .*", read("requirements.lock"))
        == []
    )


def test_installed_versions_are_the_locked_ones(locked):
    # Not all of sys.path: setuptools adds its own copies of other packages to it.
    folder = sysconfig.get_path("purelib")
    installed = {
        canonicalize_name(found.name): found.version
        for found in importlib.metadata.distributions(path=[folder])
    }
    differing = {
        name: f"locked {version}, installed {installed.get(name)}"
        for name, (version, _) in locked.items()
        if installed.get(name) != version
    }
    assert differing == {}


def test_conda_environment_is_the_same(locked):
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert {"python=3.11", "openjdk=17", "pip"} <= {d for d in dependencies if isinstance(d, str)}
    # Nothing beside the lock: pip in hash mode would refuse it, and only when a user runs it.
    assert [d for d in dependencies if isinstance(d, dict)] == [{"pip": ["-r requirements.lock"]}]


def find_python(path, home, **environment):
    """Run scripts/find-python.sh where only the commands in the folder `path` exist."""
    return subprocess.run(
        [shutil.which("bash"), str(ROOT / "scripts" / "find-python.sh")],
        env={"PATH": str(path), "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def write_command(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "fake",
    [
        None,
        ("python3.11", "exit 127"),  # a pyenv shim without a version behind it
        ("python3", "echo Python 3.12; exit 1"),
    ],
    ids=["nothing", "dead shim", "another version"],
)
def test_no_python_is_one_line_that_says_what_to_do(tmp_path, fake):
    commands = tmp_path / "bin"
    commands.mkdir()
    if fake:
        write_command(commands / fake[0], fake[1])
    result = find_python(commands, tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "Python 3.11" in result.stderr
    assert "install" in result.stderr


PYTHON = f'exec "{sys.executable}" "$@"'


@pytest.mark.parametrize(
    "files",
    [
        {"bin/python3.11": PYTHON},
        {"bin/python3": PYTHON},
        {".pyenv/versions/3.11.9/bin/python3.11": PYTHON},
        {"bin/pyenv": 'echo "$HOME/elsewhere"', "elsewhere/versions/3.11.9/bin/python3.11": PYTHON},
        {"bin/uv": f'[[ "$*" == "python find"*3.11 ]] && echo "{sys.executable}"'},
        {"bin/conda": 'echo "$HOME/base"', "base/bin/python3.11": PYTHON},
        {"bin/conda": 'echo "$HOME/base"', "base/envs/any/bin/python3.11": PYTHON},
        {"bin/python3.11": "exit 127", "bin/python3": PYTHON},
    ],
    ids=[
        "python3.11",
        "python3",
        "~/.pyenv",
        "pyenv",
        "uv",
        "conda",
        "conda env",
        "after a dead one",
    ],
)
def test_python_is_found_wherever_it_is_kept(tmp_path, files):
    for name, text in files.items():
        write_command(tmp_path / name, text)
    result = find_python(tmp_path / "bin", tmp_path)
    # The interpreter itself, not the virtual environment that these tests run in.
    expected = os.path.join(sys.base_prefix, "bin", "python3.11")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{expected}\n", "")
