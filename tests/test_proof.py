"""05 catches whatever is changed in a finished run or among its photographs, each by its check."""

import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pipeline import check, classify_scores, pick_k, write_features, write_index, write_scores

from fruits_lib import answers, keys, origin, verify
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


def noise(rows):
    random = np.random.default_rng(0)
    for row in rows:
        row["features"] = random.random(len(row["features"])).tolist()


PLACES = "labels or splits unlike the path's"
WRITTEN = "batches unlike what 02_featurize wrote"
MUTATIONS = {  # what is changed -> (how, the check that catches it)
    "label in index/": (cells("index", label), PLACES),
    "split in features/": (cells("features", no_split), PLACES),
    "label in rejects/": (cells("rejects", label), PLACES),
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
    "a score in pca_csv/": (csv_row, "rows of pca_csv/ unlike pca/"),
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
    "features replaced by noise": (before_03(cells("features", noise)), WRITTEN),
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
        lambda results: [origin.check_batches(results.run, results.digests)],
        verify.check_photographs,
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


# --- every key ----------------------------------------------------------------------------------


def remembered(function):
    """Return a function that is called once for the same texts, for what no test here changes."""
    found = {}

    def call(*values):
        texts = tuple(filter(lambda value: isinstance(value, str), values))
        if texts not in found:
            found[texts] = function(*values)
        return found[texts]

    return call


@pytest.fixture(scope="module")
def proof(spark, finished, tmp_path_factory):
    """A copy of the finished run after 06, read back once: (run folder, results)."""
    with pytest.MonkeyPatch.context() as patch:
        yield prove(spark, finished, tmp_path_factory, patch)


def prove(spark, finished, tmp_path_factory, patch):
    folder = shutil.copytree(finished / "run", tmp_path_factory.mktemp("proof") / "run")
    run = open_run(spark, str(folder))
    classify_scores(run)
    load_model = remembered(answers.load_model)
    for module, *names in (
        (answers, "_measure", "_figures", "_nearest"),
        (origin, "_wrong_labels"),
    ):
        for name in names:
            patch.setattr(module, name, remembered(getattr(module, name)))
    patch.setattr(answers, "load_model", load_model)
    patch.setattr(verify, "load_model", load_model)
    results = verify.read_results(run)
    assert results.valid
    assert results.again
    return folder, results


def of_npz(content):
    with np.load(io.BytesIO(content)) as archive:
        return dict(archive)


def to_npz(values):
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


def read(file):
    content = file.read_bytes()
    return of_npz(content) if file.suffix == ".npz" else json.loads(content)


def write(file, values):
    file.write_bytes(to_npz(values) if file.suffix == ".npz" else json.dumps(values).encode())


def test_every_key_of_a_run_has_an_owner_or_a_reason(proof):
    folder, results = proof
    recorded = read(folder / "manifest.json")
    assert recorded.keys() <= {*keys.MANIFEST, *keys.PLACES}
    for entry in recorded.keys() & keys.MANIFEST.keys():
        known = {name.split(".")[0] for name in keys.MANIFEST[entry]}
        assert recorded[entry].keys() <= known
    for name, owners in keys.FILES.items():
        assert read(folder / name).keys() == owners.keys()
    assert not any(fails(owner, results) for owner in {owner for _, _, owner in OWNED})


def other(value):
    """Return another value of the same kind."""
    match value:
        case bool() | np.bool_():
            return not value
        case dict():
            return {**value, next(iter(value)): "24 1"}
        case list():
            return []
        case np.ndarray() if value.dtype.kind == "U":
            return value[::-1] if value.ndim else np.array(f"{value}x")
        case np.ndarray() if value.ndim:
            changed = value.copy()
            changed[(-1,) * value.ndim] += 1e-5 * np.abs(value).max()
            return changed
        case str():
            return f"{value}x"
        case None:
            return 1
    return value - 1e-3 if np.asarray(value).dtype.kind == "f" else value + 1


def nan(value):
    """Return a value with NaN, or None if it holds no number with a fraction."""
    if np.asarray(value).dtype.kind == "f":
        changed = np.array(value)
        changed[(-1,) * changed.ndim] = np.nan
        return changed if isinstance(value, np.ndarray) else np.nan
    return None


OWNED = [
    (name, key, owner)
    for name, owners in (
        *(
            (entry, {key: found.owner for key, found in known.items()})
            for entry, known in keys.MANIFEST.items()
        ),
        *keys.FILES.items(),
    )
    for key, owner in owners.items()
    if not owner.startswith(keys.INFORMATION)
]


@pytest.mark.parametrize(("name", "key", "owner"), OWNED, ids=lambda value: value)
def test_a_changed_key_fails_the_check_that_owns_it(proof, name, key, owner):
    folder, results = proof
    file = folder / ("manifest.json" if name in keys.MANIFEST else name)
    content, values = file.read_bytes(), read(file)
    entry, *path = [*[name] * (name in keys.MANIFEST), *key.split(".")]
    found = values
    for part in path:
        found, entry = found[entry], part
    before = found.get(entry)
    try:
        for after in filter(lambda value: value is not None, (other(before), nan(before))):
            found[entry] = after
            write(file, values)
            assert fails(owner, results), f"{before!r} -> {after!r}"
    finally:
        file.write_bytes(content)


def fails(owner, before):
    """Return whether a check fails, or 05 ends in one line, after a change of small files."""
    try:
        run = open_run(before.run.spark, before.run.uri)
        results = replace(
            before, run=run, **verify.read_files(run, before.counts["features"].weights)
        )
        vars(results).update(measured=before.measured, again=before.again)  # of tables
        groups = (
            verify.check_model,
            verify.check_scores,
            lambda results: [
                origin.check_batches(run, results.digests),
                origin.check_backbone(run, results.described, results.network),
            ],
            lambda results: answers.check_classifier(run),
            lambda results: origin.check_files(run, results.counts),
            verify.check_rows,
        )
        found = (check for group in groups for check in group(results) if check.name == owner)
        return next(found).passed is False
    except FruitsError as error:
        return "\n" not in str(error)


def test_the_docs_name_every_check(proof):
    text = (Path(__file__).parents[1] / "docs/how-it-works.md").read_text(encoding="utf-8")
    groups = verify.check_photographs, verify.check_rows, verify.check_model, verify.check_scores
    for name in (found.name for group in groups for found in group(proof[1])):
        assert re.sub(r"of \d+ photographs", "of N photographs", name) in text
