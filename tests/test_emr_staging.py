"""What `fruits emr create` and `stage` put into the bucket."""

import hashlib
import json
from dataclasses import replace

import pytest
from fake_emr import BUCKET, STAGE, fake_world

from fruits_lib import aws
from fruits_lib.emr import staging
from fruits_lib.errors import FruitsError
from fruits_lib.networks import NETWORKS
from fruits_lib.parameters import find_notebooks

BACKBONE = "stage/backbones/mobilenet_v2-224-avg-imagenet.tflite"
WHEEL = "fruits_lib-0.1-py3-none-any.whl"
HUB = "jupyter/jovyan/03_pick_k.ipynb"
LITERT = b"\x1c\0\0\0TFL3 and the rest"


@pytest.fixture
def world():
    with fake_world() as opened:
        yield opened


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A checkout of two small files, and a machine that can export a backbone."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts/doctor.py").write_text("import json\n")
    (folder / "bootstrap.sh").write_text("#!/bin/bash\n")
    (folder / "requirements-node.lock").write_text("numpy==1.26.4\n")
    monkeypatch.setattr(staging, "CHECKOUT", folder)
    monkeypatch.setattr(staging, "NODE_LOCK", folder / "requirements-node.lock")
    monkeypatch.setattr(staging, "export", lambda spec: LITERT + spec.name.encode())
    return folder


@pytest.fixture
def wheels(tmp_path):
    found = {}
    for key in (WHEEL, "wheelhouse/x86_64/numpy.whl"):
        found[key] = tmp_path / key.split("/")[-1]
        found[key].write_bytes(b"a wheel")
    return found


def stage(world, wheels, weights=None):
    return staging.stage(world.s3, STAGE, wheels, weights)


def test_everything_that_a_node_needs_is_staged(world, wheels):
    stage(world, wheels)
    notebooks = [*(path.name for path in find_notebooks()), "apply.ipynb"]
    assert world.listing() == {
        "stage/bootstrap.sh",
        "stage/doctor.py",
        "stage/requirements-node.lock",
        f"stage/{WHEEL}",
        f"stage/{WHEEL}.sha256",
        "stage/wheelhouse/x86_64/numpy.whl",
        BACKBONE,
        f"{BACKBONE}.sha256",
        *(f"stage/notebooks/{name}" for name in notebooks),
        *(f"jupyter/jovyan/{name}" for name in notebooks),
    }


def test_every_object_has_its_content_type(world, wheels):
    stage(world, wheels)
    types = {
        key.rsplit(".")[-1]: world.s3.head_object(Bucket=BUCKET, Key=key)["ContentType"]
        for key in world.listing()
    }
    assert "json" in types["ipynb"]
    assert "binary/octet-stream" not in types.values()


def test_a_second_staging_writes_nothing(world, wheels):
    (first,), (second,) = stage(world, wheels), stage(world, wheels)
    count = len(world.listing())
    assert first == f"{STAGE}: {count} files written, 0 there already"
    assert second == f"{STAGE}: 0 files written, {count - 2} there already"  # not the backbone


def test_a_changed_file_is_replaced_alone(world, wheels, checkout):
    stage(world, wheels)
    (checkout / "bootstrap.sh").write_text("#!/bin/bash\ntrue\n")
    assert ": 1 files written, " in stage(world, wheels)[0]
    assert world.content("stage/bootstrap.sh").endswith(b"true\n")


def test_the_backbone_has_its_sha256_beside_it(world, wheels):
    stage(world, wheels)
    digest, name = world.content(f"{BACKBONE}.sha256").decode().split()
    assert digest == hashlib.sha256(world.content(BACKBONE)).hexdigest()
    assert f"stage/backbones/{name}" == BACKBONE


def test_the_wheel_has_its_sha256_beside_it(world, wheels):
    stage(world, wheels)
    digest, name = world.content(f"stage/{WHEEL}.sha256").decode().split()
    assert (digest, name) == (hashlib.sha256(b"a wheel").hexdigest(), WHEEL)


def test_another_version_s_wheel_is_removed(world, wheels):
    for suffix in ("", ".sha256"):
        world.put(f"stage/fruits_lib-0.0-py3-none-any.whl{suffix}", b"old")
    stage(world, wheels)
    found = {key for key in world.listing() if "fruits_lib-" in key}
    assert found == {f"stage/{WHEEL}", f"stage/{WHEEL}.sha256"}


def test_jupyterhub_gets_the_notebooks_with_its_kernel_and_the_same_cells(world, wheels):
    stage(world, wheels)
    plain, hub = (
        json.loads(world.content(key)) for key in ("stage/notebooks/03_pick_k.ipynb", HUB)
    )
    assert hub["metadata"]["kernelspec"]["name"] == "pysparkkernel"
    assert plain["metadata"]["kernelspec"]["name"] == "python3"
    assert hub["cells"] == plain["cells"]


def test_a_notebook_edited_in_jupyterhub_is_never_replaced(world, wheels):
    stage(world, wheels)
    world.put(HUB, b"an evening's work")  # JupyterHub writes no sha256 of ours
    line = f"s3://{BUCKET}/{HUB} was edited in JupyterHub: it stays as it is"
    assert stage(world, wheels)[1:] == [line]
    assert world.content(HUB) == b"an evening's work"


def test_an_old_notebook_that_nobody_edited_is_replaced(world, wheels):
    staging.put_if_new(world.s3, BUCKET, HUB, b"of an older version")
    stage(world, wheels)
    assert world.content(HUB) != b"of an older version"


def test_a_staged_backbone_is_not_exported_again(world, wheels, monkeypatch):
    stage(world, wheels)
    monkeypatch.setattr(staging, "export", lambda spec: pytest.fail("exported"))
    stage(world, wheels)


def test_given_weights_become_the_default_backbone(world, wheels, tiny, monkeypatch):
    small = replace(NETWORKS["mobilenet_v2"], input_size=32)
    monkeypatch.setitem(NETWORKS, "mobilenet_v2", small)
    stage(world, wheels, tiny)
    assert world.content(BACKBONE.replace("224", "32")) == tiny.read_bytes()


def test_weights_of_another_shape_are_refused_before_anything_is_staged(world, wheels, tiny):
    message = r"tiny.tflite maps uint8 \[1, 32, 32, 3\] .* maps uint8 \[1, 224, 224, 3\]"
    with pytest.raises(FruitsError, match=message):
        stage(world, wheels, tiny)
    assert world.listing() == set()


def test_a_missing_backbone_is_reported_with_the_way_out(world, wheels, monkeypatch):
    def export(spec):
        raise FruitsError("TensorFlow is not installed here")

    monkeypatch.setattr(staging, "export", export)
    note = stage(world, wheels)[1]
    assert "no backbone is staged (TensorFlow is not installed here)" in note
    assert "--weights FILE.tflite" in note
    assert BACKBONE not in world.listing()


def test_outside_a_checkout_the_missing_file_is_named(world, wheels, checkout):
    (checkout / "bootstrap.sh").unlink()
    with pytest.raises(FruitsError, match=r"bootstrap\.sh is missing: run `fruits emr` from a"):
        stage(world, wheels)


def test_a_bucket_in_the_cluster_s_region_is_accepted(world):
    staging.check_bucket(world.s3, STAGE)


@pytest.mark.parametrize("region", ["eu-west-3", "us-east-1"])
def test_a_bucket_in_another_region_is_refused(world, region):
    place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    place = {} if region == "us-east-1" else place
    aws.client("s3", region).create_bucket(Bucket="far-orchard", **place)
    line = f"bucket far-orchard is in {region}, .* would be in eu-west-1: give --region {region}"
    with pytest.raises(FruitsError, match=line):
        staging.check_bucket(world.s3, "s3://far-orchard/stage")
