"""Bytes of a photograph become the same pixels as in a viewer; anything else has a reason."""

import errno
import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, TiffTags
from PIL.Image import Transpose

from fruits_lib import udf
from fruits_lib.udf import Decoding, ImageError, decode_image

SIZE = 24
WHITE = np.full((SIZE, SIZE, 3), 255, np.uint8)


def photograph(width=40, height=30):
    """A smooth picture without symmetry, RGB."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return Image.fromarray(np.stack([red, green, (red + green) / 3], -1).astype(np.uint8))


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def resized(image):
    """What plain Pillow gives."""
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, bits=8, colour=2):
    """A PNG that says how large it is, and has next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def reason(content, **bounds):
    with pytest.raises(ImageError) as caught:
        decode_image(content, SIZE, Decoding(**bounds))
    return str(caught.value)


def assert_alike(pixels, expected, most):
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= most


# --- what can be decoded ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_jpeg_is_resized_as_by_plain_pillow(options):
    content = encode(photograph(), "JPEG", **options)
    pixels = decode_image(content, SIZE)
    np.testing.assert_array_equal(pixels, resized(Image.open(io.BytesIO(content))))


@pytest.fixture
def decoded(monkeypatch):
    """Sides of the pictures that were resized, each after it was decoded."""
    sizes, resize = [], Image.Image.resize

    def noting(image, *arguments):
        sizes.append(image.size)
        return resize(image, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noting)
    return sizes


def test_a_jpeg_below_four_times_the_size_is_decoded_as_by_plain_pillow():
    content = encode(photograph(4 * SIZE - 1, 9 * SIZE), "JPEG")
    plain = resized(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode_image(content, SIZE), plain)


def test_version_1_decodes_every_jpeg_as_plain_pillow_does():
    content = encode(photograph(8 * SIZE, 9 * SIZE), "JPEG")
    plain = resized(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode_image(content, SIZE, Decoding(version=1)), plain)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize(
    ("width", "height", "scale"), [(96, 200, 2), (300, 193, 4), (384, 500, 8), (900, 800, 8)]
)
def test_a_large_jpeg_is_scaled_while_it_is_decoded(decoded, mode, options, width, height, scale):
    image = photograph(width, height).convert(mode)
    content = encode(image, "JPEG", quality=95, **options)
    pixels = decode_image(content, SIZE)
    assert decoded == [(-(-width // scale), -(-height // scale))]
    assert min(*decoded[0]) >= 2 * SIZE
    assert_alike(pixels, decode_image(content, SIZE, Decoding(version=1)), 6)


def test_pixels_are_uint8_of_the_size_asked_for():
    pixels = decode_image(encode(photograph()), 7)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (7, 7, 3))


def test_an_image_of_that_size_is_not_touched():
    image = photograph(SIZE, SIZE)
    np.testing.assert_array_equal(decode_image(encode(image), SIZE), np.asarray(image))


def test_one_pixel_is_an_image():
    assert (decode_image(encode(Image.new("RGB", (1, 1), (9, 8, 7))), SIZE) == (9, 8, 7)).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(form):
    grey = photograph().convert("L")
    pixels = decode_image(encode(grey, form), SIZE)
    assert_alike(pixels, resized(grey), 0 if form == "PNG" else 8)
    assert (pixels == pixels[..., :1]).all()


def test_one_bit_becomes_black_and_white():
    pixels = decode_image(encode(Image.new("1", (8, 8), 1)), SIZE)
    np.testing.assert_array_equal(pixels, WHITE)


def test_a_palette_becomes_its_colours():
    palette = photograph().quantize(16)
    np.testing.assert_array_equal(decode_image(encode(palette), SIZE), resized(palette))


def test_cmyk_becomes_its_colours():
    content = encode(photograph().convert("CMYK"), "JPEG", quality=95)
    assert_alike(decode_image(content, SIZE), resized(photograph()), 16)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, SIZE).astype(np.uint16), (SIZE, 1))
    pixels = decode_image(encode(Image.fromarray(ramp)), SIZE)
    assert_alike(pixels[..., 0], ramp // 257, 1)


def bmp_of(image):
    """A BMP of 32 bits that says it has alpha, as some programs fill with zeros (BITMAPV4)."""
    width, height = image.size
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I", 108, width, -height, 1, 32, 3, 0, 0, 0, 0, 0, *masks)
    content = header + bytes(108 - len(header)) + image.tobytes("raw", "BGRA")
    return struct.pack("<2sIII", b"BM", 122 + 4 * width * height, 0, 122) + content


@pytest.mark.parametrize(
    ("form", "mode"),
    [("BMP", "RGBA"), ("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA"), ("WEBP", "RGBA")],
)
def test_a_picture_that_alpha_hides_entirely_is_shown_opaque(form, mode):
    hidden = photograph().convert(mode)
    hidden.putalpha(0)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    content = bmp_of(hidden) if form == "BMP" else encode(hidden, form, **options)
    assert Image.open(io.BytesIO(content)).mode == mode
    opaque = photograph().convert(mode[:-1])
    np.testing.assert_array_equal(decode_image(content, SIZE), resized(opaque))
    np.testing.assert_array_equal(decode_image(content, SIZE, Decoding(version=1)), WHITE)


def test_a_picture_with_one_visible_pixel_is_laid_on_white():
    hidden = photograph(SIZE, SIZE).convert("RGBA")
    hidden.putalpha(0)
    hidden.putpixel((0, 0), (1, 2, 3, 255))
    pixels = decode_image(encode(hidden), SIZE)
    assert tuple(pixels[0, 0]) == (1, 2, 3)
    np.testing.assert_array_equal(pixels[1:], WHITE[1:])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_changes_nothing(mode):
    image = photograph().convert(mode[:-1])
    opaque = image.convert(mode)
    np.testing.assert_array_equal(decode_image(encode(opaque), SIZE), resized(image))


def test_half_transparent_is_laid_on_white():
    half = Image.new("RGBA", (8, 8), (100, 0, 200, 128))
    assert_alike(decode_image(encode(half), SIZE), WHITE // 2 + [50, 0, 100], 1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white(mode):
    image = Image.new("RGB", (SIZE, SIZE), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, SIZE, SIZE // 2))
    image = image.convert(mode)
    corner = image.getpixel((0, SIZE - 1))
    pixels = decode_image(encode(image, transparency=corner), SIZE)
    np.testing.assert_array_equal(pixels, WHITE)


def test_a_palette_with_alpha_is_laid_on_white():
    image = photograph(SIZE, SIZE).quantize(16)
    pixels = decode_image(encode(image, transparency=bytes(15) + b"\xff"), SIZE)
    hidden = np.asarray(image) < 15
    np.testing.assert_array_equal(pixels[hidden], WHITE[hidden])


UNDONE = {  # orientation by the EXIF standard -> how such a camera stores an upright picture
    1: lambda image: image,
    2: lambda image: image.transpose(Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Transpose.ROTATE_180),
    4: lambda image: image.transpose(Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Transpose.ROTATE_90),
    7: lambda image: image.transpose(Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Transpose.ROTATE_270),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", UNDONE)
@pytest.mark.parametrize("size", [(40, 30), (400, 200)], ids=str)
def test_exif_orientation_is_applied(form, orientation, size):
    upright = photograph(*size)
    stored = UNDONE[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(encode(stored, form, exif=exif), SIZE)
    assert_alike(pixels, resized(upright), 0 if form == "PNG" else 12)


def test_a_stereo_photograph_gives_its_first_picture():
    content = encode(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    assert_alike(decode_image(content, SIZE), resized(photograph()), 12)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff"], ids=["text", "end"]
)
def test_damaged_exif_does_not_damage_the_pixels(form, exif):
    pixels = decode_image(encode(photograph(), form, exif=exif), SIZE)
    assert_alike(pixels, resized(photograph()), 12)


def test_nothing_is_written_about_odd_images():
    content = encode(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(content, SIZE)
        reason(png_of(10_000, 10_000))


# --- what cannot --------------------------------------------------------------------------------

PNG, JPEG = encode(photograph()), encode(photograph(), "JPEG")
DATA = PNG.index(b"IDAT") + 4


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def test_an_empty_file_is_refused():
    assert reason(b"") == "empty file"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_decoded_by_their_content(form):
    options = {"lossless": True} if form == "WEBP" else {}
    image = photograph().quantize(16) if form == "GIF" else photograph()
    assert_alike(decode_image(encode(image, form, **options), SIZE), resized(image), 1)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_taken(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    content = encode(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(content, SIZE), WHITE)


def tiff(*tags):
    """A TIFF with further tags, each (number, value)."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags:
        info[number] = value
        info.tagtype[number] = TiffTags.LONG if number == 254 else TiffTags.BYTE
    return encode(photograph(), "TIFF", tiffinfo=info)


OTHERS = {  # content -> how its reason begins
    b"\0\0\0\x18ftypheic\0\0\0\0": "HEIC image, which is not decoded: convert it to JPEG",
    b"\0\0\0\x18ftypmif1\0\0\0\0": "HEIC image",
    b"\0\0\0\x18ftypavif\0\0\0\0": "AVIF image",
    b"\0\0\0\x18ftypcrx \0\0\0\0": "RAW (CR3) image",
    b"II*\0\x10\0\0\0CR\x02\0": "RAW (CR2) image",
    b"FUJIFILMCCD-RAW 0201": "RAW (RAF) image",
    b"IIRO\x08\0\0\0": "RAW (ORF) image",
    b"IIU\0\x18\0\0\0": "RAW (RW2) image",
    tiff((254, 1)): "RAW image",
    tiff((50706, b"\1\4\0\0")): "RAW image",
    encode(photograph(), "JPEG2000"): "JPEG2000 image",
    encode(photograph(), "ICO"): "ICO image",
}


@pytest.mark.parametrize("content", OTHERS, ids=OTHERS.values())
def test_a_format_that_is_not_decoded_is_named(content):
    assert reason(content).startswith(OTHERS[content])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_tiff_of_32_bits_is_refused_not_clipped(mode):
    assert reason(encode(photograph().convert(mode), "TIFF")).startswith("32 bits per channel: ")


@pytest.mark.parametrize("content", [b"This is text.", bytes(100)], ids=["text", "0"])
def test_what_is_no_image_is_refused(content):
    assert reason(content) == "not an image"


@pytest.mark.parametrize("content", [JPEG[:4], b"II*\0", b"GIF89a"], ids=["JPEG", "TIFF", "GIF"])
def test_a_start_without_a_header_is_damaged_not_text(content):
    assert reason(content).startswith("damaged image: ")


@pytest.mark.parametrize("lost", [1, 50, 300])
def test_a_jpeg_that_lacks_its_end_is_accepted_if_asked_to(lost):
    whole = encode(photograph(400, 300), "JPEG")
    pixels = decode_image(whole[: len(whole) // 2 - lost], SIZE, Decoding(truncated="accept"))
    assert_alike(pixels[: SIZE // 4], decode_image(whole, SIZE)[: SIZE // 4], 12)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_truncated_png_is_refused_even_so():
    with pytest.raises(ImageError):
        decode_image(PNG[:-60], SIZE, Decoding(truncated="accept"))


def test_a_png_with_a_megabyte_of_text_has_a_reason():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5_000_000, zip=True)
    assert reason(encode(photograph(), pnginfo=text)).startswith("damaged image: ")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("content", [PNG, JPEG], ids=["PNG", "JPEG"])
def test_a_truncated_file_is_refused(content, share):
    assert "runcated" in reason(content[: int(share * len(content))])


@pytest.mark.parametrize(
    "content",
    [flipped(PNG, DATA + 60), flipped(PNG, 29), PNG[:DATA] + b"\xff\xff" + PNG[DATA + 2 :]],
    ids=["pixels", "check sum of the header", "no zlib"],
)
def test_a_damaged_png_is_refused(content):
    reason(content)


def test_an_image_over_the_bound_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert reason(PNG, max_pixels=1199) == "1200 pixels, more than max_pixels=1199"


def test_an_image_at_the_bound_is_decoded():
    decode_image(PNG, SIZE, Decoding(max_pixels=1200))


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_decompression_bomb_is_too_large_not_damaged(side):
    assert reason(png_of(side, side)) == "more than 178956970 pixels"


@pytest.mark.parametrize("length", [101, 5000])
def test_a_file_over_the_bound_is_refused(length):
    expected = f"at least {length} bytes, more than max_bytes=100"
    assert reason(bytes(length), max_bytes=100) == expected


SHORTAGES = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError("out of memory when reading image file"),  # a decoder of Pillow
]


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
@pytest.mark.parametrize(
    "where", ["PIL.Image.open", "PIL.ImageFile.ImageFile.load", "PIL.ImageOps.exif_transpose"]
)
def test_what_the_machine_lacks_is_no_fault_of_the_photograph(monkeypatch, where, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(type(error)) as caught:
        decode_image(PNG, SIZE)
    assert caught.value is error


def test_a_fault_without_words_has_the_name_of_its_kind(monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *_: next(iter(())))
    assert reason(PNG) == "damaged image: StopIteration"


def test_the_reason_is_one_line(monkeypatch):
    def fail(*_):
        raise OSError("first line\nsecond line")

    monkeypatch.setattr(Image.Image, "resize", fail)
    assert reason(PNG) == "damaged image: first line"


# --- a batch of photographs ---------------------------------------------------------------------


def batch_of(*files):
    """Rows of `files.photographs`: of (path, length)."""
    paths, lengths = zip(*files, strict=True)
    names = [path.name for path in paths]
    columns = {"path": names, "label": names, "split": names, "length": lengths}
    return pa.RecordBatch.from_pydict({**columns, "uri": [f"file:{path}" for path in paths]})


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    read, read_file = [], udf.read_file
    monkeypatch.setattr(udf, "read_file", lambda *known: read.append(known) or read_file(*known))
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(PNG)
    files = [(tmp_path / f"{number}.png", len(PNG)) for number in range(20)]
    files[3] = tmp_path / "3.png", 2 * 10**12
    decoding = Decoding(max_bytes=10**6)
    (found,) = udf.thumbnailer(4, decoding)(iter([batch_of(*files)]))
    assert found["reason"].to_pylist()[3] == "2000000000000 bytes, more than max_bytes=1000000"
    assert found["path"].to_pylist() == [path.name for path, _ in files]
    assert found["reason"].null_count == len(read) == 19


def test_a_file_that_has_grown_is_read_to_the_bound_alone(tmp_path):
    with open(tmp_path / "grown.tif", "wb") as file:
        file.truncate(2**41)
    batch = batch_of((tmp_path / "grown.tif", 10))
    (found,) = udf.thumbnailer(4, Decoding(max_bytes=1000))(iter([batch]))
    assert found["reason"].to_pylist() == ["at least 1001 bytes, more than max_bytes=1000"]


@pytest.mark.parametrize(
    ("error", "text"), [(MemoryError(), "MemoryError"), (RuntimeError("of"), "RuntimeError: of")]
)
def test_what_stops_a_batch_names_the_photograph(tmp_path, monkeypatch, error, text):
    def fail(*_):
        raise error

    (tmp_path / "a pear.png").write_bytes(PNG)
    monkeypatch.setattr(udf, "decode_image", fail)
    with pytest.raises(udf.PhotographError) as caught:
        list(udf.thumbnailer(4)(iter([batch_of((tmp_path / "a pear.png", len(PNG)))])))
    assert str(caught.value) == f"'a pear.png': {text}"


def test_large_photographs_wait_in_small_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(udf, "BYTES_AHEAD", 2 * len(PNG))
    read, read_file = [], udf.read_file
    monkeypatch.setattr(udf, "read_file", lambda *known: read.append(known) or read_file(*known))
    (tmp_path / "1.png").write_bytes(PNG)
    uris = [(f"file:{tmp_path}/1.png", len(PNG))] * 20
    with ThreadPoolExecutor(8) as threads:
        contents = udf._read_ahead(threads, udf._reader(uris[0][0], 10**6), uris)
        assert next(contents)() == PNG
    assert len(read) == 3


# Computes a full Arrow batch of photographs, as a Python worker does.
WORKER = r"""
import os, re, sys
from pathlib import Path
import pyarrow as pa
from fruits_lib.udf import featurizer

class Weights:
    value = Path(sys.argv[1]).read_bytes()

count = int(sys.argv[3])
columns = {name: ["a"] * count for name in ("path", "label", "split")}
lengths = [os.path.getsize(sys.argv[2])] * count
rows = {**columns, "length": lengths, "uri": ["file:" + sys.argv[2]] * count}
(found,) = featurizer(Weights, 32)(iter([pa.RecordBatch.from_pydict(rows)]))
assert found["reason"].null_count == count
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_a_worker_takes_less_than_400_mb_for_photographs_of_48_megapixels(tiny, tmp_path):
    noise = np.asarray(Image.effect_noise((2000, 1500), 25))  # 22 MB, more than a phone's have
    tiled = Image.merge("RGB", [Image.fromarray(np.tile(noise, (4, 4)))] * 3)
    (tmp_path / "1.jpg").write_bytes(encode(tiled, "JPEG", quality=85))
    command = [sys.executable, "-c", WORKER, tiny, tmp_path / "1.jpg", "8"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 100_000 < peak < 400_000  # kilobytes
