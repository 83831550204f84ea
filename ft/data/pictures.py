"""Pictures of one coloured shape somewhere, drawn by seed, each with the sentence that says what and where it is."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ft import files

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # of what is drawn
SIDE = 64  # pixels
COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (235, 210, 40),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
}
SHAPES = ("disc", "ring", "triangle", "cross")
POSITIONS = {
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "middle": (0.5, 0.5),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}
PARTS: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "position": tuple(POSITIONS),
}
PROMPT = "What is where?"


def write(folder: Path, n: int, seed: int) -> Path:
    """``n`` pictures as PNG files in ``folder``, and the jsonl file beside them that names each.

    Colour, shape, place, size, tilt and background of each are drawn by ``seed``. What is complete
    already stays as it is; of several processes one draws.
    """
    from filelock import FileLock

    table = folder / "pictures.jsonl"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not table.exists():
            _write(table, n, random.Random(seed))
    return table


def _write(table: Path, n: int, draws: random.Random) -> None:
    lines = []
    for number in range(n):
        colour, shape, place = (draws.choice(values) for values in PARTS.values())
        name = f"{number:05}.png"
        draw(colour, shape, place, draws).save(table.with_name(name))
        lines.append(
            {"image": name, "prompt": PROMPT, "completion": sentence(colour, shape, place)}
        )
    files.write_text(table, "".join(json.dumps(line) + "\n" for line in lines))


def sentence(colour: str, shape: str, position: str) -> str:
    """What a picture shows."""
    return f"{colour} {shape}, {position}"


def draw(colour: str, shape: str, position: str, draws: random.Random) -> "Image":
    """One picture, all that ``sentence`` does not say drawn by ``draws``."""
    from PIL import Image, ImageDraw

    def near(value: float, spread: float) -> float:
        return value + draws.uniform(-spread, spread)

    paper = int(near(225, 30))
    image = Image.new("RGB", (SIDE, SIDE), (paper, int(near(paper, 8)), int(near(paper, 8))))
    x, y = (near(at, 0.04) * SIDE for at in POSITIONS[position])
    size, tilt = near(0.2, 0.02) * SIDE, math.radians(near(0, 8))
    ink = tuple(int(near(value, 20)) for value in COLOURS[colour])
    pen = ImageDraw.Draw(image)
    box = (x - size, y - size, x + size, y + size)
    if shape == "disc":
        pen.ellipse(box, fill=ink)
    elif shape == "ring":
        pen.ellipse(box, outline=ink, width=3)
    for outline in _OUTLINES.get(shape, ()):
        turned = [
            (
                x + size * (a * math.cos(tilt) - b * math.sin(tilt)),
                y + size * (a * math.sin(tilt) + b * math.cos(tilt)),
            )
            for a, b in outline
        ]
        pen.polygon(turned, fill=ink)
    return image


def right(part: str, answer: str, expected: str) -> bool:
    """Whether ``answer`` names the colour, shape or position that ``expected`` does, and no other."""
    named, meant = ([v for v in PARTS[part] if v in text] for text in (answer, expected))
    return named == meant


def chance(part: str) -> float:
    """The share that a guess gets right: of one part, or (``exact``) of all together."""
    shares = {name: 1 / len(values) for name, values in PARTS.items()}
    return math.prod(shares.values()) if part == "exact" else shares[part]


_BAR = 0.22  # half of the width of a cross's bars
_OUTLINES = {
    "triangle": (((0, -1.1), (1.05, 0.85), (-1.05, 0.85)),),
    "cross": (
        ((-1.1, -_BAR), (1.1, -_BAR), (1.1, _BAR), (-1.1, _BAR)),
        ((-_BAR, -1.1), (_BAR, -1.1), (_BAR, 1.1), (-_BAR, 1.1)),
    ),
}
