"""The embedded sample: 124 files in the shape of Fruits-360, shipped in the package as sample.zip.

`scripts/draw_sample.py` draws them; they contain no photograph and are under the project's MIT
licence. Six labels, `Training/<label>/<i>_100.jpg` and `Test/<label>/r_<i>_100.jpg`.
"""

import io
import os
import zipfile
from importlib import resources
from pathlib import Path

from pyspark.sql import SparkSession

import fruits_lib
from fruits_lib.errors import FruitsError
from fruits_lib.runs import file_system, qualify, scratch_folder, write_bytes
from fruits_lib.storage import write_file

GOOD = 120  # images that decode, in every format that the decoder reads
REJECTS = 3  # files named like images that do not decode
SET_ASIDE = 1  # an image whose name begins with "_"


def files() -> dict[str, bytes]:
    """Return the content of every file of the sample by its relative path, with "/"."""
    content = resources.files("fruits_lib").joinpath("sample.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_sample(folder: str | os.PathLike) -> int:
    """Write the sample to a local folder and return its number of files.

    Files that are already there stay untouched. FruitsError says why the folder cannot be written.
    """
    sample = files()
    try:
        for name, content in sample.items():
            path = Path(folder, name)
            if not path.exists() or path.read_bytes() != content:
                write_file(path, content)
    except OSError as error:
        raise FruitsError(
            f"cannot write the sample to {os.fspath(folder)!r} ({error.strerror}): give a folder "
            "that you may create and write to"
        ) from None
    return len(sample)


def stage_sample(spark: SparkSession) -> str:
    """Return a folder with the sample that driver and executors see; write it where missing."""
    folder = f"{scratch_folder(spark)}/sample-{fruits_lib.__version__}"
    marker = f"{folder}.complete"
    fs, path = file_system(spark, qualify(spark, marker))
    if not fs.exists(path):
        for name, content in files().items():
            write_bytes(spark, qualify(spark, f"{folder}/{name}"), content)
        write_bytes(spark, qualify(spark, marker), b"")
    return folder
