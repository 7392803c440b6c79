"""What must hold for any input: of the decoder, of labels and splits, and of moments."""

import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_udf import encode, photograph

from fruits_lib import moments, splits
from fruits_lib.files import SPLITS, label_and_split
from fruits_lib.udf import FORMATS, Decoding, ImageError, decode_image

# The same examples on every machine, however slow: a failure is never chance.
any_input = settings(derandomize=True, deadline=None, database=None, max_examples=300)

FILES = [encode(photograph(), form) for form in FORMATS]
STARTS = [b"", *(content[:16] for content in FILES)]
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
folders = names.filter(lambda name: name.lower() not in SPLITS)
a_split = st.sampled_from(sorted(SPLITS)).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)


def assert_pixels_or_a_reason(content, truncated):
    try:
        pixels = decode_image(content, 8, Decoding(max_pixels=10_000, truncated=truncated))
    except ImageError as error:
        (line,) = str(error).splitlines()
        assert line.encode()  # Parquet keeps UTF-8 alone
    else:
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)


@pytest.mark.parametrize("truncated", ["reject", "accept"])
@any_input
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=500))
def test_any_bytes_give_pixels_or_a_reason(truncated, start, rest):
    assert_pixels_or_a_reason(start + rest, truncated)


@pytest.mark.parametrize("truncated", ["reject", "accept"])
@pytest.mark.parametrize("content", FILES, ids=FORMATS)
@any_input
@given(data=st.data())
def test_a_file_with_other_bytes_gives_pixels_or_a_reason(truncated, content, data):
    changed = bytearray(content)
    # Headers are few of the bytes and most of the code.
    places = st.integers(0, 63) | st.integers(0, len(content) - 1)
    for place, value in data.draw(st.dictionaries(places, st.integers(0, 255), max_size=8)).items():
        changed[place] = value
    kept = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    assert_pixels_or_a_reason(bytes(changed[:kept]), truncated)


@any_input
@given(above=st.lists(names, max_size=3), split=a_split, label=folders, file=names, root=names)
def test_label_and_split_are_those_of_the_nearest_folders(above, split, label, file, root):
    expected = unicodedata.normalize("NFC", label), SPLITS[split.lower()]
    assert label_and_split("/".join([*above, split, label, file]), root, set()) == expected


@any_input
@given(above=st.lists(folders, max_size=3), label=folders, file=names, root=folders)
def test_without_a_split_folder_there_is_no_split(above, label, file, root):
    assert label_and_split("/".join([*above, label, file]), root, set())[1] is None


@any_input
@given(label=folders)
def test_both_unicode_forms_of_a_name_are_one_label(label):
    forms = [unicodedata.normalize(form, label) for form in ("NFC", "NFD")]
    assume(all(form.lower() not in SPLITS for form in forms))
    composed, decomposed = (label_and_split(f"{form}/1.jpg", "data", set()) for form in forms)
    assert composed == decomposed


@any_input
@given(
    labels=st.lists(
        st.builds("{}{}{}".format, st.sampled_from("aäB"), st.sampled_from("_ -"), st.integers(0))
        | names,
        unique=True,
    )
)
def test_a_fruit_is_held_out_only_where_its_kind_keeps_another(labels):
    held = splits.held_out(labels)
    kinds = [splits._fruit(label)[0] for label in labels]
    assert {splits._fruit(label)[0] for label in set(labels) - set(held)} == set(kinds)
    assert len(held) == sum(kinds.count(kind) > 1 for kind in set(kinds))


@settings(any_input, max_examples=20)
@given(
    columns=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1.0, -3e4, 1e6, 1e12]),  # mean
            st.sampled_from([0.0, 1e-3, 1.0]),  # spread: 0 is a constant column
        ),
        min_size=1,
        max_size=5,
    ),
    rows=st.lists(st.integers(0, 5), min_size=2, max_size=12),  # equal numbers: equal rows
)
def test_moments_equal_those_of_longer_floats(spark, columns, rows):
    means, spreads = np.array(columns).T
    noise = np.random.default_rng(0).standard_normal((6, len(columns)))
    x = (means + spreads * noise).astype(np.float32)[rows]
    found = moments.compute(
        spark.createDataFrame([(row.tolist(),) for row in x], "features array<float>")
    )
    exact = x.astype(np.longdouble)
    centred = exact - exact.mean(axis=0)
    # What rounding may cost: a sum of squares would lose the square of the mean instead.
    rounding = 8 * np.finfo(np.float64).eps * np.abs(x).max(axis=0).astype(float)
    spread = np.abs(centred).max(axis=0).astype(float) + rounding
    bound = np.outer(rounding, spread) + np.outer(spread, rounding)
    assert found.n == len(rows)
    assert (np.abs(found.mean - exact.mean(axis=0)) <= rounding).all()
    assert (np.abs(found.m2 - centred.T @ centred) <= len(rows) * bound).all()
