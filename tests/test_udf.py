"""Bytes of a photograph become the same pixels as in a viewer; anything else has a reason."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, TiffTags
from PIL.Image import Transpose

from fruits_lib.udf import ImageError, decode_image

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
        decode_image(content, SIZE, **bounds)
    return str(caught.value)


def assert_alike(pixels, expected, most):
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= most


# --- what can be decoded ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_jpeg_is_resized_as_by_plain_pillow(options):
    content = encode(photograph(), "JPEG", **options)
    pixels = decode_image(content, SIZE)
    np.testing.assert_array_equal(pixels, resized(Image.open(io.BytesIO(content))))


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


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_image_is_white(mode):
    clear = photograph().convert(mode)
    clear.putalpha(0)
    np.testing.assert_array_equal(decode_image(encode(clear), SIZE), WHITE)


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
    image = Image.new("RGB", (8, 8), (0, 0, 0)).convert(mode)
    transparent = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    pixels = decode_image(encode(image, transparency=transparent), SIZE)
    np.testing.assert_array_equal(pixels, WHITE)


def test_a_palette_with_alpha_is_laid_on_white():
    image = photograph().quantize(16)
    pixels = decode_image(encode(image, transparency=bytes(16)), SIZE)
    np.testing.assert_array_equal(pixels, WHITE)


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
def test_exif_orientation_is_applied(form, orientation):
    upright = photograph()
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
    pixels = decode_image(whole[: len(whole) // 2 - lost], SIZE, truncated="accept")
    assert_alike(pixels[: SIZE // 4], decode_image(whole, SIZE)[: SIZE // 4], 12)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_truncated_png_is_refused_even_so():
    with pytest.raises(ImageError):
        decode_image(PNG[:-60], SIZE, truncated="accept")


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
    decode_image(PNG, SIZE, max_pixels=1200)


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_decompression_bomb_is_too_large_not_damaged(side):
    assert reason(png_of(side, side)) == "more than 178956970 pixels"


def test_the_reason_is_one_line(monkeypatch):
    def fail(*_):
        raise OSError("first line\nsecond line")

    monkeypatch.setattr(Image.Image, "resize", fail)
    assert reason(PNG) == "damaged image: first line"


# Computes a full Arrow batch of photographs, as a Python worker does.
WORKER = r"""
import re, sys
from pathlib import Path
import pyarrow as pa
from fruits_lib.udf import featurizer

class Weights:
    value = Path(sys.argv[1]).read_bytes()

columns = {name: ["a"] * 64 for name in ("path", "label", "split")}
batch = pa.RecordBatch.from_pydict({**columns, "uri": ["file:" + sys.argv[2]] * 64})
(found,) = featurizer(Weights, 32, 50_000_000)(iter([batch]))
assert found["reason"].null_count == 64
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_a_worker_takes_less_than_400_mb_for_photographs_of_12_megapixels(tiny, tmp_path):
    noise = Image.effect_noise((4000, 3000), 25)  # 5 MB, as a phone's photograph has
    (tmp_path / "1.jpg").write_bytes(encode(Image.merge("RGB", [noise] * 3), "JPEG", quality=85))
    command = [sys.executable, "-c", WORKER, tiny, tmp_path / "1.jpg"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 100_000 < peak < 400_000  # kilobytes
