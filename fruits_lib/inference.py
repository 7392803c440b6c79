"""What runs on an executor: decode an image, run the backbone on it, an Arrow batch at a time.

Every Python worker imports this module, so it imports little: no pandas, no TensorFlow.
"""

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

if TYPE_CHECKING:  # a cluster's node tries this module out before Spark is there
    from pyspark.broadcast import Broadcast

LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses more as a decompression bomb
FETCHERS = 8  # threads of one worker; at 20 ms a request they feed 400 images/s
FEATURIZED = "path string, label string, split string, features array<float>, reason string"


class ImageError(ValueError):
    """The bytes of one image cannot become pixels; the message is the reason in `rejects/`."""


def decode_image(content: bytes, size: int, max_pixels: int = 50_000_000) -> np.ndarray:
    """Decode a JPEG or PNG into the pixels that the backbone takes.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, and
    every colour mode becomes RGB. The image is then resized to a square, bicubic. Other EXIF data
    is never read.

    Parameters
    ----------
    content : bytes
        The file.
    size : int
        Side of the result in pixels.
    max_pixels : int
        Width times height above which an image is refused before it is decoded.

    Returns
    -------
    numpy.ndarray
        uint8, shape (size, size, 3).

    Raises
    ------
    ImageError
        If the file is empty, no JPEG or PNG, damaged, or too large.
    """
    if not content:
        raise ImageError("empty file")
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about odd files that it can read
        return _decode(content, size, max_pixels)


def _decode(content: bytes, size: int, max_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except Image.UnidentifiedImageError:
        raise ImageError("not a JPEG or PNG image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {LARGEST_IMAGE} pixels") from None
    except Exception as error:  # a damaged header: Pillow's plugins raise many kinds
        raise ImageError(_reason(error)) from None
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(f"{pixels} pixels, more than max_pixels={max_pixels}")
    try:
        image.load()
        with suppress(Exception):  # damaged EXIF data do not damage the pixels
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # damaged data, likewise
        raise ImageError(_reason(error)) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    return f"damaged image: {error}".splitlines()[0]


def featurizer(model: "Broadcast", size: int, max_pixels: int):
    """Return the function for `mapInArrow`: (path, label, split, content) to `FEATURIZED`.

    Where the column content is missing, the images lie in a bucket and are fetched here.

    Parameters
    ----------
    model : Broadcast
        Of the LiteRT file's bytes.
    size : int
        Side of the backbone's input in pixels.
    max_pixels : int
        See `decode_image`.
    """

    def run_backbone(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        infer = open_backbone(model.value)
        for batch, contents in with_contents(batches):
            yield featurize_batch(batch, contents, infer, size, max_pixels)

    return run_backbone


def with_contents(
    batches: Iterator[pa.RecordBatch],
) -> Iterator[tuple[pa.RecordBatch, Iterable[bytes]]]:
    """Pair each batch with the bytes of its images, fetched ahead where they lie in a bucket.

    Spark's binaryFile asks S3 four times for each image, one after the other; while the network is
    at one image, these threads fetch the next ones.
    """
    with ThreadPoolExecutor(FETCHERS) as threads:
        read = None
        for batch in batches:
            if "content" in batch.schema.names:
                yield batch, batch["content"].to_pylist()
                continue
            if read is None:
                from fruits_lib.storage import reader

                read = reader()
            yield batch, threads.map(read, batch["path"].to_pylist())


def featurize_batch(
    batch: pa.RecordBatch, contents: Iterable[bytes], infer, size: int, max_pixels: int
) -> pa.RecordBatch:
    """Decode and infer one Arrow batch of images; a bad image gets a reason and null features."""
    rows, reasons, lengths = [], [], []
    for content in contents:
        try:
            rows.append(infer(decode_image(content, size, max_pixels)))
            reasons.append(None)
        except ImageError as error:
            reasons.append(str(error))
        lengths.append(len(rows))
    flat = np.concatenate(rows) if rows else np.empty(0, np.float32)
    width = len(rows[0]) if rows else 0
    offsets = np.concatenate([[0], lengths]).astype(np.int32) * width
    is_null = pa.array([reason is not None for reason in reasons] + [False])
    features = pa.ListArray.from_arrays(
        pa.array(offsets, mask=is_null.to_numpy(False)), pa.array(flat)
    )
    return pa.RecordBatch.from_arrays(
        [batch["path"], batch["label"], batch["split"], features, pa.array(reasons, pa.string())],
        ["path", "label", "split", "features", "reason"],
    )


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
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
