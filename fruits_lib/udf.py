"""What runs on an executor: decode an image, run the backbone on it, an Arrow batch at a time.

Every Python worker imports this module, so it imports little: no pandas, TensorFlow or pyspark.
"""

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

LARGEST_IMAGE = 178_956_970  # pixels; Pillow refuses more as a decompression bomb
FETCHERS = 8  # threads of one worker; at 20 ms a request they feed 400 images/s
SCHEMA = "path string, label string, split string, features array<float>, reason string"


class ImageError(ValueError):
    """The bytes of one image cannot become pixels; the message is the reason in `rejects/`."""


def decode_image(content: bytes, size: int, max_pixels: int = 50_000_000) -> np.ndarray:
    """Decode a JPEG or PNG into the pixels that the backbone takes: uint8, (size, size, 3).

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

    Raises
    ------
    ImageError
        If the file is empty, damaged, too large, or not a JPEG or PNG.
    """
    if not content:
        raise ImageError("empty file")
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about odd files that it can read
        return _decode(content, size, max_pixels)


def _decode(content: bytes, size: int, max_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        if (pixels := image.width * image.height) > max_pixels:
            raise ImageError(f"{pixels} pixels, more than max_pixels={max_pixels}")
        image.load()
        with suppress(Exception):  # damaged EXIF data do not damage the pixels
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("not a JPEG or PNG image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {LARGEST_IMAGE} pixels") from None
    except Exception as error:  # damaged header or data: Pillow's plugins raise many kinds
        raise ImageError(f"damaged image: {error}".splitlines()[0]) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def featurizer(weights, size: int, max_pixels: int):
    """Return the function for `mapInArrow`: (path, label, split, content) to `SCHEMA`.

    Where the column content is missing, the images are in a bucket and are fetched here: Spark's
    binaryFile would ask S3 four times for each image, one after the other. While the network runs
    on one image, threads fetch the next ones.

    Parameters
    ----------
    weights : pyspark.broadcast.Broadcast
        The LiteRT file's bytes, see `backbones.Backbone.content`.
    size : int
        Side of the backbone's input in pixels.
    max_pixels : int
        See `decode_image`.
    """

    def run_backbone(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        infer = open_backbone(weights.value)
        read = None
        with ThreadPoolExecutor(FETCHERS) as threads:
            for batch in batches:
                if "content" in batch.schema.names:
                    contents = batch["content"].to_pylist()
                else:
                    read = read or _reader()
                    contents = threads.map(read, batch["path"].to_pylist())
                yield _featurize(batch, contents, infer, size, max_pixels)

    return run_backbone


def _reader():
    from fruits_lib.storage import reader  # imports boto3

    return reader()


def _featurize(
    batch: pa.RecordBatch, contents: Iterable[bytes], infer, size: int, max_pixels: int
) -> pa.RecordBatch:
    """Decode and infer one Arrow batch of images; a bad image gets a reason and null features."""
    features, reasons = [], []
    for content in contents:
        try:
            features.append(infer(decode_image(content, size, max_pixels)))
            reasons.append(None)
        except ImageError as error:
            features.append(None)
            reasons.append(str(error))
    columns = {name: batch[name] for name in ("path", "label", "split")}
    # Cast, for with a type pa.array converts number by number, a hundred times slower.
    columns["features"] = pa.array(features).cast(pa.list_(pa.float32()))
    columns["reason"] = pa.array(reasons, pa.string())
    return pa.RecordBatch.from_pydict(columns)


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
