"""05 catches whatever is changed in a finished run or among its photographs, each by its check."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pipeline import check, pick_k, write_features, write_index, write_scores

from fruits_lib import origin, verify
from fruits_lib.backbones import export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.runs import open_run

LABELS = ("apple", "lemon", "pear")


def photograph(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").rotate(37 * seed).resize((24, 24)).convert("RGB").point(
        [(value * (seed % 5 + 1) + 29 * seed) % 256 for value in range(256)] * 3
    ).save(path)


@pytest.fixture(scope="module")
def finished(spark, tiny, tmp_path_factory):
    """A run of 24 photographs, two rejects and two other files, and its photographs."""
    folder = tmp_path_factory.mktemp("finished")
    for number in range(24):
        split = ("Training", "Test")[number % 2]
        photograph(folder / f"data/{split}/{LABELS[number % 3]}/{number:02}.png", number)
    (folder / "data/Test/pear/empty.png").write_bytes(b"")
    (folder / "data/Test/pear/text.png").write_bytes(b"This is text.")
    (folder / "data/notes.txt").write_text("Apples were dear.")
    (folder / "data/.hidden.png").write_bytes(b"")
    run = open_run(spark, str(folder / "run"))
    write_index(run, folder / "data")
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    write_features(run, backbone, max_reject_ratio=1, batch_size=14)
    reduce(run)
    assert not check(run).failed
    return folder


@pytest.fixture
def copy(spark, finished, tmp_path):
    """A copy of it, to break: (run folder, data folder, run)."""
    shutil.copytree(finished, tmp_path / "copy")
    manifest = tmp_path / "copy/run/manifest.json"
    text = manifest.read_text().replace(f"{finished}/", f"{tmp_path}/copy/")
    manifest.write_text(text)
    run = open_run(spark, str(tmp_path / "copy/run"))
    return tmp_path / "copy/run", tmp_path / "copy/data", run


def reduce(run):
    pick_k(run, variance=0.9)
    write_scores(run, csv=True)


# --- what is changed ----------------------------------------------------------------------------


def cells(table, change):
    """Change rows of a table, each a dict, in place, in every file that has any."""

    def damage(folder, data, run):
        done = False
        for file in sorted((folder / table).rglob("*.parquet")):
            stored = pq.ParquetFile(file).read()
            rows = stored.to_pylist()
            if rows and not done:
                done = change(rows) is None
                file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
                pq.write_table(pa.Table.from_pylist(rows, schema=stored.schema), file)
        assert done

    return damage


def label(rows):
    rows[0]["label"] = "quince"


def split(rows):
    rows[0]["split"] = "Validation"


def no_split(rows):
    rows[0]["split"] = None


def reason(rows):
    rows[0]["reason"] = "damaged image: it looked odd"


def path(rows):
    rows[0]["path"] = rows[0]["path"].replace("Test", "Exam").replace("Training", "Trials")


def forget(rows):
    del rows[0]


def manifest(stage, **entries):
    def damage(folder, data, run):
        values = json.loads((folder / "manifest.json").read_text())
        values[stage].update(entries)
        (folder / "manifest.json").write_text(json.dumps(values))

    return damage


def replaced(folder, data, run):
    photograph(data / "Test/lemon/01.png", 99)


def replaced_with_its_time(folder, data, run):
    """Other pixels, but the same length and time: only its content tells."""
    file = data / "Test/lemon/01.png"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def deleted(folder, data, run):
    (data / "Test/lemon/01.png").unlink()


def added(folder, data, run):
    photograph(data / "Test/lemon/99.png", 99)


def added_other(folder, data, run):
    (data / "Test/lemon/notes.txt").write_text("Lemons too.")


def moved_to_another_label(folder, data, run):
    (data / "Test/lemon/01.png").rename(data / "Test/pear/01.png")


def swap(rows):
    rows[0]["features"], rows[-1]["features"] = rows[-1]["features"], rows[0]["features"]


def scale(rows):
    rows[0]["features"] = [1.01 * value for value in rows[0]["features"]]


def other_hash(rows):
    rows[0]["content_sha256"] = "0" * 64


def csv_row(folder, data, run):
    """One score."""
    (file,) = (folder / "pca_csv").glob("*.csv")
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
    text, score = file.read_text().rsplit(",", 1)
    file.write_text(f"{text},{float(score) + 1e-3}\n")


def before_03(damage):
    """Damage the features, then run 03 and 04 again."""

    def damage_and_reduce(folder, data, run):
        damage(folder, data, run)
        reduce(run)

    return damage_and_reduce


def without(table):
    def damage(folder, data, run):
        shutil.rmtree(folder / table / "batch_id=1")

    return damage


PLACES = "labels or splits unlike the path's"
COUNTS = "counts unlike the manifest's"
MUTATIONS = {  # what is changed -> (how, the check that catches it)
    "label in index/": (cells("index", label), PLACES),
    "label in features/": (cells("features", label), PLACES),
    "label in rejects/": (cells("rejects", label), PLACES),
    "label in pca/": (cells("pca", label), PLACES),
    "split in index/": (cells("index", split), PLACES),
    "split in features/": (cells("features", no_split), PLACES),
    "split in rejects/": (cells("rejects", no_split), PLACES),
    "split in pca/": (cells("pca", split), PLACES),
    "path in index/": (cells("index", path), "photographs gone since 01_load"),
    "path in features/": (cells("features", path), "rows without a photograph"),
    "path in pca/": (cells("pca", path), "features without scores, or scores without"),
    "a row of index/ removed": (cells("index", forget), "photographs added since 01_load"),
    "a row of features/ removed": (cells("features", forget), "photographs without a row"),
    "a row of rejects/ removed": (cells("rejects", forget), "photographs without a row"),
    "a row of pca/ removed": (
        cells("pca", forget),
        "features without scores, or scores without",
    ),
    "a row of set_aside/ removed": (
        cells("set_aside", forget),
        "files set aside otherwise than recorded",
    ),
    "a batch of features/ removed": (without("features"), "photographs without a row"),
    "reason of a reject": (
        cells("rejects", reason),
        "rejects decoded again with another reason",
    ),
    "files in the manifest": (manifest("load", files=29), COUNTS),
    "images in the manifest": (manifest("load", images=25), COUNTS),
    "labels in the manifest": (manifest("load", labels=4), COUNTS),
    "files set aside in the manifest": (manifest("load", set_aside=[]), COUNTS),
    "features in the manifest": (manifest("featurize", features=25), COUNTS),
    "rejects in the manifest": (manifest("featurize", rejects=0), COUNTS),
    "truncated files in the manifest": (manifest("featurize", truncated=1), COUNTS),
    "photographs without a label in the manifest": (manifest("load", unlabelled=1), COUNTS),
    "scores in the manifest": (manifest("pca", images=25), COUNTS),
    "images that were fitted in the manifest": (manifest("pick_k", images=23), COUNTS),
    "split that was fitted in the manifest": (
        manifest("pick_k", fit_split="Training"),
        "figures of k unlike the manifest's",
    ),
    "a score in pca_csv/": (csv_row, "rows of pca_csv/ unlike pca/"),
    "k in the manifest": (
        manifest("pick_k", raw={"k": 2, "explained_variance": 0.9}),
        "figures of k unlike the manifest's",
    ),
    "k of the model in the manifest": (
        manifest("pca", k=23),
        "figures of k unlike the manifest's",
    ),
    "a photograph replaced": (replaced, "photographs changed since 01_load"),
    "a photograph replaced, length and time kept": (
        replaced_with_its_time,
        "sampled photographs with other content",
    ),
    "a photograph deleted": (deleted, "photographs gone since 01_load"),
    "a photograph added": (added, "photographs added since 01_load"),
    "another file added": (added_other, "files set aside otherwise than recorded"),
    "a photograph moved to another label": (
        moved_to_another_label,
        "photographs added since 01_load",
    ),
    "hash of a photograph in features/": (
        cells("features", other_hash),
        "sampled photographs with other content",
    ),
    "features of two photographs swapped": (
        before_03(cells("features", swap)),
        "difference of 24 photographs computed again",
    ),
    "features of a photograph scaled": (
        before_03(cells("features", scale)),
        "difference of 24 photographs computed again",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_was_changed_is_caught_by_the_check_meant_for_it(copy, mutation):
    damage, name = MUTATIONS[mutation]
    damage(*copy)
    results = verify.read_results(open_run(copy[2].spark, copy[2].uri))
    groups = (
        lambda results: origin.check_files(results.run, results.counts),
        lambda results: origin.check_sample(results.run, results.content, results.size),
        verify.check_rows,
        verify.check_model,
    )
    found = (check for group in groups for check in group(results) if check.name == name)
    caught = next(found)
    assert caught.passed is False
    assert "run " in caught.remedy
    assert "\n" not in str(caught)


def test_a_copied_run_with_its_photographs_passes(copy):
    assert not check(copy[2]).failed


def test_a_flat_folder_without_labels_passes(spark, tiny, tmp_path):
    for number in range(8):
        photograph(tmp_path / f"data/{number}.png", number)
    run = open_run(spark, str(tmp_path / "run"))
    write_index(run, tmp_path / "data")
    write_features(run, export_backbone(run, weights=str(tiny), input_size=32))
    reduce(run)
    result = check(run)
    assert not result.failed, str(result)


def test_photographs_that_moved_are_named_with_the_way_out(copy):
    _, data, run = copy
    data.rename(data.with_name("elsewhere"))
    message = r"^data=.* does not exist: .* have moved, run 01_load with their new folder"
    with pytest.raises(FruitsError, match=message):
        check(run)


@pytest.mark.parametrize("table", ["index", "set_aside", "features", "rejects", "pca"])
def test_a_damaged_table_is_named_with_the_way_out(copy, table):
    folder, _, run = copy
    file = next((folder / table).rglob("*.parquet"))
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(FruitsError, match=rf"/{table} cannot be read .*: run 0\d_\w+ again$"):
        check(run)


def test_the_docs_list_every_mutation():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs/how-it-works.md").read_text(encoding="utf-8")
    for mutation, (_, name) in MUTATIONS.items():
        assert f"| {mutation} | {name} |" in text
