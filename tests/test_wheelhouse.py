"""What bootstrap.sh installs: wheels by hash for a node's architecture, and the project's own."""

import hashlib
import tarfile
import zipfile

import pytest

from fruits_lib.emr import staging
from fruits_lib.emr.staging import build_wheel, build_wheelhouse, build_wheels
from fruits_lib.errors import FruitsError

X86, ARM = "cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_17_aarch64"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder, tag):
    wheel = folder / f"pear-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: pear\nVersion: 1.0\n",
            "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"pear-1.0.dist-info/{name}", text)
    return wheel


def write_lock(folder, *files):
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    lock = folder / "node.lock"
    lock.write_text("pear==1.0 " + " ".join(f"--hash=sha256:{digest}" for digest in digests))
    return lock


def refusal(*arguments):
    with pytest.raises(FruitsError) as raised:
        build_wheelhouse(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class TestWheelhouse:
    @pytest.mark.parametrize(("arch", "tag"), [("x86_64", X86), ("aarch64", ARM)])
    def test_has_the_wheels_of_the_nodes_architecture(self, index, tmp_path, arch, tag):
        lock = write_lock(tmp_path, write_wheel(index, X86), write_wheel(index, ARM))
        wheels = build_wheelhouse(tmp_path / "wheels", arch, lock)
        assert wheels == [tmp_path / "wheels" / f"pear-1.0-{tag}.whl"]

    def test_takes_pure_python(self, index, tmp_path):
        lock = write_lock(tmp_path, write_wheel(index, "py3-none-any"))
        assert len(build_wheelhouse(tmp_path / "wheels", "aarch64", lock)) == 1

    @pytest.mark.parametrize(
        "tag", [X86, "cp312-cp312-manylinux_2_28_aarch64", "cp311-cp311-manylinux_2_39_aarch64"]
    )
    def test_refuses_what_nodes_could_not_run(self, index, tmp_path, tag):
        lock = write_lock(tmp_path, write_wheel(index, tag))
        assert "pear==1.0" in refusal(tmp_path / "wheels", "aarch64", lock)

    def test_refuses_sources(self, index, tmp_path):
        source = index / "pear-1.0.tar.gz"
        with tarfile.open(source, "w:gz"):
            pass
        lock = write_lock(tmp_path, source)
        assert "pear==1.0" in refusal(tmp_path / "wheels", "x86_64", lock)

    def test_refuses_a_wheel_with_another_hash(self, index, tmp_path):
        wheel = write_wheel(index, X86)
        lock = write_lock(tmp_path, wheel)
        wheel.write_bytes(wheel.read_bytes() + b"\n")
        line = refusal(tmp_path / "wheels", "x86_64", lock)
        assert "HASHES" in line
        assert "pear==1.0" in line

    def test_needs_a_checkout(self, tmp_path):
        assert "from a checkout" in refusal(tmp_path, "x86_64", tmp_path / "no.lock")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


class TestWheel:
    def test_carries_code_notebooks_and_tables(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        assert {"fruits_lib/udf.py", "fruits_lib/emr/prices.json"} <= set(names)
        carried = [name for name in names if "/data/share/fruits/notebooks/" in name]
        assert sum(name.endswith(".ipynb") for name in carried) == 7
        assert sum("/recipes/" in name and name.endswith(".yaml") for name in carried) == 6

    def test_is_the_same_when_built_again(self, wheel, tmp_path):
        assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()

    def test_leaves_the_checkout_as_it_is(self, tmp_path):
        before = set(staging.CHECKOUT.iterdir())
        build_wheel(tmp_path)
        assert set(staging.CHECKOUT.iterdir()) == before

    def test_needs_a_checkout(self, tmp_path, monkeypatch):
        monkeypatch.setattr(staging, "CHECKOUT", tmp_path)
        with pytest.raises(FruitsError, match=r"pyproject\.toml is missing.*from a checkout"):
            build_wheel(tmp_path)

    def test_is_staged_with_the_wheelhouse_where_bootstrap_looks(
        self, index, tmp_path, monkeypatch
    ):
        lock = write_lock(tmp_path, write_wheel(index, ARM))
        monkeypatch.setattr(staging.build_wheelhouse, "__defaults__", (lock,))
        monkeypatch.setattr(staging, "build_wheel", lambda folder: folder / "fruits_lib.whl")
        keys = build_wheels(tmp_path / "work", "aarch64")
        assert set(keys) == {"fruits_lib.whl", f"wheelhouse/aarch64/pear-1.0-{ARM}.whl"}
