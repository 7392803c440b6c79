"""Bytes of any JPEG or PNG become the same pixels as in a viewer; anything else has a reason."""

import io
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageFile
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
def test_other_formats_are_refused_whatever_the_name_says(form):
    assert reason(encode(photograph(), form)) == "not a JPEG or PNG image"


@pytest.mark.parametrize(
    "content", [b"This is text.", bytes(100), JPEG[:4]], ids=["text", "0", "4"]
)
def test_what_is_no_image_is_refused(content):
    assert reason(content) == "not a JPEG or PNG image"


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


def test_a_hundred_damaged_files_give_pixels_or_a_reason():
    rng = np.random.default_rng(0)
    for original in [PNG, JPEG] * 50:
        content = bytearray(original)
        for at in rng.integers(0, len(content), 5):
            content[at] = rng.integers(256)
        with suppress(ImageError):
            assert decode_image(bytes(content), SIZE).shape == (SIZE, SIZE, 3)
