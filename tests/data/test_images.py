"""Rows with images: one, several or none; images whole, upright and in RGB; and what is refused."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ft.data.images import MOST, open_image, read
from ft.errors import UserError


def saved(place, image, name="photo.png", **options):
    image.save(place / name, **options)
    return place / name


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees, clockwise
    found = open_image(saved(tmp_path, image, "photo.jpg", exif=exif, quality=95))
    assert found.size == (20, 40)
    assert found.getpixel((10, 5))[0] > 200  # red is on top
    assert found.getpixel((10, 35))[2] > 200


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 51_400, (200, 200, 200)),
        ("LA", (10, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_grey_and_transparent_become_rgb(tmp_path, mode, colour, expected):
    found = open_image(saved(tmp_path, Image.new(mode, (16, 9), colour)))
    assert found.mode == "RGB"
    assert found.size == (16, 9)
    assert found.getpixel((3, 3)) == expected


def test_a_palette_with_a_transparent_entry_and_cmyk(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 255, 0, 9, 9, 9])
    assert open_image(saved(tmp_path, image, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(saved(tmp_path, image)).getpixel((0, 0)) == (0, 255, 0)
    assert open_image(saved(tmp_path, Image.new("CMYK", (16, 16)), "c.jpg")).mode == "RGB"


def test_of_an_animation_the_first_picture(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    file = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(file).getpixel((0, 0)) == (255, 0, 0)


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no pixel."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


def truncated(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "an empty file"),
        (b"<html>", "not an image of a known format"),
        (truncated("PNG"), "damaged: .*truncated"),
        (truncated("JPEG"), "damaged: .*truncated"),
        (header_of(1, 1), "1×1 pixels show nothing; a side has 8 at least"),
        (header_of(20_000, 100), "20000×100 pixels; a side has 16,384 at most"),
        (header_of(12_000, 12_000), "12000×12000: more than 134,217,728 pixels"),
        (header_of(MOST, MOST), "more than 134,217,728 pixels"),
    ],
    ids=["missing", "empty", "text", "half PNG", "half JPEG", "1x1", "wide", "large", "bomb"],
)
def test_an_image_that_is_of_no_use_is_refused_with_the_reason(tmp_path, content, said):
    file = tmp_path / "photo.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"photo\.png: .*{said}"):
        open_image(file)


def test_a_folder_an_address_and_pixels_without_a_range_are_refused(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        open_image(tmp_path)
    with pytest.raises(UserError, match=r"https://x\.y/z\.png: an address; download it"):
        open_image("https://x.y/z.png")
    with pytest.raises(UserError, match="pixels of 32 bits"):
        open_image(saved(tmp_path, Image.new("F", (16, 16)), "f.tif"))


@pytest.fixture
def photos(tmp_path):
    """A function that writes rows beside two photos, and returns the jsonl."""
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "photos" / f"{name}.png")

    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def row(prompt="What is it?", completion="A kite.", **more):
    return {"prompt": prompt, "completion": completion, **more}


def test_paths_are_relative_to_the_file_and_rows_have_one_several_or_no_image(photos, tmp_path):
    several = ["photos/a.png", str(tmp_path / "photos" / "b.png")]
    found = read(photos(row(image="photos/a.png"), row(images=several), row(), row(image=None)))
    a, b = (str(tmp_path / "photos" / f"{name}.png") for name in "ab")
    assert [r["images"] for r in found] == [[a], [a, b], [], []]
    assert found[1]["where"] == f"{tmp_path}/rows.jsonl:2"
    assert (found[0]["prompt"], found[0]["completion"]) == ("What is it?", "A kite.")


def test_the_hash_knows_the_pixels(photos, tmp_path):
    file = photos(row(image="photos/a.png"))
    before = read(file).sha256
    assert read(file).sha256 == before
    Image.new("RGB", (16, 16), "green").save(tmp_path / "photos" / "a.png")
    assert read(file).sha256 != before


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"image": "photos/c.png"}, r"image .*photos/c\.png: No such file"),
        ({"image": "rows.jsonl"}, "not an image of a known format"),
        ({"image": "https://x.y/a.png"}, "an address"),
        ({"image": 3}, "images are not paths but '3'"),
        ({"images": ["photos/a.png", ""]}, "images are not paths"),
        ({"image": "photos/a.png", "images": []}, "both 'image' and 'images'"),
        (
            {"image": "photos/a.png", "prompt": "<image> or <image>?"},
            "<image> 2 times, the row 1 im",
        ),
        ({"prompt": "What is <image>?"}, "<image> 1 times, the row 0 images"),
        ({"image": "photos/a.png", "completion": " "}, "completion is empty"),
        ({"image": "photos/a.png", "prompt": None}, "prompt is not a string but null"),
    ],
)
def test_a_bad_row_is_named_with_its_reason_or_left_out(photos, bad, said):
    file = photos(row(image="photos/a.png"), row() | bad)
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{said}"):
        read(file)
    kept = read(file, on_bad_row="skip")
    assert (len(kept), kept.skipped) == (1, 1)


def test_a_table_without_images_and_no_table(photos, tmp_path):
    with pytest.raises(
        UserError, match=r"no row of .*rows\.jsonl has an image: .*'image' .*'images'"
    ):
        read(photos(row(img="photos/a.png")))
    with pytest.raises(UserError, match="there is no such file"):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"system_prompt": "Be brief."}, "the column 'system_prompt' has no place beside images"),
        ({"messages": [{}]}, "the column 'messages' has no place beside images"),
        (
            {"completion": "an <image> of red"},
            "the completion has <image>, which stands for an image",
        ),
        ({"Image": "photo.png"}, "the column 'Image' would change what is learnt"),
    ],
)
def test_what_would_be_lost_beside_images_is_refused(tmp_path, more, why):
    saved(tmp_path, Image.new("RGB", (16, 16), "red"))
    row = {"image": "photo.png", "prompt": "What is it?", "completion": "Red."}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | more)}\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {why}"):
        read(tmp_path / "a.jsonl")
