"""The same code and the same checks in a bucket; on moto, or on a real MinIO (--s3 minio)."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pipeline import apply_model, check, pick_k, write_features, write_index, write_scores

from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.files import list_files
from fruits_lib.runs import open_run
from fruits_lib.sample import GOOD

FRUITS = Path(sys.executable).with_name("fruits")
NAMES = [
    "a b.png",
    "100%.png",
    "a%20b.png",
    "a+b.png",
    "#1.png",
    "pêche.png",
    "🍎.png",
    "[x]{y}.png",
]


def photograph(sample):
    return sorted(sample.glob("Training/Lemon 100%/*.jpg"))[0].read_bytes()


def indexed(spark, bucket, tiny):
    """Return a run of the bucket's photographs after 01, and its backbone."""
    run = open_run(spark, bucket.uri("run"))
    write_index(run, bucket.uri("photographs"))
    return run, export_backbone(run, "mobilenet_v2", str(tiny), 32)


def stages(spark, data, run_dir, weights):
    """Run every stage in this process, with the quick backbone; return the run."""
    run = open_run(spark, run_dir)
    write_index(run, data)
    network = export_backbone(run, "mobilenet_v2", weights, 32)
    write_features(run, network)
    pick_k(run)
    write_scores(run)
    check(run).require()
    return run


@pytest.mark.slow
def test_a_folder_in_and_a_bucket_out(spark, sample, tiny, bucket):
    bucket.put("weights/tiny.tflite", tiny.read_bytes())
    run = stages(spark, str(sample), bucket.uri("run"), bucket.uri("weights/tiny.tflite"))
    assert run.manifest()["featurize"]["features"] == GOOD


@pytest.mark.slow
def test_a_bucket_in_and_a_folder_out(spark, sample, tiny, bucket, tmp_path):
    bucket.upload(sample, "photographs")
    run = stages(spark, bucket.uri("photographs"), str(tmp_path / "run"), str(tiny))
    assert run.manifest()["featurize"]["features"] == GOOD


@pytest.mark.slow
def test_a_notebook_without_data_finds_the_bucket_by_its_run_folder(sample, bucket, tmp_path):
    for number in range(3):
        bucket.put(f"photographs/Lemon/{number}.jpg", photograph(sample))
    photographs, quick = bucket.uri("photographs"), ("-p", "weights=random", "-p", "input_size=32")
    for own in (("--only", "01", "--data", photographs), ("--only", "02", *quick)):
        command = [FRUITS, "run", "--run-dir", tmp_path / "run", *own]
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
    recorded = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    assert recorded["featurize"]["features"] == 3


def test_new_objects_alone_are_computed(spark, sample, tiny, bucket):
    for number in range(3):
        bucket.put(f"photographs/Lemon/{number}.jpg", photograph(sample))
    run, network = indexed(spark, bucket, tiny)
    first = write_features(run, network).computed
    bucket.put("photographs/Lemon/3.jpg", photograph(sample))
    write_index(run, bucket.uri("photographs"))
    assert (
        first,
        write_features(run, network).computed,
        write_features(run, network).computed,
    ) == (3, 1, 0)


def test_a_run_in_a_bucket_is_applied_from_and_to_either(spark, sample, tiny, bucket, tmp_path):
    photographs = [*(sample / "Training/Lemon 100%").glob("*.jpg"), *sample.glob("Test/*/r_1*.jpg")]
    for number, path in enumerate(sorted(photographs)[:8]):
        bucket.put(f"photographs/Lemon/{number}.jpg", path.read_bytes())
    run, network = indexed(spark, bucket, tiny)
    write_features(run, network)
    pick_k(run, k=2)
    write_scores(run)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/1.jpg").write_bytes(photograph(sample))
    bucket.put("new/1.jpg", photograph(sample))
    before = bucket.listing("run/")
    for data, to in (
        (tmp_path / "new", bucket.uri("applied")),
        (bucket.uri("new"), tmp_path / "applied"),
    ):
        found = apply_model(spark, bucket.uri("run"), data, to)
        assert (found.images, found.k, found.checks.failed) == (1, 2, [])
    assert bucket.listing("run/") == before


def test_keys_of_any_characters(spark, sample, tiny, bucket):
    for name in NAMES:
        bucket.put(f"photo graphs/Pêche 1%/{name}", photograph(sample))
    run = open_run(spark, bucket.uri("run 1%,[x]{y}*?:z"))
    write_index(run, bucket.uri("photo graphs"))
    write_features(run, export_backbone(run, "mobilenet_v2", str(tiny), 32))
    rows = open_run(spark, run.uri).read_table("features").select("path", "label").collect()
    assert {row.path.rsplit("/", 1)[1] for row in rows} == set(NAMES)
    assert {row.label for row in rows} == {"Pêche 1%"}


def test_a_listing_of_three_pages(spark, bucket):
    with ThreadPoolExecutor(16) as threads:
        keys = [f"photographs/Lemon/{number}.jpg" for number in range(2500)]
        list(threads.map(bucket.put, keys, [b"x"] * len(keys)))
    assert list_files(spark, bucket.uri("photographs")).files == 2500


def test_objects_that_cannot_be_read_are_rejects(spark, sample, tiny, bucket, request):
    # S3 has keys with an empty part, MinIO refuses them.
    folder = "Lemon/" if request.config.getoption("--s3") == "moto" else "Lemon"
    for number in range(3):
        bucket.put(f"photographs/{folder}/{number}.jpg", photograph(sample))
    run, network = indexed(spark, bucket, tiny)
    bucket.client.delete_object(Bucket=bucket.name, Key=f"photographs/{folder}/1.jpg")
    result = write_features(run, network, max_reject_ratio=1)
    assert (result.features, result.rejects) == (2, 1)
    (row,) = open_run(spark, run.uri).read_table("rejects").collect()
    assert row.path == f"{folder}/1.jpg"
    assert row.reason.startswith("cannot be read: GetObject: NoSuchKey: ")


def test_archived_objects_are_rejects(spark, sample, tiny, bucket, request):
    if request.config.getoption("--s3") != "moto":
        pytest.skip("MinIO has no archive")
    for number, kind in enumerate(("STANDARD", "GLACIER", "STANDARD")):
        place = {"Bucket": bucket.name, "Key": f"photographs/Lemon/{number}.jpg"}
        bucket.client.put_object(**place, Body=photograph(sample), StorageClass=kind)
    run, network = indexed(spark, bucket, tiny)
    write_features(run, network, max_reject_ratio=1)
    (row,) = open_run(spark, run.uri).read_table("rejects").collect()
    assert row.path == "Lemon/1.jpg"
    assert row.reason.startswith("cannot be read: GetObject: InvalidObjectState: ")


def test_a_missing_prefix_is_one_line(spark, bucket):
    with pytest.raises(FruitsError, match="photographs"):
        write_index(open_run(spark, bucket.uri("run")), bucket.uri("photographs"))
