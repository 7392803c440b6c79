"""Every file below a folder or bucket of photographs: indexed, or set aside with a reason."""

import fnmatch
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate

from botocore.exceptions import BotoCoreError, ClientError
from py4j.protocol import Py4JJavaError
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
# What a disk, a file server or an archive keeps beside photographs: thumbnails, deleted files.
SYSTEM_FOLDERS = {
    "@eadir": "thumbnails of a Synology",
    "#recycle": "deleted files of a Synology",
    "@recycle": "deleted files of a QNAP",
    "__macosx": "the other half of files of macOS",
    "system volume information": "Windows' own",
    "$recycle.bin": "deleted files of Windows",
    "lost+found": "found by a check of the disk",
}
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
_PATTERN = re.compile(r"[{}\[\]*?\\]")  # what Hadoop would take for a pattern
# A file's time may be any number; these are Python's bounds, less a day for the zones of the Earth.
EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
IMAGES_PER_TASK = 64  # at least, if every core has a task: a task costs as much as ten images
TASKS_PER_CORE = 4  # at most: the cores end nearly at once


@dataclass
class Listing:
    """The files below a folder: rows of the run's `index/` and `set_aside/`."""

    images: list[tuple] = field(default_factory=list)
    set_aside: list[tuple] = field(default_factory=list)
    exclude: str = ""  # patterns of files that were set aside

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


def list_files(spark: SparkSession, data: str, exclude: str = "", results: str = "") -> Listing:
    """List every file below a qualified data folder, at any depth, without decoding any.

    Local links to folders are followed. Parquet knows only UTF-8: a name that is another encoding
    is kept with escapes, as set aside.

    Parameters
    ----------
    spark : SparkSession
    data : str
    exclude : str
        Patterns, as the shell has them (`*`, `?`, `[...]`), separated by commas. A file is set
        aside if one is the name, or the path below the data folder, of the file or of a folder
        above it; case counts. `*` matches "/" too.
    results : str, optional
        The qualified run folder, which no link may lead to.

    Raises
    ------
    FruitsError
        If the folder is missing, is a file, cannot be listed, or a link leads to the results.
    """
    if storage.is_s3(data):
        found, read_start = _list_bucket(data)
    elif data.startswith("file:"):
        found, read_start = _list_folder(data.removeprefix("file:"), results)
    else:
        found, read_start = _list_hadoop(spark, data)
    root, patterns = data.rsplit("/", 1)[-1], _patterns(exclude)
    listing, images, unknown = Listing(exclude=exclude), [], []
    for file in sorted(found, key=lambda file: file.path):
        if reason := file.fault or _why_aside(file.path, patterns):
            _set_aside(listing, file.path, reason)
        elif _EXTENSIONS.fullmatch(_extension(file.path)):
            images.append(file)
        else:
            unknown.append(file)
    with ThreadPoolExecutor(FETCHERS) as threads:
        for file, start in zip(unknown, threads.map(read_start, unknown), strict=True):
            if isinstance(start, str):
                _set_aside(listing, file.path, start)
            elif _MAGIC.match(start) or raw_format(start):
                images.append(file)
            else:
                _set_aside(listing, file.path, NO_IMAGE)
    labelled = above_labels(file.path for file in images)
    listing.images = sorted(_row(file, root, labelled) for file in images)
    return listing


def label_and_split(path: str, root: str, above_labels: Set[str]) -> tuple[str | None, str | None]:
    """Return label and split of a photograph by its path below the data folder.

    A split is named train, training, test, val, valid or validation, in any case: Training, Test,
    Validation. The folder that holds the photograph is its label, unless that is the data folder or
    a split. It is a label although it is named like a split if a split stands above it (the class
    "train" in `test/train/1.jpg`), or if folders beside it that are not named like splits hold
    photographs too (`train/1.jpg` beside `bus/1.jpg`). The photograph's split is the nearest one
    above its label, or the folder that holds it.

    Parameters
    ----------
    path : str
        Below the data folder.
    root : str
        Name of the data folder, which may be a split.
    above_labels : set of str
        See `above_labels`.

    Returns
    -------
    label : str or None
        In Unicode's composed form (NFC).
    split : str or None
    """
    folders = [name for name in path.split("/")[:-1] if name]
    splits = [SPLITS.get(name.lower()) for name in (root, *folders)]
    if not folders:
        return None, splits[-1]
    *above, _ = splits
    if splits[-1] and not any(above) and "/".join(folders[:-1]) not in above_labels:
        return None, splits[-1]
    label = unicodedata.normalize("NFC", folders[-1])
    return label, next(filter(None, reversed(above)), None)


def above_labels(paths: Iterable[str]) -> set[str]:
    """Return the folders, "" for the data folder, right above one that holds photographs and is not
    named like a split."""
    folders = ([name for name in path.split("/")[:-1] if name] for path in paths)
    return {"/".join(above) for *above, name in filter(None, folders) if name.lower() not in SPLITS}


def normalised(labelled: Iterable[tuple[str, str | None]]) -> int:
    """Return how many labels, of paths, are written in another Unicode form than NFC."""
    pairs = [(path, label) for path, label in labelled if label is not None]
    folders = {next(filter(None, reversed(path.split("/")[:-1]))) for path, _ in pairs}
    return len(folders - {label for _, label in pairs})


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
    now = {path: (n, _milliseconds(time)) for path, _, _, n, time in listing.images}
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
    # Escaped, because where Spark takes no patterns, as in `runs.reader`, it reads a list of paths
    # once more for each path that could be one.
    paths = [f"{data}/{row[0]}" for row in rows if 0 < row[-1] <= max_bytes]
    filled = [_PATTERN.sub(r"\\\g<0>", path) for path in paths]
    if not filled:
        return empty
    # Spark counts 4 MB for opening any file, which makes tasks of 30 photographs.
    with settings(spark, {"spark.sql.files.openCostInBytes": str(64 * 1024)}):
        content = (
            spark.read.format("binaryFile")
            .option("ignoreMissingFiles", "true")
            .load(filled)
            .filter(F.col("length") <= max_bytes)  # of a file that has grown: before it is read
            .select(F.substring("path", len(data) + 2, 1 << 30).alias("path"), "content")
        )
    return content.join(F.broadcast(table), "path").select(*table.columns, "content").union(empty)


def _row(file: _File, root: str, labelled: Set[str]) -> tuple:
    milliseconds = min(max(file.modified, _milliseconds(EARLIEST)), _milliseconds(LATEST))
    modified = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return file.path, *label_and_split(file.path, root, labelled), file.length, modified


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _patterns(exclude: str) -> dict[str, re.Pattern]:
    given = (pattern.strip().strip("/") for pattern in exclude.split(","))
    return {pattern: re.compile(fnmatch.translate(pattern)) for pattern in given if pattern}


def _why_aside(path: str, patterns: dict[str, re.Pattern]) -> str:
    """Return why a file is set aside by its name or a folder's, or nothing."""
    names = path.split("/")
    for folder in names[:-1]:
        if folder.lower() in SYSTEM_FOLDERS:
            return f"in a folder {folder}: {SYSTEM_FOLDERS[folder.lower()]}"
    places = [*names, *accumulate(names, "{}/{}".format)] if patterns else ()
    for pattern, matcher in patterns.items():
        if any(map(matcher.match, places)):
            return f"excluded by {pattern}"
    return HIDDEN if any(name.startswith((".", "_")) for name in names) else ""


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


def _list_folder(root: str, results: str = "") -> tuple[list[_File], Callable]:
    _check_folder(root, os.path.exists(root), os.path.isfile(root))

    def walk() -> Iterator[_File]:
        top = os.stat(root)
        folders = [("", ((top.st_dev, top.st_ino),))]  # each with the identities of those above it
        while folders:
            folder, above = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(root, folder)))
            except OSError as error:
                if not folder:
                    raise FruitsError(f"data={root} cannot be listed: {error.strerror}") from None
                yield _File(_text(folder), 0, 0, f"folder that cannot be listed: {error.strerror}")
                continue
            for entry in entries:
                path = os.path.join(folder, entry.name)
                try:
                    found = entry.stat()
                except OSError as error:
                    reason = "broken link" if os.path.islink(entry.path) else error.strerror
                    yield _File(_text(path), 0, 0, reason)
                    continue
                identity = found.st_dev, found.st_ino
                if stat.S_ISDIR(found.st_mode):
                    if identity in above:
                        yield _File(_text(path), 0, 0, "link to a folder above it")
                        continue
                    if results and entry.is_symlink() and storage.overlap(entry.path, results):
                        raise FruitsError(
                            f"{_text(entry.path)} is a link to where {results} is: results must "
                            "not mix with the photographs, give another folder for them"
                        )
                    folders.append((path, (*above, identity)))
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

    return list(walk()), read_start


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


_UNREADABLE = ("AccessControlException", "AccessDeniedException", "FileNotFoundException")


def _list_hadoop(spark: SparkSession, data: str) -> tuple[list[_File], Callable]:
    jvm = spark._jvm
    new_path = jvm.org.apache.hadoop.fs.Path
    root = new_path(data)
    fs = root.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
    with _listing(data):
        exists = fs.exists(root)
        _check_folder(data, exists, exists and fs.getFileStatus(root).isFile())
    fields = _status_fields(spark)
    to_list = jvm.org.apache.hadoop.util.functional.RemoteIterators.toList

    def walk() -> Iterator[_File]:
        folders = [data]
        while folders:  # of one depth
            entries = jvm.java.util.ArrayList()
            for folder in folders:
                try:
                    entries.addAll(to_list(fs.listStatusIterator(new_path(folder))))
                except Py4JJavaError as error:
                    if folder == data or _java_class(error) not in _UNREADABLE:
                        raise
                    fault = f"folder that cannot be listed: {_java_reason(error)}"
                    yield _File(folder[len(data) + 1 :], 0, 0, fault)
            folders = []
            for path, is_folder, is_link, length, modified in fields(entries):
                if is_folder == "true":
                    folders.append(path)
                else:
                    fault = "link on another file system" if is_link == "true" else ""
                    yield _File(path[len(data) + 1 :], int(length), int(modified), fault)

    def read_start(file: _File) -> bytes | str:
        try:
            stream = fs.open(new_path(f"{data}/{file.path}"))
            try:
                least = min(_MAGIC_BYTES, file.length)
                return bytes(jvm.org.apache.commons.io.IOUtils.toByteArray(stream, least))
            finally:
                stream.close()
        except Py4JJavaError as error:
            return f"cannot be read: {_java_reason(error)}"

    with _listing(data):
        return list(walk()), read_start


def _status_fields(spark: SparkSession) -> Callable:
    """Return a function that turns a Java list of `FileStatus` into tuples of text.

    They are path, isDirectory, isSymlink, length in bytes, and time in milliseconds.

    A call to the JVM for each of many files takes minutes, so Java streams read one field of all
    of them at once. The text of a whole entry is no help: that of `viewfs` has no path.
    """
    jvm, gateway = spark._jvm, spark.sparkContext._gateway
    java = jvm.java.lang
    status, function = map(
        java.Class.forName, ("org.apache.hadoop.fs.FileStatus", "java.util.function.Function")
    )
    no_types = gateway.new_array(java.Class, 0)
    getters = [
        java.invoke.MethodHandleProxies.asInterfaceInstance(
            function, java.invoke.MethodHandles.publicLookup().unreflect(method)
        )
        for method in (
            status.getMethod(name, no_types)
            for name in ("getPath", "isDirectory", "isSymlink", "getLen", "getModificationTime")
        )
    ]

    def fields(entries) -> list[tuple]:
        columns = []
        for getter in getters if entries.size() else ():
            values = entries.stream().map(getter).collect(jvm.java.util.stream.Collectors.toList())
            text = jvm.scala.collection.JavaConverters.asScalaBuffer(values).mkString("\0")
            columns.append(text.split("\0"))  # which no name can hold
            if len(columns[-1]) != entries.size():
                raise FruitsError(
                    f"{entries.size():,} files and folders were listed, but {len(columns[-1]):,} "
                    "read: copy the photographs to another file system"
                )
        return list(zip(*columns, strict=True))

    return fields


@contextmanager
def _listing(data: str) -> Iterator[None]:
    """Say in one line why Hadoop cannot list the data folder."""
    try:
        yield
    except Py4JJavaError as error:
        raise FruitsError(f"data={data} cannot be listed: {_java_reason(error)}") from None


def _java_class(error: Py4JJavaError) -> str:
    return error.java_exception.getClass().getSimpleName()


def _java_reason(error: Py4JJavaError) -> str:
    return (error.java_exception.getMessage() or _java_class(error)).splitlines()[0]
