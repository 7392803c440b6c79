"""Every file below a folder or bucket of photographs: indexed, or set aside with a reason."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from fruits_lib import aws, storage
from fruits_lib.errors import FruitsError
from fruits_lib.session import settings
from fruits_lib.udf import FETCHERS, LARGEST_FILE, hasher, raw_format

SPLITS = {
    name: split
    for split, names in {
        "Training": ("train", "training"),
        "Test": ("test", "testing"),
        "Validation": ("val", "valid", "validation"),
    }.items()
    for name in names
}
HIDDEN = "hidden: its name or a folder's begins with . or _"
NOT_UTF_8 = "its name is not UTF-8: rename it"
NO_IMAGE = "not an image"
# A file with one of these extensions is indexed unopened: 02 decodes it or says why it cannot. What
# has another extension is indexed if its first bytes are those of an image.
_EXTENSIONS = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|webp|bmp|dib|tiff?|gif|hei[cf]|avif|jxl|jp2"
    r"|dng|cr[23]|nef|arw|orf|raf|rw2|pef|srw)"
)
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0|II\*\0|MM\0\*"
    rb"|GIF8[79]a|\0\0\0\x0cjP  ",
    re.DOTALL,
)
_MAGIC_BYTES = 16
IMAGES_PER_TASK = 64  # at least, if every core has a task: a task costs as much as ten images
TASKS_PER_CORE = 4  # at most: the cores end nearly at once


@dataclass
class Listing:
    """The files below a folder: rows of the run's `index/` and `set_aside/`."""

    images: list[tuple] = field(default_factory=list)
    set_aside: list[tuple] = field(default_factory=list)

    @property
    def files(self) -> int:
        return len(self.images) + len(self.set_aside)


def by_reason(set_aside: Iterable[tuple]) -> list[dict]:
    """Return how many files are set aside, by reason and extension, for the manifest."""
    counts = Counter((reason, extension) for _, reason, extension in set_aside)
    return [
        {"reason": reason, "extension": extension, "files": number}
        for (reason, extension), number in sorted(counts.items())
    ]


@dataclass(frozen=True)
class _File:
    path: str  # below the data folder
    length: int
    modified: int  # milliseconds since the epoch
    fault: str = ""  # why it is set aside


def list_files(spark: SparkSession, data: str) -> Listing:
    """List every file below a qualified data folder, at any depth, without decoding any.

    Local links to folders are followed. Parquet knows only UTF-8: a name that is another encoding
    is kept with escapes, as set aside.

    Raises
    ------
    FruitsError
        If the folder is missing, is a file, or cannot be listed.
    """
    if storage.is_s3(data):
        found, read_start = _list_bucket(data)
    elif data.startswith("file:"):
        found, read_start = _list_folder(data.removeprefix("file:"))
    else:
        found, read_start = _list_hadoop(spark, data)
    root = data.rsplit("/", 1)[-1]
    listing, unknown = Listing(), []
    for file in sorted(found, key=lambda file: file.path):
        if file.fault:
            _set_aside(listing, file.path, file.fault)
        elif any(part.startswith((".", "_")) for part in file.path.split("/")):
            _set_aside(listing, file.path, HIDDEN)
        elif _EXTENSIONS.fullmatch(_extension(file.path)):
            listing.images.append(_row(file, root))
        else:
            unknown.append(file)
    with ThreadPoolExecutor(FETCHERS) as threads:
        for file, start in zip(unknown, threads.map(read_start, unknown), strict=True):
            if isinstance(start, str):
                _set_aside(listing, file.path, start)
            elif _MAGIC.match(start) or raw_format(start):
                listing.images.append(_row(file, root))
            else:
                _set_aside(listing, file.path, NO_IMAGE)
    listing.images.sort()
    return listing


def label_and_split(path: str, root: str) -> tuple[str | None, str | None]:
    """Return label and split of a path below the data folder, whose own name is `root`.

    The label is the name of the folder that holds the image, in Unicode's composed form (NFC), or
    None if that is the data folder or a split folder. The split is the nearest folder above that
    is named train, training, test, val, valid or validation, in any case: Training, Test,
    Validation, or None.
    """
    folders = [name for name in path.split("/")[:-1] if name]
    splits = [SPLITS[name.lower()] for name in (root, *folders) if name.lower() in SPLITS]
    label = folders[-1] if folders and folders[-1].lower() not in SPLITS else None
    return label and unicodedata.normalize("NFC", label), splits[-1] if splits else None


@dataclass(frozen=True)
class Difference:
    """Paths in which two listings of one folder differ, by name."""

    new: list[str]
    gone: list[str]
    changed: list[str]


def compare(
    spark: SparkSession,
    data: str,
    index: Iterable[tuple],
    hashes: Callable[[], dict[str, str]],
    listing: Listing,
) -> Difference:
    """Compare the photographs of an index with those that are there now.

    One is unchanged if its length is the same, and its modification time or, for a copy of the
    folder, the sha256 of its content.

    Parameters
    ----------
    spark : SparkSession
    data : str
        The qualified data folder.
    index : iterable of (path, length, modification time in milliseconds)
    hashes : callable
        Returns the known sha256 by path; called only if times differ.
    listing : Listing
    """
    before = {path: (length, time) for path, length, time in index}
    now = {path: (n, round(time.timestamp() * 1000)) for path, _, _, n, time in listing.images}
    both = sorted(before.keys() & now.keys())
    changed = {path for path in both if before[path][0] != now[path][0]}
    touched = [path for path in both if before[path] != now[path] and path not in changed]
    if touched:
        known = hashes()
        rows = [(path, now[path][0]) for path in touched if path in known]
        read = photographs(spark, data, rows, "path string, length long")
        found = read.mapInArrow(hasher, "path string, content_sha256 string").collect()
        same = {row.path for row in found if row.content_sha256 == known[row.path]}
        changed |= set(touched) - same
    return Difference(
        sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys()), sorted(changed)
    )


def times(index: DataFrame) -> list[tuple]:
    """Return path, length and modification time in milliseconds of the rows of an index."""
    rows = index.select("path", "length", F.unix_millis("modification_time")).collect()
    return list(map(tuple, rows))


def photographs(
    spark: SparkSession,
    data: str,
    rows: list[tuple],
    columns: str,
    max_bytes: int = LARGEST_FILE,
) -> DataFrame:
    """Return photographs of the index as the input of the functions of `udf`.

    Parameters
    ----------
    spark : SparkSession
    data : str
        The qualified data folder.
    rows : list of tuple
        Values of `columns`; the first is the path, the last the length.
    columns : str
        Their schema.
    max_bytes : int
        Longer files come without content, for `udf` refuses them unread.

    Returns
    -------
    DataFrame
        `columns`, and uri where the workers read the files themselves (local files, S3), or
        content where only Hadoop can.
    """
    table = spark.createDataFrame(rows, columns)
    if data.startswith("file:") or storage.is_s3(data):
        cores = spark.sparkContext.defaultParallelism
        tasks = cores * min(TASKS_PER_CORE, 1 + len(rows) // (cores * IMAGES_PER_TASK))
        return table.repartition(tasks).withColumn("uri", F.concat(F.lit(f"{data}/"), "path"))
    unread = f"length = 0 or length > {max_bytes}"
    empty = table.filter(unread).withColumn("content", F.lit(b""))
    filled = [f"{data}/{row[0]}" for row in rows if 0 < row[-1] <= max_bytes]
    if not filled:
        return empty
    # Spark counts 4 MB for opening any file, which makes tasks of 30 photographs.
    with settings(spark, {"spark.sql.files.openCostInBytes": str(64 * 1024)}):
        content = (
            spark.read.format("binaryFile")
            .options(__globPaths__="false", ignoreMissingFiles="true")
            .load(filled)
            .filter(F.col("length") <= max_bytes)  # of a file that has grown: before it is read
            .select(F.substring("path", len(data) + 2, 1 << 30).alias("path"), "content")
        )
    return content.join(F.broadcast(table), "path").select(*table.columns, "content").union(empty)


def _row(file: _File, root: str) -> tuple:
    modified = datetime.fromtimestamp(file.modified / 1000, UTC)
    return file.path, *label_and_split(file.path, root), file.length, modified


def _set_aside(listing: Listing, path: str, reason: str) -> None:
    listing.set_aside.append((path, reason, _extension(path)))


def _extension(path: str) -> str:
    return found[0].lower() if (found := re.search(r"\.[^./]*\Z", path)) else ""


# --- three kinds of file system -----------------------------------------------------------------


def _check_folder(data: str, exists: bool, is_file: bool) -> None:
    if not exists:
        raise FruitsError(f"data={data} does not exist: give a folder that holds photographs")
    if is_file:
        raise FruitsError(f"data={data} is a file: give the folder that holds the photographs")


def _list_folder(root: str) -> tuple[list[_File], Callable]:
    _check_folder(root, os.path.exists(root), os.path.isfile(root))

    def walk(folder: str, above: tuple) -> Iterator[_File]:
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
        except OSError as error:
            if not folder:
                raise FruitsError(f"data={root} cannot be listed: {error.strerror}") from None
            yield _File(_text(folder), 0, 0, f"folder that cannot be listed: {error.strerror}")
            return
        for entry in entries:
            path = os.path.join(folder, entry.name)
            try:
                found = entry.stat()
            except OSError as error:
                reason = "broken link" if entry.is_symlink() else error.strerror
                yield _File(_text(path), 0, 0, reason)
                continue
            identity = found.st_dev, found.st_ino
            if stat.S_ISDIR(found.st_mode):
                if identity in above:
                    yield _File(_text(path), 0, 0, "link to a folder above it")
                else:
                    yield from walk(path, (*above, identity))
            else:
                fault = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
                fault = fault or ("" if _text(path) == path else NOT_UTF_8)
                yield _File(_text(path), found.st_size, found.st_mtime_ns // 1_000_000, fault)

    def read_start(file: _File) -> bytes | str:
        try:
            with open(os.path.join(root, file.path), "rb") as stream:
                return stream.read(_MAGIC_BYTES)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    top = os.stat(root)
    return list(walk("", ((top.st_dev, top.st_ino),))), read_start


def _text(path: str) -> str:
    """Return a path as UTF-8 can hold it: Python keeps other bytes of a name as surrogates."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _list_bucket(data: str) -> tuple[list[_File], Callable]:
    bucket, key = storage.bucket_and_key(data)
    prefix = f"{key}/" if key else ""
    s3 = aws.client("s3", config=aws.FILE_RETRIES)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    try:
        found = [
            _File(
                entry["Key"].removeprefix(prefix),
                entry["Size"],
                round(entry["LastModified"].timestamp() * 1000),
            )
            for page in pages
            for entry in page.get("Contents", ())
            if entry["Size"] or not entry["Key"].endswith("/")  # not the mark of a folder
        ]
    except (ClientError, BotoCoreError) as error:
        raise FruitsError(f"data={data}: {aws.explain(error)}") from None

    def read_start(file: _File) -> bytes | str:
        if not file.length:
            return b""
        part = {"Bucket": bucket, "Key": prefix + file.path, "Range": f"bytes=0-{_MAGIC_BYTES - 1}"}
        try:
            return s3.get_object(**part)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            return f"cannot be read: {aws.explain(error)}"

    return found, read_start


def _list_hadoop(spark: SparkSession, data: str) -> tuple[list[_File], Callable]:
    hadoop = spark._jvm.org.apache.hadoop
    root = hadoop.fs.Path(data)
    fs = root.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
    exists = fs.exists(root)
    _check_folder(data, exists, exists and fs.getFileStatus(root).isFile())
    # All names as one string: a call to the JVM for each of many files takes minutes.
    statuses = hadoop.util.functional.RemoteIterators.toList(fs.listFiles(root, True))
    text = spark._jvm.scala.collection.JavaConverters.asScalaBuffer(statuses).mkString("\0")
    pattern = re.compile(r"path=(.*?); isDirectory=.*?; length=(\d+);.*modification_time=(\d+)")
    found = [
        _File(path[len(data) + 1 :], int(length), int(modified))
        for status in filter(None, text.split("\0"))
        for path, length, modified in pattern.findall(status)
    ]

    def read_start(file: _File) -> bytes | str:
        stream = fs.open(hadoop.fs.Path(f"{data}/{file.path}"))
        try:
            least = min(_MAGIC_BYTES, file.length)
            return bytes(spark._jvm.org.apache.commons.io.IOUtils.toByteArray(stream, least))
        finally:
            stream.close()

    return found, read_start
