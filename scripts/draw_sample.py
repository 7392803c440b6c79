"""Draw the embedded sample and write it to fruits_lib/sample.zip: python scripts/draw_sample.py

The drawings imitate Fruits-360: one label is one fruit that turns in front of the camera. Its skin
is painted once on a map (longitude x latitude) and wrapped around a body whose outline is a polar
curve. No photograph is used; the drawings are under the project's MIT licence.

All is computed in float64 and rounded to 8 bits once, so that the last bits, in which processors
differ, reach no file. Nothing is compressed by zlib, whose builds differ: Pillow writes PNG at
level 0, and the archive stores its files.
"""

import argparse
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TARGET = Path(__file__).parents[1] / "fruits_lib" / "sample.zip"
COMMENT = (
    b"Drawn by scripts/draw_sample.py of the fruits project, without photographs. MIT licence."
)
SPLITS = {"Training": 14, "Test": 6}  # images per label
OVERSAMPLE = 3  # drawn this much larger, then reduced: smooth edges
ROWS, COLUMNS = 256, 512  # of the skin map: latitudes from the stem, longitudes
STEPS = 2048  # angles of an outline

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Fruit:
    """What one label looks like; lengths are fractions of half the picture's width."""

    top: Colour  # skin at the stem
    bottom: Colour  # skin at the other end
    blush: Colour  # the side that saw the sun
    cavity: Colour  # around the stem
    cavity_width: float  # radians
    radius: float
    drop: float = 0.0  # how far the body is below the centre, to leave room for the stem
    waves: tuple[tuple[int, float, float], ...] = ()  # outline: (n, cos, sin) terms
    bumps: tuple[tuple[float, float, float], ...] = ()  # outline: (angle, height, width)
    sun: float = -0.1  # how far the blush reaches: -1 nowhere, 1 everywhere
    streaks: float = 0.0  # meridional stripes in the blush
    mottle: float = 0.04  # soft unevenness of the skin
    pores: float = 0.0  # embossed dimples, as on citrus
    speckles: int = 0  # light dots
    suture: float = 0.0  # dark line from end to end
    gloss: tuple[float, int] = (0.4, 4)  # highlight: strength, log2 of the exponent
    fuzz: float = 0.0  # pale rim of a downy or waxy skin
    stem: tuple[float, float] = (0.0, 0.0)  # length, width
    wood: Colour = (94, 68, 38)  # colour of the stem
    berries: int = 1  # more than one: a bunch


# fmt: off
FRUITS = {
    "Apple Braeburn": Fruit(
        (218, 192, 76), (236, 190, 88), (168, 20, 28), (150, 140, 50), 0.34, 0.84, 0.07,
        waves=((2, -0.05, 0), (3, 0.025, 0)), bumps=((0, -0.13, 0.3), (np.pi, -0.07, 0.3)),
        sun=0.8, streaks=0.9, speckles=420, gloss=(0.5, 5), stem=(0.3, 0.035)),
    "Cherry 1": Fruit(
        (92, 6, 20), (122, 10, 26), (60, 2, 14), (40, 4, 8), 0.25, 0.66, 0.3,
        waves=((2, -0.03, 0), (3, 0.03, 0)), bumps=((0, -0.14, 0.35),),
        sun=0, suture=0.25, gloss=(0.95, 6), stem=(0.85, 0.03), wood=(104, 122, 40)),
    "Pêche blanche": Fruit(
        (252, 224, 176), (254, 230, 192), (222, 92, 104), (186, 140, 90), 0.22, 0.9,
        waves=((2, -0.02, 0),), bumps=((0, -0.1, 0.25), (np.pi, 0.05, 0.12)),
        mottle=0.03, suture=0.4, gloss=(0.06, 2), fuzz=0.5),
    "mango_ripe": Fruit(
        (222, 72, 40), (252, 190, 50), (236, 176, 40), (120, 90, 40), 0.12, 0.8,
        waves=((1, 0, 0.05), (2, 0.16, 0), (3, -0.01, 0.05)),
        sun=-0.25, speckles=160, gloss=(0.3, 4), stem=(0.06, 0.05)),
    "Lemon 100%": Fruit(
        (246, 206, 20), (252, 222, 36), (250, 222, 70), (140, 150, 50), 0.1, 0.74,
        waves=((2, 0.1, 0),), bumps=((0, 0.06, 0.12), (np.pi, 0.17, 0.17)),
        sun=-0.3, pores=0.5, stem=(0.03, 0.045), wood=(110, 120, 50)),
    "Grape Blue": Fruit(
        (58, 60, 140), (40, 36, 104), (92, 102, 176), (30, 24, 60), 0.2, 0.25,
        waves=((2, 0.04, 0),), mottle=0.14, gloss=(0.55, 5), fuzz=0.3,
        stem=(0.3, 0.04), wood=(122, 112, 54), berries=30),
}
# fmt: on

FORMATS = {  # all but plain RGB ".jpg": path without suffix -> suffix, form
    "Training/Apple Braeburn/3_100": (".jpg", "jpeg grey"),
    "Training/Cherry 1/5_100": (".png", "png alpha"),
    "Training/Pêche blanche/6_100": (".jpg", "jpeg exif 6"),
    "Training/mango_ripe/2_100": (".PNG", "png palette"),
    "Training/Lemon 100%/5_100": (".jpg", "jpeg cmyk"),
    "Training/Grape Blue/2_100": (".png", "png 16-bit"),
    "Test/Apple Braeburn/r_2_100": (".jpg", "jpeg 320x240"),
    "Test/Lemon 100%/r_3_100": (".JpEg", "jpeg"),
}


def files() -> Iterator[tuple[str, bytes]]:
    """Yield every file as (relative path, content): 120 good images, 1 hidden, 3 damaged."""
    for which, (label, fruit) in enumerate(FRUITS.items()):
        skin = _skin(fruit, np.random.default_rng(which))
        for side, (split, count) in enumerate(SPLITS.items()):
            for number in range(count):
                name = f"{split}/{label}/{'r_' if split == 'Test' else ''}{number}_100"
                suffix, form = FORMATS.get(name, (".jpg", "jpeg"))
                size = 240 if form == "jpeg 320x240" else 100
                picture = _picture(fruit, skin, [which, side, number], number / count, size)
                yield name + suffix, _encode(picture, form)
    good = _encode(picture, "jpeg")
    yield "Test/Grape Blue/_hidden.jpg", good
    yield "Test/Grape Blue/truncated.jpg", good[: len(good) * 6 // 10]
    yield "Training/Cherry 1/empty.jpg", b""
    yield "Training/mango_ripe/text.jpg", b"This is text, whatever the name says.\n"


def archive() -> bytes:
    """Return the content of sample.zip: always the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.comment = COMMENT
        for name, content in files():
            entry = zipfile.ZipInfo(name)  # dated 1980, whatever the clock says
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, anywhere
            target.writestr(entry, content)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in [-1, 1] on the skin map, closed around the fruit."""
    grid = Image.fromarray(np.tile(rng.integers(0, 256, (rows, columns), dtype=np.uint8), (1, 3)))
    smooth = grid.resize((3 * COLUMNS, ROWS), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=float)[:, COLUMNS : 2 * COLUMNS] / 127.5 - 1


def _skin(fruit: Fruit, rng: np.random.Generator) -> np.ndarray:
    """Paint the skin map, (3, ROWS, COLUMNS) in 0..255."""
    latitude = np.linspace(0, np.pi, ROWS)[:, None]
    longitude = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)[None]
    skin = np.empty((3, ROWS, COLUMNS))
    skin[:] = np.array(fruit.top)[:, None, None]

    def paint(colour: Colour, share: np.ndarray) -> None:
        skin[:] += (np.array(colour)[:, None, None] - skin) * np.clip(share, 0, 1)

    paint(fruit.bottom, latitude / np.pi)
    sunny = np.cos(longitude) * np.sin(latitude) + fruit.sun + 0.5 * _noise(rng, 5, 8)
    sunny += fruit.streaks * (0.5 * _noise(rng, 4, 90) + 0.3 * _noise(rng, 6, 200))
    paint(fruit.blush, 0.5 + 0.9 * sunny)
    paint((70, 20, 24), fruit.suture * np.exp(-((longitude / 0.06) ** 2)))
    pores = _noise(rng, 90, 150)
    relief = 0.2 * fruit.pores * (pores - np.roll(pores, (2, 2), (0, 1)))
    skin *= 1 + relief + fruit.mottle * (_noise(rng, 14, 24) + _noise(rng, 60, 110))
    for _ in range(fruit.speckles):
        row = int(np.arccos(rng.uniform(-1, 1)) / np.pi * (ROWS - 3))  # evenly over the sphere
        column = int(rng.integers(COLUMNS - 3))
        spot = skin[:, row : row + 3, column : column + 3]
        spot += (np.array([236, 200, 130])[:, None, None] - spot) * rng.uniform(0.2, 0.6)
    ends = np.minimum(latitude, 1.6 * (np.pi - latitude)) / fruit.cavity_width
    paint(fruit.cavity, 0.95 * np.exp(-(ends**2)))
    return skin


def _outline(fruit: Fruit, yaw: float, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Radius at STEPS angles clockwise from the stem; a circle when seen end-on."""
    angle = np.arange(STEPS) * (2 * np.pi / STEPS)
    radius = np.zeros(STEPS)
    for n, even, odd in fruit.waves:
        radius += even * np.cos(n * angle) + odd * np.cos(yaw) * np.sin(n * angle)
    for centre, height, width in fruit.bumps:
        away = (angle - centre + np.pi) % (2 * np.pi) - np.pi
        radius += height * np.exp(-((away / width) ** 2))
    for n in (3, 4, 5):  # no fruit is perfect
        radius += rng.uniform(0, 0.008) * np.cos(n * angle + rng.uniform(0, 2 * np.pi))
    return 1 + radius * np.cos(pitch) ** 2


def _slot(angle: np.ndarray, count: int) -> np.ndarray:
    """Index of each angle among `count` equal parts of the circle; `count` is a power of two."""
    return (angle * (count / (2 * np.pi))).astype(int) & (count - 1)


def _body(fruit, skin, size, radius, pose, tint, rng) -> Image.Image:
    """One fruit or berry in the middle of a transparent size x size picture (RGBA)."""
    yaw, pitch, lean = pose
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (v.ravel() for v in np.meshgrid(axis, -axis))
    outline = radius * _outline(fruit, yaw, pitch, rng)[_slot(np.arctan2(x, y) - lean, STEPS)]
    inside = np.flatnonzero(x * x + y * y < outline * outline)
    x, y = x[inside] / outline[inside], y[inside] / outline[inside]
    z = np.sqrt(1 - np.minimum(x * x + y * y, 1))  # (x, y, z): normal of a ball in that outline
    across, along = x * np.cos(lean) - y * np.sin(lean), y * np.cos(lean) + x * np.sin(lean)
    height = along * np.cos(pitch) + z * np.sin(pitch)
    depth = z * np.cos(pitch) - along * np.sin(pitch)
    row = (np.arccos(np.clip(height, -1, 1)) * ((ROWS - 1) / np.pi)).astype(int)
    column = _slot(np.arctan2(across, depth) + yaw, COLUMNS)
    light = np.clip(-0.40 * x + 0.50 * y + 0.77 * z, 0, 1)
    shine = np.clip(-0.25 * x + 0.33 * y + 0.91 * z, 0, 1)
    for _ in range(fruit.gloss[1]):
        shine *= shine
    rim = fruit.fuzz * (1 - z) ** 2 * (0.35 + 0.65 * light)
    dark = 1 - np.minimum((0.30 + 0.80 * light) * (0.66 + 0.34 * z), 1)
    warm = 1 - np.array([[0.62], [0.80], [0.92]]) * dark  # red fades last in a shadow
    colour = skin[:, row, column] * warm * tint[:, None]
    colour += (255 - colour) * np.minimum(fruit.gloss[0] * shine + rim, 1)
    picture = np.zeros((size * size, 4), dtype=np.uint8)
    picture[inside, :3] = np.rint(np.clip(colour, 0, 255)).T
    picture[inside, 3] = 255
    return Image.fromarray(picture.reshape(size, size, 4))


def _stem(canvas: Image.Image, fruit: Fruit, foot: np.ndarray, tip: np.ndarray) -> None:
    """Draw a bent stem from foot to tip, lit from the left."""
    half, draw, thick = canvas.width / 2, ImageDraw.Draw(canvas), fruit.stem[1]
    for gain, shift, share in ((0.75, 0.0, 1.0), (1.15, -0.25, 0.55)):
        fill = tuple(min(255, round(c * gain)) for c in fruit.wood)
        for t in np.linspace(0, 1, 40):
            x, y = half * (1 + (foot + (tip - foot) * (t * t, t) + (shift * thick, 0)) * (1, -1))
            r = half * thick * share * (0.8 + (2 * t - 1) ** 2 / 2)
            draw.ellipse([round(v) for v in (x - r, y - r, x + r, y + r)], fill=fill)


def _single(canvas, fruit, skin, pose, tint, rng) -> None:
    """Draw one fruit with its stem."""
    yaw, pitch, lean = pose
    radius, drop = fruit.radius * rng.uniform(0.92, 1.0), fruit.drop * np.cos(pitch)
    body = _body(fruit, skin, canvas.width, radius, pose, tint, rng)
    canvas.alpha_composite(body, (0, round(drop * canvas.height / 2)))
    if fruit.stem[0]:
        bulge = sum(w[1] for w in fruit.waves) + sum(b[1] for b in fruit.bumps if b[0] == 0)
        pole = radius * (1 + bulge * np.cos(pitch) ** 2) * np.cos(pitch)
        up, right = np.array([[np.sin(lean), np.cos(lean)], [np.cos(lean), -np.sin(lean)]])
        foot, reach = up * pole - (0, drop), up * np.cos(pitch) + right * 0.4 * np.cos(yaw)
        _stem(canvas, fruit, foot, foot + fruit.stem[0] * reach)


def _bunch(canvas, fruit, skin, pose, tint, rng) -> None:
    """Draw berries on a cone that hangs from its stem, the nearest last and lightest."""
    yaw, pitch, lean = pose
    _stem(canvas, fruit, np.array([0, 0.45]), np.array([0.25 * np.cos(yaw), 0.95]))
    t = (np.arange(fruit.berries) + 0.5) / fruit.berries
    ring, turn = 0.58 * (1 - t) ** 0.6, 2.39996 * fruit.berries * t + yaw  # golden angle: no gaps
    x, y, z = ring * np.sin(turn), 0.42 - 1.12 * t, ring * np.cos(turn)
    y, z = y * np.cos(pitch) - z * np.sin(pitch), z * np.cos(pitch) + y * np.sin(pitch)
    x, y = x * np.cos(lean) + y * np.sin(lean), y * np.cos(lean) - x * np.sin(lean)
    near = (z - z.min()) / (z.max() - z.min())
    size = int(canvas.width * fruit.radius * 1.2)
    for i in np.argsort(z):
        turned = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.2), rng.uniform(-0.6, 0.6)
        gain = tint * (0.45 + 0.55 * near[i]) * rng.uniform(0.85, 1.15)
        berry = _body(fruit, skin, size, 0.8 * rng.uniform(0.93, 1.05), turned, gain, rng)
        left, upper = (canvas.width * (1 + x[i]) - size) / 2, (canvas.width * (1 - y[i]) - size) / 2
        canvas.alpha_composite(berry, (round(left), round(upper)))


def _picture(fruit, skin, seed: list[int], turn: float, size: int = 100) -> Image.Image:
    """One picture, turned about the stem and posed at random, on a transparent ground (RGBA)."""
    rng = np.random.default_rng(seed)
    draw, end_on = (_bunch, False) if fruit.berries > 1 else (_single, seed[-1] % 5 == 4)
    yaw = 2 * np.pi * turn + rng.uniform(-0.2, 0.2)
    pitch = rng.uniform(0.75, 1.2) if end_on else rng.uniform(0.05, 0.4)
    pose = yaw, pitch, rng.uniform(-0.22, 0.22)
    tint = rng.uniform(0.96, 1.04, 3) * rng.uniform(0.95, 1.04)
    canvas = Image.new("RGBA", (size * OVERSAMPLE, size * OVERSAMPLE))
    draw(canvas, fruit, skin, pose, tint, rng)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def _encode(picture: Image.Image, form: str) -> bytes:
    """Bytes of an RGBA picture in a form of `FORMATS`, on white unless it keeps its alpha."""
    options = {"quality": 90} if form.startswith("jpeg") else {"compress_level": 0}
    if form != "png alpha":
        ground = Image.new("RGBA", (320, 240) if form == "jpeg 320x240" else picture.size, "white")
        ground.alpha_composite(picture, ((ground.width - picture.width) // 2, 0))
        picture = ground.convert("RGB")
    if form == "jpeg grey":
        picture = picture.convert("L")
    elif form == "jpeg cmyk":
        picture = picture.convert("CMYK")
    elif form == "png palette":
        picture = picture.quantize(64, dither=Image.Dither.NONE)
    elif form == "png 16-bit":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif form == "jpeg exif 6":  # stored on its side; a reader that obeys EXIF turns it upright
        picture, options["exif"] = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        options["exif"][0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if form.startswith("png") else "JPEG", **options)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=TARGET)
    target = parser.parse_args().to
    print(f"{target}: {target.write_bytes(archive()):,} bytes")
