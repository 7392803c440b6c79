"""bootstrap.sh in a fresh root: with and without a network, twice, and with each thing broken."""

import re
import subprocess
import time

import pytest
from machine import kill_all
from node import REGION, STAGE

from fruits_lib.emr.staging import CHECKOUT

VENV = "/opt/fruits/venv"
PACKAGES = f"{VENV}/lib/python3.11/site-packages"
WHEELS = f"{STAGE}/wheelhouse/$(uname -m)"
NUMPY = f"$(aws s3 ls {WHEELS}/ | grep -o 'numpy-.*')"  # one wheel of the wheelhouse
PROJECT = f"$(aws s3 ls {STAGE}/ | grep -o 'fruits_lib-.*whl$')"


def assert_ready(answer):
    assert answer.returncode == 0
    assert re.fullmatch(r"bootstrap: ready in \d+ s", answer.stdout.splitlines()[-1])


def assert_failed(answer, *words):
    """The last line says what failed and the way out, and so does the exit code."""
    assert answer.returncode != 0
    line = answer.stderr.splitlines()[-1]
    assert line.startswith("bootstrap: FAILED: ")
    assert [word for word in words if word not in line] == []
    assert "ready" not in answer.stdout


def damage(node, uri):
    """Put one byte more at the end of an object."""
    node.check(f"it=$(mktemp); aws s3 cp {uri} $it; echo >>$it; aws s3 cp $it {uri}")


@pytest.fixture(scope="module")
def ready(start):
    """A node that was bootstrapped from the wheelhouse: (node, answer, seconds)."""
    with start() as node:
        started = time.monotonic()
        answer = node.bootstrap()
        yield node, answer, time.monotonic() - started


class TestAReadyNode:
    def test_was_made_from_the_wheelhouse_without_a_network(self, ready):
        node, answer, _ = ready
        assert_ready(answer)
        assert f"wheels come from {STAGE}/wheelhouse/" in answer.stdout
        assert "unreachable" in node.run("exec 3<>/dev/tcp/192.0.2.1/80").stderr

    def test_has_put_an_image_through_the_backbone(self, ready):
        assert "mobilenet_v2-32-avg-random.tflite gives 1280 features" in ready[1].stdout

    def test_changes_nothing_when_it_is_run_again(self, ready):
        node, _, seconds = ready
        listing = f"find {VENV} -printf '%p %T@ %s\\n' | sort"
        before = node.check(listing)
        started = time.monotonic()
        assert_ready(node.bootstrap())
        assert time.monotonic() - started < seconds / 2
        assert node.check(listing) == before

    def test_belongs_to_hadoop(self, ready):
        assert ready[0].check(f"find {VENV} ! -user hadoop") == ""

    def test_serves_other_users(self, ready):
        # As YARN's containers, which may not write there.
        script = f"{VENV}/bin/python -c 'import fruits_lib.udf, ai_edge_litert.interpreter'"
        ready[0].check(script, user="yarn")
        assert ready[0].check("find /opt/fruits ! -readable", user="yarn") == ""
        assert ready[0].check("find /opt/fruits -writable ! -type l", user="yarn") == ""

    def test_has_no_spark_and_no_tensorflow_of_its_own(self, ready):
        found = ready[0].check(f"ls {PACKAGES}").split()
        assert {"numpy", "fruits_lib"} <= set(found)
        assert not {"pyspark", "tensorflow", "keras"} & set(found)

    def test_leaves_no_downloads(self, ready):
        assert ready[0].check("ls /opt/fruits").split() == ["bin", "venv"]

    def test_left_the_system_python_alone(self, ready):
        assert ready[0].check("cat /var/log/dnf.log") == ""
        assert ready[0].run("python3.11 -c 'import numpy'").returncode != 0

    def test_carries_the_notebooks(self, ready):
        assert (
            ready[0].check(f"ls {VENV}/share/fruits/notebooks").split()[1] == "02_featurize.ipynb"
        )

    def test_runs_fruits_with_the_spark_of_emr(self, ready):
        node = ready[0]
        command = "/opt/fruits/bin/fruits --version"
        answer = node.run(command)  # bootstrap comes before Spark
        assert answer.returncode != 0
        assert "the cluster has no Spark application" in answer.stderr
        lib = "/usr/lib/spark/python/lib"  # as EMR lays it out
        node.check(
            f"mkdir -p {lib}; cp /mnt/pyspark/python/lib/py4j-*-src.zip {lib}/; "
            "ln -s /mnt/pyspark /usr/lib/spark/python/pyspark",
            user="root",
        )
        assert "version" in node.check(command)

    def test_gives_fruits_the_region_of_the_instance(self, ready):
        assert f"AWS_REGION={REGION} " in ready[0].check("cat /opt/fruits/bin/fruits")

    def test_gives_fruits_the_region_that_create_passes(self, ready):
        assert_ready(ready[0].bootstrap("--region eu-west-3"))
        assert "AWS_REGION=eu-west-3 " in ready[0].check("cat /opt/fruits/bin/fruits")

    def test_says_so_when_there_is_no_backbone(self, ready):
        ready[0].check(f"aws s3 rm --recursive {STAGE}/backbones")
        answer = ready[0].bootstrap()
        assert_ready(answer)
        assert "no backbone is staged" in answer.stdout
        assert ready[0].check(f"ls {VENV}/share/fruits/backbones") == ""


def test_takes_the_package_index_where_there_is_no_wheelhouse(start, index):
    with start(network=True) as node:
        node.check(f"aws s3 rm --recursive --quiet {STAGE}/wheelhouse")
        answer = node.bootstrap(**index)
        assert_ready(answer)
        assert "wheels come from the package index" in answer.stdout


def test_installs_python_where_it_is_missing(node):
    node.check("mkdir /opt/hidden; mv /usr/bin/python3.11 /opt/hidden/", user="root")
    assert_ready(node.bootstrap())
    assert node.check("cat /var/log/dnf.log") == "install -y python3.11\n"


def test_starts_afresh_after_a_power_cut(node):
    process = subprocess.Popen(
        node.enter(f"bash /mnt/stage/bootstrap.sh --stage {STAGE}"), stdin=subprocess.DEVNULL
    )
    try:
        while node.run(f"test -d {PACKAGES}/numpy").returncode:  # pip is in the middle
            assert process.poll() is None
    finally:
        kill_all(process)
    assert node.run(f"test -f {VENV}/.stamp").returncode == 1
    node.check(f"touch {PACKAGES}/half_made.py")
    assert_ready(node.bootstrap())
    assert node.run(f"test -f {PACKAGES}/half_made.py").returncode == 1


def test_installs_again_when_the_lock_has_changed(node):
    assert_ready(node.bootstrap())
    damage(node, f"{STAGE}/requirements-node.lock")
    node.check(f"touch {PACKAGES}/of_the_old_lock.py")
    assert_ready(node.bootstrap())
    assert node.run(f"test -f {PACKAGES}/of_the_old_lock.py").returncode == 1


class TestFails:
    """Every time with another last line, and without a stamp that would say it is ready."""

    def test_when_a_wheel_is_missing(self, node):
        node.check(f"aws s3 rm {WHEELS}/{NUMPY}")
        assert_failed(node.bootstrap(), "numpy==", "fruits emr stage")
        assert node.run(f"test -f {VENV}/.stamp").returncode == 1

    def test_when_a_wheel_has_another_hash(self, node):
        damage(node, f"{WHEELS}/{NUMPY}")
        assert_failed(node.bootstrap(), "HASHES", "numpy==", "fruits emr stage")
        assert node.run(f"test -f {VENV}/.stamp").returncode == 1

    def test_when_the_projects_wheel_has_another_hash(self, node):
        damage(node, f"{STAGE}/{PROJECT}")
        assert_failed(node.bootstrap(), "fruits_lib-", "another sha256", "fruits emr stage")

    def test_when_two_wheels_of_the_project_are_staged(self, node):
        node.check(f"aws s3 cp {STAGE}/{PROJECT} {STAGE}/fruits_lib-9-py3-none-any.whl")
        assert_failed(node.bootstrap(), "2 wheels of fruits_lib", "fruits_lib-9-py3-none-any.whl")

    def test_when_the_instance_does_not_tell_its_region(self, node):
        answer = node.bootstrap(AWS_EC2_METADATA_SERVICE_ENDPOINT="http://127.0.0.1:1")
        assert_failed(answer, "connect", "region", "--region eu-west-1")

    def test_when_the_backbone_is_damaged(self, node):
        node.check(f"echo no network | aws s3 cp - {STAGE}/backbones/damaged.tflite")
        assert_failed(node.bootstrap(), "self-test", "damaged.tflite", "Flatbuffer", "--weights")
        assert node.run(f"test -f {VENV}/.stamp").returncode == 1

    def test_when_the_backbone_has_another_hash(self, node):
        name = "mobilenet_v2-32-avg-random.tflite.sha256"
        text = f"{64 * '0'}  {name.removesuffix('.sha256')}"
        node.check(f"echo '{text}' | aws s3 cp - {STAGE}/backbones/{name}")
        assert_failed(node.bootstrap(), "checking backbones", name, "fruits emr stage")
        assert node.run(f"test -f {VENV}/.stamp").returncode == 1

    def test_when_the_bucket_is_not_there(self, node):
        node.check("aws s3 rb --force s3://fruits")
        assert_failed(node.bootstrap(), "NoSuchBucket", f"reading {STAGE}/", "fruits emr stage")

    def test_when_the_bucket_refuses(self, node):
        # The server knows no key: from now on, none will do.
        node.check("curl -sS --fail -H 'Content-Type: text/plain' -d 0 $URL/moto-api/reset-auth")
        assert_failed(node.bootstrap(), "InvalidAccessKeyId", "node's role read it")

    def test_when_there_is_no_way_to_the_bucket(self, node):
        answer = node.bootstrap(AWS_ENDPOINT_URL="http://127.0.0.1:1")
        assert_failed(answer, "Could not connect", f"reading {STAGE}/")

    def test_when_the_user_may_not_sudo(self, node):
        assert_failed(node.bootstrap(user="yarn"), "making /opt/fruits", "hadoop")

    def test_when_the_disk_is_full(self, node):
        node.check("mkdir /opt/fruits", user="root")
        node.mount_small_disk("/opt/fruits", "300m")
        assert_failed(node.bootstrap(), "300 MB are free, 1000 are needed", "--ebs-gb")


@pytest.mark.parametrize(
    "arguments", [[], ["--stage"], ["--stage", "/a/folder"], ["--stage", "s3://b/p", "--what", "x"]]
)
def test_wrong_arguments_are_one_line(arguments):
    script = CHECKOUT / "bootstrap.sh"
    answer = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
    assert_failed(answer, "arguments", "write bootstrap.sh --stage s3://bucket/prefix")
    assert answer.stderr.count("\n") == 1
