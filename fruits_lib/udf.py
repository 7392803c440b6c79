"""What runs on an executor: read and decode images, run the backbone on them, by Arrow batches.

Every Python worker imports this module, so it imports little: no pandas, TensorFlow or pyspark.
"""

import gc
import hashlib
import io
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from zipimport import zipimporter

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile, ImageOps

LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses more as a decompression bomb
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
FETCHERS = 8  # threads of one worker; at 20 ms a request they feed 400 images/s
THUMBNAILS = "path string, pixels binary, reason string"
UNREADABLE = "cannot be read: "  # how the reason begins where there was no content to decode

_RAW = {b"FUJIFILM": "RAF", b"IIRO": "ORF", b"IIRS": "ORF", b"MMOR": "ORF", b"IIU\0": "RW2"}
# Brands of the ISO base media format, ISO/IEC 14496-12, bytes 4 to 12 of the file.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "RAW (CR3)"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1"), "HEIC"
)
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # TIFF 6.0, and Adobe's DNG 1.4
_REFUSED = {  # by S3, for good: what else it answers is worth another attempt of the whole batch
    "NoSuchKey",
    "404",
    "AccessDenied",
    "403",
    "InvalidObjectState",  # in an archived storage class
}


class ImageError(ValueError):
    """The bytes of one image cannot become pixels; the message is the reason in `rejects/`."""


def decode_image(
    content: bytes, size: int, max_pixels: int = 50_000_000, truncated: str = "reject"
) -> np.ndarray:
    """Decode a photograph into the pixels that the backbone takes: uint8, (size, size, 3).

    JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame) are recognised by content. EXIF orientation
    is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, and every colour
    mode becomes RGB. The image is then resized to a square, bicubic. Other EXIF data is never read.

    Parameters
    ----------
    content : bytes
        The file.
    size : int
        Side of the result in pixels.
    max_pixels : int
        Width times height above which an image is refused before it is decoded.
    truncated : str
        What to do with a JPEG that lacks its last bytes: "reject", or "accept" with the missing
        part in grey.

    Raises
    ------
    ImageError
        If the file is empty, damaged, too large, or of another format, which the message names.
    """
    return _decode_image(content, size, max_pixels, truncated)[0]


def _decode_image(
    content: bytes, size: int, max_pixels: int, truncated: str
) -> tuple[np.ndarray, bool]:
    """Return the pixels, and whether the file lacks its last bytes."""
    if not content:
        raise ImageError("empty file")
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about odd files that it can read
        try:
            return _decode(content, size, max_pixels), False
        except ImageError as error:
            if truncated == "reject" or "truncated" not in str(error) or content[:2] != b"\xff\xd8":
                raise
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return _decode(content, size, max_pixels), True
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _decode(content: bytes, size: int, max_pixels: int) -> np.ndarray:
    if (raw := raw_format(content[:16])) is not None:
        raise ImageError(_other_format(raw))
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if (pixels := image.width * image.height) > max_pixels:
            raise ImageError(f"{pixels} pixels, more than max_pixels={max_pixels}")
        if image.format == "TIFF" and _is_raw(image):
            raise ImageError(_other_format("RAW"))
        image.load()
        with suppress(Exception):  # damaged EXIF data do not damage the pixels
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(_unidentified(content)) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {LARGEST_IMAGE} pixels") from None
    except Exception as error:  # damaged header or data: Pillow's plugins raise many kinds
        raise ImageError(f"damaged image: {error}".splitlines()[0]) from None


def raw_format(start: bytes) -> str | None:
    """Return HEIC, AVIF or a camera's raw format by a file's first 16 bytes, else None."""
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12])
    if start[8:10] == b"CR" and start[:2] in (b"II", b"MM"):
        return "RAW (CR2)"
    return next((f"RAW ({name})" for magic, name in _RAW.items() if start.startswith(magic)), None)


def _is_raw(image: Image.Image) -> bool:
    """Whether a TIFF is a camera's raw file, whose first picture is only a thumbnail."""
    return bool(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1) or _DNG_VERSION in image.tag_v2


def _unidentified(content: bytes) -> str:
    try:
        return _other_format(Image.open(io.BytesIO(content)).format)
    except Exception:
        known = content.startswith(
            (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*", b"MM\0*")
        )
        return "damaged image: its header cannot be read" if known else "not an image"


def _other_format(name: str) -> str:
    return f"{name} image, which is not decoded: convert it to JPEG or PNG"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError("32 bits per channel: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def schema():
    """Return the schema of the rows of `featurizer`, a `pyspark.sql.types.StructType`.

    It says that no feature is null, as DDL cannot: Spark then writes them in half the time.
    """
    from pyspark.sql import types

    vector = types.ArrayType(types.FloatType(), containsNull=False)
    others = {"features": vector, "truncated": types.BooleanType()}
    names = ("path", "label", "split", "features", "reason", "content_sha256", "truncated")
    fields = [types.StructField(name, others.get(name, types.StringType())) for name in names]
    return types.StructType(fields)


def featurizer(weights, size: int, max_pixels: int, truncated: str = "reject"):
    """Return the function for `mapInArrow`: rows of `files.photographs` to rows of `schema`.

    Parameters
    ----------
    weights : pyspark.broadcast.Broadcast
        The LiteRT file's bytes, see `backbones.Backbone.content`.
    size : int
        Side of the backbone's input in pixels.
    max_pixels, truncated : int, str
        See `decode_image`.
    """

    def run_backbone(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        infer = open_backbone(weights.value)

        def compute(content: bytes) -> tuple:
            pixels, lacks_bytes = _decode_image(content, size, max_pixels, truncated)
            return infer(pixels), lacks_bytes

        for batch, results in _each_image(batches, compute):
            columns = {name: batch[name] for name in ("path", "label", "split")}
            found = [result or (None, False) for result, _, _ in results]
            # Cast, for with a type pa.array converts number by number, a hundred times slower.
            features = pa.array([vector for vector, _ in found])
            columns["features"] = features.cast(pa.list_(pa.float32()))
            columns["reason"] = pa.array([reason for _, reason, _ in results], pa.string())
            columns["content_sha256"] = pa.array([sha256 for _, _, sha256 in results], pa.string())
            columns["truncated"] = pa.array([lacks_bytes for _, lacks_bytes in found], pa.bool_())
            yield pa.RecordBatch.from_pydict(columns)

    return run_backbone


def thumbnailer(size: int):
    """Return the function for `mapInArrow`: rows of `files.photographs` to rows of `THUMBNAILS`.

    `pixels` are the bytes of a uint8 array (size, size, 3), null where the pipeline's own decoder
    rejects the image.
    """

    def make_thumbnails(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        def compute(content: bytes) -> bytes:
            return decode_image(content, size).tobytes()

        for batch, results in _each_image(batches, compute):
            pixels = pa.array([result for result, _, _ in results], pa.binary())
            reasons = pa.array([reason for _, reason, _ in results], pa.string())
            yield pa.RecordBatch.from_pydict(
                {"path": batch["path"], "pixels": pixels, "reason": reasons}
            )

    return make_thumbnails


def hasher(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Map rows of `files.photographs` to path and content_sha256, null if it cannot be read."""
    for batch, results in _each_image(batches, lambda content: None):
        sha256 = pa.array([sha256 for _, _, sha256 in results], pa.string())
        yield pa.RecordBatch.from_pydict({"path": batch["path"], "content_sha256": sha256})


def _each_image(batches: Iterator[pa.RecordBatch], compute: Callable) -> Iterator[tuple]:
    """Yield every Arrow batch with (result, reason, sha256) of each of its images.

    `result` is what `compute` returns for the file's bytes, or None with a reason. Where the column
    content is missing, the images are read here: Spark's binaryFile would ask S3 four times for
    each image, one after the other. While one image is computed, threads read the next ones.
    """
    read = None
    with ThreadPoolExecutor(FETCHERS) as threads:
        for batch in batches:
            if "content" in batch.schema.names:
                contents = batch["content"].to_pylist()
            else:
                uris = batch["uri"].to_pylist()
                read = read or _reader(uris[0])
                contents = _read_ahead(threads, read, uris)
            results = []
            for content in contents:
                result, reason, sha256 = None, None, None
                if isinstance(content, str):
                    reason = UNREADABLE + content
                else:
                    sha256 = hashlib.sha256(content).hexdigest()
                    try:
                        result = compute(content)
                    except ImageError as error:
                        reason = str(error)
                results.append((result, reason, sha256))
            yield batch, results
            _spare_later_tasks()


@cache  # once in each worker
def _spare_later_tasks() -> None:
    """Relieve a worker's later tasks of what Spark has Python do before and after each one.

    Before it, `importlib.invalidate_caches` reads the directories of Spark's zips and jars again
    (until Python 3.13); after it, `gc.collect` visits all objects of all modules. Together they
    take as long as 10 to 20 photographs. What is imported by now needs neither.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimporter):
            del sys.path_importer_cache[path]
    gc.freeze()


def _read_ahead(threads: ThreadPoolExecutor, read: Callable, uris: list[str]) -> Iterator:
    """Yield what `read` returns of each URI; few are held at once, for photographs may be large."""
    waiting = deque()
    for uri in uris:
        waiting.append(threads.submit(read, uri))
        if len(waiting) > FETCHERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _reader(uri: str) -> Callable[[str], bytes | str]:
    """Return a function that reads files like this one; for one that nobody can read, why."""
    if uri.startswith("file:"):

        def read_file(uri: str) -> bytes | str:
            try:
                with open(uri.removeprefix("file:"), "rb") as file:
                    return file.read()
            except OSError as error:
                return error.strerror

        return read_file
    from botocore.exceptions import ClientError

    from fruits_lib import aws, storage

    read = storage.reader()

    def read_object(uri: str) -> bytes | str:
        try:
            return read(uri)
        except ClientError as error:
            if error.response["Error"].get("Code") not in _REFUSED:
                raise
            return aws.explain(error)

    return read_object


def open_backbone(content: bytes):
    """Return a function from one image, uint8 (size, size, 3), to its float32 features (width,)."""
    from ai_edge_litert.interpreter import Interpreter

    with _silent_stderr():
        network = Interpreter(model_content=content, num_threads=1)
        network.allocate_tensors()
    image = network.get_input_details()[0]["index"]
    features = network.get_output_details()[0]["index"]

    def infer(pixels: np.ndarray) -> np.ndarray:
        network.set_tensor(image, pixels[np.newaxis])
        network.invoke()
        return network.get_tensor(features)[0]

    return infer


@contextmanager
def _silent_stderr():
    """LiteRT announces its delegate on file descriptor 2 and has no switch for it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
