"""The pictures: a small landscape for each prompt and seed, plainly marked EMULATED.

The same prompt and seed always give the same picture. A scene is painted small and soft, blown up to the size
asked for and captioned; that takes a few dozen milliseconds for 1024 x 1024, so it is done when a picture is
first fetched, and the newest are kept.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
import random
import threading
from dataclasses import dataclass, replace
from html import escape

from cachetools import LRUCache
from PIL import Image, ImageDraw, ImageFont

from imagen.emulator.padding import Padded, padded

CONTENT_TYPES = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg", "svg": "image/svg+xml"}
KEPT_PICTURES = 32
MARK = "EMULATED"

_SCENE_SIDE = 320
_CAPTION_CHARACTERS = 64

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class PictureSpec:
    """Everything a picture depends on."""

    model: str
    prompt: str
    seed: int
    index: int
    width: int
    height: int
    format: str
    quality: int = 80


@dataclass(frozen=True)
class Scene:
    """A landscape: colours of the sky from top to bottom, a sun, and hills from far to near.

    Positions are shares of the width and the height, 0 to 1.
    """

    sky: tuple[Colour, Colour, Colour]
    sun: tuple[float, float, float]
    sun_colour: Colour
    hills: tuple[tuple[Colour, tuple[float, ...]], ...]


class PictureStudio:
    """Paints pictures and keeps the newest 32; may be used from several threads at once."""

    def __init__(self) -> None:
        self._kept: LRUCache[PictureSpec, bytes] = LRUCache(KEPT_PICTURES)
        self._filled: dict[tuple[PictureSpec, int], Padded] = {}
        """The last that was filled up, which those who measure ask for again and again."""
        self._lock = threading.Lock()

    def picture(self, spec: PictureSpec, least_bytes: int = 0) -> bytes:
        """The file's bytes; with `least_bytes` one scene for all, filled up, which takes no painting."""
        if least_bytes == 0:
            return self._painted(spec)
        mark = hashlib.sha256(repr(spec).encode()).digest()
        return self._padded(spec, least_bytes).marked(mark)

    def _painted(self, spec: PictureSpec) -> bytes:
        with self._lock:
            if (kept := self._kept.get(spec)) is not None:
                return kept
        content = paint(spec)
        with self._lock:
            self._kept[spec] = content
        return content

    def _padded(self, spec: PictureSpec, least_bytes: int) -> Padded:
        shared = replace(spec, model="", prompt="a picture for measuring", seed=0, index=0)
        filled = self._filled.get((shared, least_bytes))
        if filled is None:
            filled = padded(self._painted(shared), spec.format, least_bytes)
            self._filled = {(shared, least_bytes): filled}
        return filled


def paint(spec: PictureSpec) -> bytes:
    """Paint one picture and encode it."""
    scene = _scene_of(spec)
    if spec.format == "svg":
        return _as_svg(scene, spec).encode()
    return _encode(_as_pixels(scene, spec), spec)


def _scene_of(spec: PictureSpec) -> Scene:
    said = f"{spec.model}\0{spec.prompt}\0{spec.seed}\0{spec.index}"
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()
    chance = random.Random(digest)  # noqa: S311 - a picture is no secret
    hue = chance.random()
    warmth = (hue + chance.uniform(0.08, 0.2)) % 1
    layers = 5
    return Scene(
        sky=(
            _colour(hue, 0.62, 0.50),
            _colour((hue + warmth) / 2 if abs(hue - warmth) < 0.5 else hue, 0.42, 0.82),
            _colour(warmth, 0.36, 0.98),
        ),
        sun=(chance.uniform(0.18, 0.82), chance.uniform(0.22, 0.50), chance.uniform(0.06, 0.12)),
        sun_colour=_colour(warmth, 0.14, 1.0),
        hills=tuple(_hill(chance, hue, layer, layers) for layer in range(layers)),
    )


def _hill(chance: random.Random, hue: float, layer: int, layers: int) -> tuple[Colour, tuple[float, ...]]:
    nearness = (layer + 1) / layers
    base = 0.46 + 0.36 * nearness * nearness + 0.04
    waves = [
        (chance.uniform(0.02, 0.075) / (octave + 1), chance.uniform(1.2, 2.6) * (octave + 1), chance.random())
        for octave in range(3)
    ]
    heights = tuple(
        base + sum(size * math.sin((step / 48 * turns + start) * math.tau) for size, turns, start in waves)
        for step in range(49)
    )
    return _colour((hue + 0.03 * layer) % 1, 0.30 + 0.34 * nearness, 0.80 - 0.62 * nearness), heights


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _as_pixels(scene: Scene, spec: PictureSpec) -> Image.Image:
    scale = _SCENE_SIDE / max(spec.width, spec.height)
    width, height = max(2, round(spec.width * scale)), max(2, round(spec.height * scale))
    image = _sky(scene, width, height)
    draw = ImageDraw.Draw(image, "RGBA")
    side = math.sqrt(width * height)
    x, y, radius = scene.sun[0] * width, scene.sun[1] * height, scene.sun[2] * side
    for ring in range(24, 0, -1):
        glow = radius * (1 + ring * 0.14)
        draw.ellipse((x - glow, y - glow, x + glow, y + glow), fill=(*scene.sun_colour, 7))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=scene.sun_colour)
    for colour, heights in scene.hills:
        ridge = [(step * width / 48, level * height) for step, level in enumerate(heights)]
        draw.polygon([(0, height), *ridge, (width, height)], fill=colour)
    image = image.resize((spec.width, spec.height), Image.Resampling.BICUBIC)
    _caption(image, spec)
    return image


def _sky(scene: Scene, width: int, height: int) -> Image.Image:
    strip = Image.new("RGB", (1, 3))
    for row, colour in enumerate(scene.sky):
        strip.putpixel((0, row), colour)
    return strip.resize((1, height), Image.Resampling.BICUBIC).resize((width, height))


def _caption(image: Image.Image, spec: PictureSpec) -> None:
    size = max(9, round(min(image.width, image.height) / 36))
    font = ImageFont.load_default(size)
    strip = size * 2
    if image.height < strip * 2:
        return
    band = Image.new("RGB", (image.width, strip), (18, 18, 22))
    draw = ImageDraw.Draw(band)
    draw.text((size, strip / 2), MARK, font=font, fill=(255, 196, 87), anchor="lm")
    start = size * 2 + draw.textlength(MARK, font=font)
    draw.text((start, strip / 2), _caption_text(spec), font=font, fill=(236, 236, 240), anchor="lm")
    image.paste(band, (0, image.height - strip))


def _caption_text(spec: PictureSpec) -> str:
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in spec.prompt).split())
    short = words[:_CAPTION_CHARACTERS] + ("…" if len(words) > _CAPTION_CHARACTERS else "")
    return f"{short}   seed {spec.seed}"


def _encode(image: Image.Image, spec: PictureSpec) -> bytes:
    buffer = io.BytesIO()
    quality = min(100, max(0, spec.quality))
    if spec.format == "png":
        image.save(buffer, "PNG", compress_level=1)
    elif spec.format == "webp":
        image.save(buffer, "WEBP", quality=quality, method=0)
    else:
        image.save(buffer, "JPEG", quality=max(1, min(95, quality)))
    return buffer.getvalue()


def _as_svg(scene: Scene, spec: PictureSpec) -> str:
    width, height = spec.width, spec.height
    stops = "".join(
        f'<stop offset="{offset}" stop-color="{_hex(colour)}"/>'
        for offset, colour in zip((0, 0.5, 1), scene.sky, strict=True)
    )
    hills = "".join(
        f'<path fill="{_hex(colour)}" d="M0 {height} '
        + " ".join(f"L{step * width / 48:.1f} {level * height:.1f}" for step, level in enumerate(heights))
        + f' L{width} {height} Z"/>'
        for colour, heights in scene.hills
    )
    size = max(9, round(min(width, height) / 36))
    radius = scene.sun[2] * math.sqrt(width * height)
    caption = escape(f"{MARK}  {_caption_text(spec)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
        f'<defs><linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">{stops}</linearGradient></defs>'
        f'<rect width="{width}" height="{height}" fill="url(#sky)"/>'
        f'<circle cx="{scene.sun[0] * width:.1f}" cy="{scene.sun[1] * height:.1f}" r="{radius:.1f}" '
        f'fill="{_hex(scene.sun_colour)}"/>{hills}'
        f'<rect y="{height - size * 2}" width="{width}" height="{size * 2}" fill="#121216"/>'
        f'<text x="{size}" y="{height - size * 0.65:.1f}" font-family="sans-serif" font-size="{size}" '
        f'fill="#ececf0">{caption}</text></svg>'
    )


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
