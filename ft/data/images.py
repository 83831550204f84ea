"""Images as a model should see them: files that are whole, upright, in RGB, of a size that makes sense."""

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ft.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST, MOST = 8, 16_384  # pixels of a side
PIXELS = 2**27  # of an image: 400 MB in RGB


def open_image(path: str | Path) -> "Image":
    """The image in a file (PNG, JPEG, WebP, …; the first of several), as a new one in RGB.

    Turned as its EXIF data says; what is transparent becomes white; 16-bit grey becomes 8-bit grey.
    Raises ``UserError`` that names the file and what is wrong with it: missing, damaged, no image, or
    of a size out of bounds, which is known before the pixels are read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if re.match(r"(https?|ftp|data):", str(path)):
        raise UserError(f"image {str(path)[:80]}: an address; download it and give the file")
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"image {path}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size and odd metadata: sizes are judged here
            with Image.open(io.BytesIO(data)) as image:
                if wrong := _size_fault(*image.size):
                    raise UserError(f"image {path}: {wrong}")
                image.load()
                return _rgb(ImageOps.exif_transpose(image), path)
    except UserError:
        raise
    except UnidentifiedImageError:
        kind = "an empty file" if not data else "not an image of a known format"
        raise UserError(f"image {path}: {kind}") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {path}: {_too_large(PIXELS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"image {path}: damaged: {' '.join(str(error).split())}") from None


def _size_fault(width: int, height: int) -> str:
    """What is wrong with a size; an empty string for nothing."""
    if min(width, height) < LEAST:
        return f"{width}×{height} pixels show nothing; a side has {LEAST} at least"
    if max(width, height) > MOST:
        return f"{width}×{height} pixels; a side has {MOST:,} at most: cut or shrink it"
    return f"{width}×{height}: {_too_large(PIXELS)}" if width * height > PIXELS else ""


def _too_large(most: int) -> str:
    return f"more than {most:,} pixels: shrink it"


def _rgb(image: "Image", path: str | Path) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise UserError(
            f"image {path}: pixels of 32 bits, whose black and white are not known; save it with 8 or 16"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")
