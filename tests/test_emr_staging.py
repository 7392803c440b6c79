"""What `fruits emr create` puts into the bucket."""

import hashlib
import json
from dataclasses import replace

import pytest
from fake_emr import BUCKET, REGION, STAGE, fake_world

from fruits_lib import aws
from fruits_lib.backbones import NETWORKS
from fruits_lib.emr import staging
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError
from fruits_lib.parameters import find_notebooks

SPEC = ClusterSpec(STAGE)
BACKBONE = "stage/backbones/mobilenet_v2-224-avg-imagenet.tflite"
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
    folder.mkdir()
    (folder / "bootstrap.sh").write_text("#!/bin/bash\n")
    (folder / "requirements-node.lock").write_text("numpy==1.26.4\n")
    monkeypatch.setattr(staging, "CHECKOUT", folder)
    monkeypatch.setattr(staging, "export", lambda spec: LITERT + spec.name.encode())
    return folder


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "fruits_lib-0.1-py3-none-any.whl"
    file.write_bytes(b"a wheel")
    return file


def content(world, key):
    return world.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_everything_that_a_node_needs_is_staged(world, wheel):
    staging.stage(world.s3, SPEC, wheel)
    notebooks = [path.name for path in find_notebooks()]
    assert world.listing() == {
        "stage/bootstrap.sh",
        "stage/requirements-node.lock",
        f"stage/{wheel.name}",
        f"stage/{wheel.name}.sha256",
        BACKBONE,
        *(f"stage/notebooks/{name}" for name in notebooks),
        *(f"jupyter/jovyan/{name}" for name in notebooks),
    }


def test_a_second_staging_writes_nothing(world, wheel):
    first = staging.stage(world.s3, SPEC, wheel)
    second = staging.stage(world.s3, SPEC, wheel)
    assert second.written == second.kept == []
    assert set(second.same) == set(first.written) - {BACKBONE}


def test_a_changed_file_is_replaced_alone(world, wheel, checkout):
    staging.stage(world.s3, SPEC, wheel)
    (checkout / "bootstrap.sh").write_text("#!/bin/bash\ntrue\n")
    assert staging.stage(world.s3, SPEC, wheel).written == ["stage/bootstrap.sh"]
    assert content(world, "stage/bootstrap.sh").endswith(b"true\n")


def test_the_wheel_s_sha256_lies_beside_it(world, wheel):
    staging.stage(world.s3, SPEC, wheel)
    digest, name = content(world, f"stage/{wheel.name}.sha256").decode().split()
    assert (digest, name) == (hashlib.sha256(b"a wheel").hexdigest(), wheel.name)


def test_another_version_s_wheel_is_removed(world, wheel):
    world.put("stage/fruits_lib-0.0-py3-none-any.whl", b"old")
    world.put("stage/fruits_lib-0.0-py3-none-any.whl.sha256", b"old")
    staging.stage(world.s3, SPEC, wheel)
    assert {key for key in world.listing() if "fruits_lib-" in key} == {
        f"stage/{wheel.name}",
        f"stage/{wheel.name}.sha256",
    }


def test_jupyterhub_gets_the_notebooks_with_its_kernel_and_the_same_cells(world, wheel):
    staging.stage(world.s3, SPEC, wheel)
    plain, hub = (
        json.loads(content(world, key)) for key in ("stage/notebooks/03_pick_k.ipynb", HUB)
    )
    assert hub["metadata"]["kernelspec"]["name"] == "pysparkkernel"
    assert plain["metadata"]["kernelspec"]["name"] == "python3"
    assert hub["cells"] == plain["cells"]


def test_a_notebook_edited_in_jupyterhub_is_never_replaced(world, wheel):
    staging.stage(world.s3, SPEC, wheel)
    world.put(HUB, b"an evening's work")  # JupyterHub writes no sha256 of ours
    assert staging.stage(world.s3, SPEC, wheel).kept == [HUB]
    assert content(world, HUB) == b"an evening's work"


def test_an_old_notebook_that_nobody_edited_is_replaced(world, wheel):
    staging.put_if_new(world.s3, BUCKET, HUB, b"of an older version")
    assert HUB in staging.stage(world.s3, SPEC, wheel).written


def test_a_staged_backbone_is_not_exported_again(world, wheel, monkeypatch):
    staging.stage(world.s3, SPEC, wheel)
    monkeypatch.setattr(staging, "export", lambda spec: pytest.fail("exported"))
    assert staging.stage(world.s3, SPEC, wheel).note == ""


def test_given_weights_become_the_default_backbone(world, wheel, tiny, monkeypatch):
    small = replace(NETWORKS["mobilenet_v2"], input_size=32)
    monkeypatch.setitem(NETWORKS, "mobilenet_v2", small)
    staging.stage(world.s3, SPEC, wheel, tiny)
    assert content(world, BACKBONE.replace("224", "32")) == tiny.read_bytes()


def test_weights_of_another_shape_are_refused_before_anything_is_staged(world, wheel, tiny):
    message = r"tiny.tflite maps uint8 \[1, 32, 32, 3\] .* maps uint8 \[1, 224, 224, 3\]"
    with pytest.raises(FruitsError, match=message) as caught:
        staging.stage(world.s3, SPEC, wheel, tiny)
    assert "\n" not in str(caught.value)
    assert world.listing() == set()


def test_weights_of_another_format_are_refused(world, wheel, tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(FruitsError, match=r"mine.h5 is no LiteRT file \(.*\): export one with"):
        staging.stage(world.s3, SPEC, wheel, tmp_path / "mine.h5")


def test_a_missing_backbone_is_said_with_the_way_out(world, wheel, monkeypatch):
    def export(spec):
        raise FruitsError("TensorFlow is not installed here")

    monkeypatch.setattr(staging, "export", export)
    note = staging.stage(world.s3, SPEC, wheel).note
    assert "no backbone is staged (TensorFlow is not installed here)" in note
    assert "--weights FILE.tflite" in note
    assert BACKBONE not in world.listing()


def test_outside_a_checkout_the_missing_file_is_named(world, wheel, checkout):
    (checkout / "bootstrap.sh").unlink()
    with pytest.raises(FruitsError, match=r"bootstrap\.sh is missing: run `fruits emr` from a"):
        staging.stage(world.s3, SPEC, wheel)


def test_a_bucket_in_the_cluster_s_region_is_accepted(world):
    staging.check_bucket(world.s3, SPEC)


@pytest.mark.parametrize("region", ["eu-west-3", "us-east-1"])
def test_a_bucket_in_another_region_is_refused(world, region):
    elsewhere = "far-orchard"
    place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    aws.client("s3", region).create_bucket(
        Bucket=elsewhere, **(place if region != "us-east-1" else {})
    )
    line = f"bucket {elsewhere} lies in {region}, the cluster would in {REGION}: give --region"
    with pytest.raises(FruitsError, match=line):
        staging.check_bucket(world.s3, ClusterSpec(f"s3://{elsewhere}/stage"))
