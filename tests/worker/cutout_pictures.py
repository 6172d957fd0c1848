"""Pictures of objects whose true alpha is known, with the backgrounds and faults that people's pictures have.

Each has a name, a picture (RGB) and the object's alpha, [H, W] in 0..1, or None where there is no object to be cut out
without a network.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, MORE = 384, 3  # objects are drawn MORE times as large, and reduced
Picture = tuple[str, Image.Image, np.ndarray | None]


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (SIZE * MORE, SIZE * MORE))
    return image, ImageDraw.Draw(image)


def done(image: Image.Image) -> np.ndarray:
    """float32 [SIZE, SIZE, 4] in 0..1, straight."""
    rgba = np.asarray(image, np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    small = rgba.reshape(SIZE, MORE, SIZE, MORE, 4).mean((1, 3))
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    return small


def scaled(*numbers: float) -> tuple[float, ...]:
    return tuple(number * MORE for number in numbers)


def fox(throat=(246, 245, 243)) -> np.ndarray:
    """Its throat and belly are as white as paper, and part of its outline."""
    image, draw = canvas()
    orange = (214, 112, 40)
    draw.ellipse(scaled(110, 170, 280, 340), fill=orange)  # body
    draw.polygon(scaled(280, 300, 350, 210, 362, 250, 300, 335), fill=orange)  # tail
    draw.ellipse(scaled(90, 80, 210, 190), fill=orange)
    draw.polygon(scaled(100, 110, 104, 40, 145, 85), fill=orange)
    draw.polygon(scaled(160, 85, 198, 42, 200, 112), fill=orange)
    draw.polygon(scaled(92, 150, 150, 188, 160, 300, 112, 275, 100, 215), fill=throat)  # reaches the outline
    draw.ellipse(scaled(120, 120, 134, 136), fill=(20, 20, 20))
    draw.ellipse(scaled(165, 120, 179, 136), fill=(20, 20, 20))
    draw.rectangle(scaled(150, 320, 175, 360), fill=(60, 40, 30))
    draw.rectangle(scaled(225, 320, 250, 360), fill=(60, 40, 30))
    return done(image)


def ghost(grey=150) -> np.ndarray:
    """All of it is about as grey as what is behind it; only eyes and mouth are dark."""
    image, draw = canvas()
    tone = (grey, grey, grey + 2)
    draw.ellipse(scaled(110, 60, 274, 230), fill=tone)
    draw.rectangle(scaled(110, 145, 274, 310), fill=tone)
    for left in (110, 165, 219):
        draw.ellipse(scaled(left, 285, left + 55, 335), fill=tone)
    for left in (150, 205):
        draw.ellipse(scaled(left, 120, left + 28, 160), fill=(30, 30, 35))
    draw.ellipse(scaled(178, 185, 206, 225), fill=(30, 30, 35))
    return done(image)


def house(chimney=(150, 150, 152)) -> np.ndarray:
    """With a thin grey chimney."""
    image, draw = canvas()
    draw.rectangle(scaled(252, 70, 259, 150), fill=chimney)
    draw.polygon(scaled(80, 190, 192, 95, 304, 190), fill=(150, 50, 40))
    draw.rectangle(scaled(100, 188, 284, 330), fill=(225, 205, 160))
    draw.rectangle(scaled(170, 250, 210, 330), fill=(90, 60, 40))
    for left in (120, 235):
        draw.rectangle(scaled(left, 215, left + 30, 245), fill=(120, 160, 190))
    return done(image)


def mug() -> np.ndarray:
    """Its handle encloses the background."""
    image, draw = canvas()
    red = (200, 60, 40)
    draw.ellipse(scaled(225, 128, 330, 255), outline=red, width=21 * MORE)
    draw.rectangle(scaled(98, 90, 255, 300), fill=red)
    draw.ellipse(scaled(98, 68, 255, 112), fill=(140, 40, 30))
    draw.ellipse(scaled(98, 280, 255, 320), fill=red)
    return done(image)


def chair() -> np.ndarray:
    """Mostly gaps."""
    image, draw = canvas()
    wood = (120, 78, 45)
    for left in (110, 255):
        draw.rectangle(scaled(left, 60, left + 16, 340), fill=wood)
    for top in (65, 100, 135, 170):
        draw.rectangle(scaled(110, top, 270, top + 14), fill=wood)
    draw.polygon(scaled(100, 210, 282, 210, 310, 245, 80, 245), fill=(150, 100, 60))
    for left in (84, 292):
        draw.rectangle(scaled(left, 240, left + 14, 365), fill=wood)
    return done(image)


def plant() -> np.ndarray:
    """A pot and thin leaves."""
    image, draw = canvas()
    random = np.random.default_rng(3)
    for angle in np.linspace(-1.2, 1.2, 13):
        length = 150 + 40 * random.random()
        x, y = 192 + length * np.sin(angle), 240 - length * np.cos(angle)
        side = 9 * np.array([np.cos(angle), np.sin(angle)])
        middle = (192 + x) / 2, (240 + y) / 2
        draw.polygon(
            scaled(192, 240, *(middle + side), x, y, *(middle - side)), fill=(40, 110 + int(60 * random.random()), 50)
        )
    draw.polygon(scaled(140, 235, 244, 235, 228, 345, 156, 345), fill=(180, 95, 60))
    return done(image)


def bird(belly=(236, 236, 238)) -> np.ndarray:
    """Its belly, a little lighter than the background, is half of its outline."""
    image, draw = canvas()
    draw.ellipse(scaled(90, 120, 300, 300), fill=(70, 85, 120))
    draw.chord(scaled(90, 120, 300, 300), 20, 165, fill=belly)
    draw.ellipse(scaled(235, 70, 325, 160), fill=(70, 85, 120))
    draw.polygon(scaled(320, 105, 360, 118, 320, 128), fill=(230, 160, 40))
    draw.ellipse(scaled(285, 95, 299, 109), fill=(10, 10, 10))
    for left in (170, 210):
        draw.rectangle(scaled(left, 295, left + 6, 350), fill=(200, 130, 40))
    return done(image)


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return x[..., None], y[..., None]


def flat(color) -> np.ndarray:
    return np.broadcast_to(np.float32(color), (SIZE, SIZE, 3)).copy()


def mixed(t: np.ndarray, a, b) -> np.ndarray:
    return np.float32(a) * (1 - t) + np.float32(b) * t


def backgrounds() -> dict[str, np.ndarray]:
    """[SIZE, SIZE, 3] in 0..255."""
    x, y = grid()
    far = np.sqrt((x - 0.1) ** 2 + (y + 0.2) ** 2)
    soft = np.random.default_rng(5).uniform(0, 255, (5, 5, 3)).astype(np.uint8)
    bokeh = np.asarray(Image.fromarray(soft).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    wall = 1 / (1 + np.exp(-(y - 0.35 - 0.08 * x) * SIZE / 2))
    corner = 1 / (1 + np.exp(-(y - 0.45) * 30))
    return {
        "white": flat((255, 255, 255)),
        "off-white": flat((244, 244, 246)),
        "grey": flat((198, 199, 200)),
        "radial": mixed(np.clip(far / 1.5, 0, 1), (250, 250, 248), (70, 80, 95)),
        "spotlight": mixed(np.exp(-((far / 0.55) ** 2)), (35, 38, 48), (190, 195, 205)),
        "diagonal": mixed((x + y + 2) / 4, (252, 240, 220), (60, 75, 120)),
        "vignette": flat((150, 165, 150)) * (1 - 0.42 * (x * x + y * y) / 2),
        "sweep": mixed(corner, (205, 215, 225), (160, 165, 172)),
        "floor and wall": mixed(wall, (214, 220, 228), (128, 98, 70)),
        "bokeh": 0.14 * bokeh + 110,
    }


def put(object_: np.ndarray, background: np.ndarray) -> np.ndarray:
    """float32 [SIZE, SIZE, 3] in 0..255."""
    alpha = object_[..., 3:]
    return object_[..., :3] * 255 * alpha + background * (1 - alpha)


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.clip(values, 0, 255) + 0.5))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def grainy(values: np.ndarray, strength: float) -> np.ndarray:
    return values + np.random.default_rng(1).normal(0, strength, values.shape)


def shadowed(values: np.ndarray, object_: np.ndarray) -> np.ndarray:
    """A background with the object's soft shadow on it."""
    lower = np.flatnonzero(object_[..., 3].any(1))[-1]
    left, right = np.flatnonzero(object_[..., 3].any(0))[[0, -1]]
    dark = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(dark).ellipse((left - 5, lower - 22, right + 25, lower + 14), fill=120)
    shade = np.asarray(dark.filter(ImageFilter.GaussianBlur(9)), np.float32)[..., None] / 255
    return values * (1 - 0.8 * shade)


def street() -> np.ndarray:
    """[SIZE, SIZE, 3] in 0..255: houses, windows, a car; nothing that stands out."""
    random = np.random.default_rng(9)
    _, y = grid()
    image = picture(mixed(np.clip(y + 1, 0, 1), (120, 160, 210), (225, 230, 235)))
    draw = ImageDraw.Draw(image)
    left = -10
    while left < SIZE:
        width, top = int(random.integers(40, 90)), int(random.integers(60, 170))
        draw.rectangle((left, top, left + width, 300), fill=tuple(random.integers(60, 220, 3).tolist()))
        for row in range(top + 10, 285, 26):
            for column in range(left + 8, left + width - 12, 20):
                draw.rectangle((column, row, column + 9, row + 14), fill=tuple(random.integers(20, 160, 3).tolist()))
        left += width
    draw.rectangle((0, 300, SIZE, SIZE), fill=(92, 92, 96))
    draw.rounded_rectangle((120, 280, 250, 330), 14, fill=(170, 30, 35))
    values = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    return grainy(values, 3)


def barred(values: np.ndarray, color, bar: int = 48, sides: bool = False) -> np.ndarray:
    """With letterbox bars, or bars at the sides, of so many pixels."""
    result = values.copy()
    part = result.swapaxes(0, 1) if sides else result
    part[:bar], part[-bar:] = color, color
    return result


OBJECTS = {"fox": fox, "mug": mug, "chair": chair, "plant": plant, "house": house}


def gradients() -> Iterator[Picture]:
    """Objects that differ from their background, whatever that is."""
    for name, background in backgrounds().items():
        for kind, make in OBJECTS.items():
            object_ = make()
            if kind == "fox" and name in ("white", "off-white"):
                continue  # one of those that are eaten
            yield f"{kind}, {name}", picture(put(object_, background)), object_[..., 3]
    object_ = mug()
    for name in ("radial", "diagonal", "vignette", "sweep", "floor and wall"):
        values = put(object_, backgrounds()[name])
        yield f"mug, {name}, JPEG 60", jpeg(picture(values), 60), object_[..., 3]
        yield f"mug, {name}, grain", picture(grainy(values, 5)), object_[..., 3]
        large = picture(values).resize((1024, 1024), Image.Resampling.BICUBIC)
        alpha = Image.fromarray(np.float32(object_[..., 3])).resize(large.size, Image.Resampling.BICUBIC)
        yield f"mug, {name}, 1024", large, np.clip(np.asarray(alpha), 0, 1)
        below = shadowed(backgrounds()[name], object_)
        yield f"mug, {name}, shadow", picture(put(object_, below)), object_[..., 3]


def eaten() -> Iterator[Picture]:
    """Objects with parts that have about the background's colour."""
    x, y = grid()
    for throat in (250, 246, 240):
        object_ = fox((throat,) * 3)
        for name in ("white", "off-white"):
            values = put(object_, backgrounds()[name])
            if throat == 246 and name == "off-white":
                continue  # no edge at all
            yield f"fox {throat}, {name}", picture(values), object_[..., 3]
            yield f"fox {throat}, {name}, JPEG 85", jpeg(picture(values), 85), object_[..., 3]
    for grey in (134, 146, 158):
        object_ = ghost(grey)
        behind = mixed((y + 1) / 2, (140,) * 3, (118,) * 3)
        yield f"ghost {grey}, grey gradient", picture(put(object_, behind)), object_[..., 3]
        yield f"ghost {grey}, gradient, JPEG 85", jpeg(picture(put(object_, behind)), 85), object_[..., 3]
        behind = mixed(np.clip(np.hypot(x, y) / 1.5, 0, 1), (128,) * 3, (90,) * 3)
        yield f"ghost {grey}, radial", picture(put(object_, behind)), object_[..., 3]
    for grey in (150, 185, 215):
        object_ = house((grey, grey, grey + 2))
        for name in ("white", "off-white"):
            values = put(object_, backgrounds()[name])
            yield f"chimney {grey}, {name}", picture(values), object_[..., 3]
            soft = picture(values).filter(ImageFilter.GaussianBlur(1.2))
            yield f"chimney {grey}, {name}, soft", soft, object_[..., 3]
            below = shadowed(backgrounds()[name], object_)
            yield f"chimney {grey}, {name}, shadow", picture(put(object_, below)), object_[..., 3]
    for belly in (214, 208):
        object_ = bird((belly, belly, belly + 1))
        values = put(object_, backgrounds()["grey"])
        yield f"bird {belly}, grey", picture(values), object_[..., 3]
        yield f"bird {belly}, grey, JPEG 85", jpeg(picture(values), 85), object_[..., 3]


def bars() -> Iterator[Picture]:
    """Objects and streets between bars."""
    for name, color in (("black", (0, 0, 0)), ("white", (255, 255, 255)), ("grey", (128, 128, 128))):
        for sides in (False, True):
            where = "at the sides" if sides else "above and below"
            yield f"street, {name} bars {where}", picture(barred(street(), color, 50, sides)), None
            object_ = mug()
            values = barred(put(object_, backgrounds()["diagonal"]), color, 40, sides)
            yield f"mug, {name} bars {where}", jpeg(picture(values), 85), object_[..., 3]


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two alphas [H, W] in 0..1."""
    return float(np.minimum(found, true).sum() / np.maximum(np.maximum(found, true).sum(), 1e-6))
