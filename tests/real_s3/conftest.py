"""Fixtures of the tests against the real server."""

import pytest
from running import IMAGES


@pytest.fixture(scope="module")
def photographs(new_bucket, sample):
    """A bucket with a part of the sample: a fault is as good on few images."""
    bucket = new_bucket()
    files = sorted(file for file in sample.glob("Training/*/*.jpg") if file.stat().st_size > 1000)
    for file in files[:: len(files) // IMAGES][:IMAGES]:
        bucket.put(f"photographs/{file.relative_to(sample).as_posix()}", file.read_bytes())
    return bucket
