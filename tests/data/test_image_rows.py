"""Rows with images: one, several or none; and every bad row with its place and reason."""

import json

import pytest
from PIL import Image

from ft.data.image_rows import read
from ft.errors import UserError


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
