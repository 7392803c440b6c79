"""What runs on an executor: read and decode images, run the backbone on them, by Arrow batches.

Every Python worker imports this module, so it imports little: no pandas, TensorFlow or pyspark.
"""

import errno
import gc
import hashlib
import io
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from zipimport import zipimporter

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile, ImageOps

from fruits_lib.bounded import read_file

LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses more as a decompression bomb
LARGEST_FILE = 2**31 - 1  # bytes; neither Spark nor Arrow has longer values
DECODING = 2  # version of how a file becomes pixels, see `Decoding`
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
FETCHERS = 8  # threads of one worker; at 20 ms a request they feed 400 images/s
BYTES_AHEAD = 32 * 2**20  # of files that wait in one worker, but for one of any length
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


# Errors of the machine: another attempt may succeed.
_SHORTAGES = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class ImageError(ValueError):
    """The bytes of one image cannot become pixels; the message is the reason in `rejects/`."""


class PhotographError(RuntimeError):
    """The machine failed at a photograph, which the message names; its batch is not done."""


@dataclass(frozen=True)
class Decoding:
    """What decides, beside the file and the size, which pixels the backbone sees.

    Attributes
    ----------
    max_pixels : int
        Width times height above which an image is refused before it is decoded.
    max_bytes : int
        Length above which a file is refused unread. The default holds what 50 megapixels take
        uncompressed, at most 8 bytes each.
    truncated : str
        What to do with a JPEG that lacks its last bytes: "reject", or "accept" with the missing
        part in grey.
    version : int
        1 decodes a JPEG at its full size, and shows a picture that alpha hides entirely as white: a
        run that began so goes on so. 2 scales a JPEG while it is decoded, to no less than twice
        the size asked for, and shows such a picture without its alpha.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 500_000_000
    truncated: str = "reject"
    version: int = DECODING

    @classmethod
    def of(cls, entry: Mapping) -> "Decoding":
        """Return what the manifest's entry of 02, or `backbone.json`, says."""
        return cls(
            entry["max_pixels"],
            entry.get("max_bytes", LARGEST_FILE),
            "accept" if entry["accept_truncated"] else "reject",
            entry.get("decoding", 1),
        )

    @property
    def entry(self) -> dict:
        """What `of` reads."""
        return {
            "max_pixels": self.max_pixels,
            "max_bytes": self.max_bytes,
            "accept_truncated": self.truncated == "accept",
            "decoding": self.version,
        }


def decode_image(content: bytes, size: int, decoding: Decoding = Decoding()) -> np.ndarray:
    """Decode a photograph into the pixels that the backbone takes: uint8, (size, size, 3).

    JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame) are recognised by content. EXIF orientation
    is applied, transparency is laid on white unless it hides every pixel, 16-bit grey is scaled to
    8 bits, and every colour mode becomes RGB. The image is then resized to a square, bicubic. Other
    EXIF data is never read.

    Parameters
    ----------
    content : bytes
        The file.
    size : int
        Side of the result in pixels.
    decoding : Decoding

    Raises
    ------
    ImageError
        If the file is empty, damaged, too large, or of another format, which the message names.
    MemoryError, OSError
        If the machine lacks memory or file descriptors: that says nothing of the photograph.
    """
    return _decode_image(content, size, decoding)[0]


def _decode_image(content: bytes, size: int, decoding: Decoding) -> tuple[np.ndarray, bool]:
    """Return the pixels, and whether the file lacks its last bytes."""
    if not content:
        raise ImageError("empty file")
    if (length := len(content)) > decoding.max_bytes:  # it was read up to the first byte too many
        raise ImageError(_too_long(f"at least {length}", decoding.max_bytes))
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about odd files that it can read
        try:
            return _decode(content, size, decoding), False
        except ImageError as error:
            accepted = decoding.truncated == "accept" and content[:2] == b"\xff\xd8"
            if not accepted or "truncated" not in str(error):
                raise
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return _decode(content, size, decoding), True
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _decode(content: bytes, size: int, decoding: Decoding) -> np.ndarray:
    if (raw := raw_format(content[:16])) is not None:
        raise ImageError(_other_format(raw))
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if (pixels := image.width * image.height) > decoding.max_pixels:
            raise ImageError(f"{pixels} pixels, more than max_pixels={decoding.max_pixels}")
        if image.format == "TIFF" and _is_raw(image):
            raise ImageError(_other_format("RAW"))
        if decoding.version > 1:
            image.draft(None, (2 * size, 2 * size))  # of a JPEG; other formats have no such thing
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # damaged EXIF data do not damage the pixels
            _raise_shortage(error)
        image = _to_rgb(image, hidden_is_white=decoding.version == 1)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(_unidentified(content)) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {LARGEST_IMAGE} pixels") from None
    except Exception as error:  # damaged header or data: Pillow's plugins raise many kinds
        _raise_shortage(error)
        text = str(error) or type(error).__name__
        raise ImageError(f"damaged image: {text}".splitlines()[0]) from None


def _raise_shortage(error: Exception) -> None:
    """Raise an error again if it says nothing of the photograph, but that the machine lacks."""
    if isinstance(error, MemoryError) or (
        # Pillow's decoders say it in words.
        isinstance(error, OSError) and (error.errno in _SHORTAGES or "out of memory" in str(error))
    ):
        raise error


def _too_long(length: int | str, max_bytes: int) -> str:
    return f"{length} bytes, more than max_bytes={max_bytes}"


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
    except Exception as error:
        _raise_shortage(error)
        known = content.startswith(
            (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*", b"MM\0*")
        )
        return "damaged image: its header cannot be read" if known else "not an image"


def _other_format(name: str) -> str:
    return f"{name} image, which is not decoded: convert it to JPEG or PNG"


def _to_rgb(image: Image.Image, hidden_is_white: bool) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError("32 bits per channel: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not hidden_is_white and image.getchannel("A").getextrema() == (0, 0):
            return image.convert("RGB")  # as viewers show it: some programs fill alpha with zeros
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


def featurizer(weights, size: int, decoding: Decoding = Decoding()):
    """Return the function for `mapInArrow`: rows of `files.photographs` to rows of `schema`.

    Parameters
    ----------
    weights : pyspark.broadcast.Broadcast
        The LiteRT file's bytes, see `backbones.Backbone.content`.
    size : int
        Side of the backbone's input in pixels.
    decoding : Decoding
    """

    def run_backbone(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        infer = open_backbone(weights.value)

        def compute(content: bytes) -> tuple:
            pixels, lacks_bytes = _decode_image(content, size, decoding)
            return infer(pixels), lacks_bytes

        for batch, results in _each_image(batches, compute, decoding.max_bytes):
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


def thumbnailer(size: int, decoding: Decoding = Decoding()):
    """Return the function for `mapInArrow`: rows of `files.photographs` to rows of `THUMBNAILS`.

    `pixels` are the bytes of a uint8 array (size, size, 3), null where the pipeline's own decoder
    rejects the image.
    """

    def make_thumbnails(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        def compute(content: bytes) -> bytes:
            return decode_image(content, size, decoding).tobytes()

        for batch, results in _each_image(batches, compute, decoding.max_bytes):
            pixels = pa.array([result for result, _, _ in results], pa.binary())
            reasons = pa.array([reason for _, reason, _ in results], pa.string())
            yield pa.RecordBatch.from_pydict(
                {"path": batch["path"], "pixels": pixels, "reason": reasons}
            )

    return make_thumbnails


def hasher(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Map rows of `files.photographs` to path and content_sha256, null if it cannot be read."""
    for batch, results in _each_image(batches, lambda content: None, LARGEST_FILE):
        sha256 = pa.array([sha256 for _, _, sha256 in results], pa.string())
        yield pa.RecordBatch.from_pydict({"path": batch["path"], "content_sha256": sha256})


def _each_image(
    batches: Iterator[pa.RecordBatch], compute: Callable, max_bytes: int
) -> Iterator[tuple]:
    """Yield every Arrow batch with (result, reason, sha256) of each of its images.

    `result` is what `compute` returns for the file's bytes, or None with a reason. Where the column
    content is missing, the images are read here: Spark's binaryFile would ask S3 four times for
    each image, one after the other. While one image is computed, threads read the next ones. A file
    that is longer than `max_bytes` is not read; one that has grown meanwhile is read so far.

    Raises
    ------
    PhotographError
        If anything but an ImageError happens at an image.
    """
    read = None
    with ThreadPoolExecutor(FETCHERS) as threads:
        for batch in batches:
            paths, lengths = batch["path"].to_pylist(), batch["length"].to_pylist()
            if "content" in batch.schema.names:
                contents = ((lambda c=c: c) for c in batch["content"].to_pylist())
            else:
                uris = batch["uri"].to_pylist()
                read = read or _reader(uris[0], max_bytes)
                files = zip(uris, lengths, strict=True)
                wanted = (file if file[1] <= max_bytes else ("", 0) for file in files)
                contents = _read_ahead(threads, read, wanted)
            results = []
            for path, length, read_content in zip(paths, lengths, contents, strict=True):
                result, reason, sha256 = None, None, None
                try:
                    content = read_content()
                    if length > max_bytes:
                        reason = _too_long(length, max_bytes)
                    elif isinstance(content, str):
                        reason = UNREADABLE + content
                    else:
                        sha256 = hashlib.sha256(content).hexdigest()
                        result = compute(content)
                except ImageError as error:
                    reason = str(error)
                except Exception as error:
                    text = ": ".join(filter(None, (type(error).__name__, str(error))))
                    raise PhotographError(f"{path!r}: {text}") from error
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


def _read_ahead(
    threads: ThreadPoolExecutor, read: Callable, files: Iterable[tuple[str, int]]
) -> Iterator[Callable]:
    """Yield functions that return what `read` returned of each URI, nothing of an empty one.

    Files come with their lengths: few are held at once, and fewer of large ones.
    """
    waiting, held = deque(), 0
    for uri, length in files:
        waiting.append((threads.submit(read, uri).result if uri else bytes, length))
        held += length
        while len(waiting) > FETCHERS or held > BYTES_AHEAD:
            result, length = waiting.popleft()
            held -= length
            yield result
    while waiting:
        yield waiting.popleft()[0]


def _reader(uri: str, max_bytes: int) -> Callable[[str], bytes | str]:
    """Return a function that reads files like this one; for one that nobody can read, why.

    Of a longer file than `max_bytes` it returns the first byte too many, and no more.
    """
    if uri.startswith("file:"):

        def read_local(uri: str) -> bytes | str:
            try:
                return read_file(uri.removeprefix("file:"), max_bytes)
            except OSError as error:
                _raise_shortage(error)
                return error.strerror

        return read_local
    from botocore.exceptions import ClientError

    from fruits_lib import aws, storage

    read = storage.reader()

    def read_object(uri: str) -> bytes | str:
        try:
            return read(uri, max_bytes)
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
