"""Images beside text: the ids that stand for them, transformers' own processor for their pixels, batches of both."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ft.data import images
from ft.data.images import MARKER
from ft.errors import UserError
from ft.models.load import load_config, load_errors
from ft.models.sources import fetch
from ft.text import bad_rows, batches, control, tokens
from ft.text.template import Template
from ft.text.tokens import Encoded, Example

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FILES = "image_files"  # of an encoded example: the paths of its images
INPUTS = ("pixel_values", "image_position_ids")  # what a processor makes for the image tower
# what a model calls the input that tells image tokens from text; among those of an image Gemma 3 and some
# Gemma 4 attend in both directions
TYPES = {"gemma3": "token_type_ids", "gemma3n": "token_type_ids"} | dict.fromkeys(
    ("gemma4", "gemma4_unified"), "mm_token_type_ids"
)


class ImagePrompt(list[int]):
    """Ids of a prompt with images, and besides the inputs of the image tower.

    ``pixels`` by their names, images along the first axis; ``token`` is the id of image tokens, ``types``
    the name of the input that tells them from text.
    """

    def __init__(
        self, ids: Sequence[int], pixels: Mapping[str, "Tensor"], token: int, types: str
    ) -> None:
        super().__init__(ids)
        self.pixels, self.token, self.types = pixels, token, types


@dataclass(frozen=True)
class Reader:
    """What turns images and the text around them into the inputs of one model."""

    processor: Any  # transformers'
    token: int  # id of the image tokens, whose embeddings the image tower gives
    types: str  # name of the input that says which tokens these are
    place: str  # how the model's chat template writes an image

    def filling(self, pictures: Sequence["Image | str"]) -> Callable[[str], str]:
        """A function that puts the tokens of the next image, opened or a path, for each mark of a text."""
        places = iter([self._tokens_of(picture) for picture in pictures])
        return lambda text: re.sub(re.escape(MARKER), lambda _: next(places, MARKER), text)

    def pixels(self, pictures: Sequence["Image"]) -> dict[str, "Tensor"]:
        """The image tower's inputs, images along the first axis; none for no image."""
        if not pictures:
            return {}
        made = self.processor.image_processor(list(pictures), return_tensors="pt")
        return {name: made[name] for name in INPUTS if name in made}

    def prompt(
        self, template: Template | None, row: Mapping[str, Any], tokenizer: Any
    ) -> ImagePrompt:
        """The ids of a prompt with its images, as training had them there.

        ``row`` is what ``tokens.prompt_ids`` takes, with ``"images"`` (opened ones) beside the text or in
        the messages that they belong to; without a template its ``"text"`` is taken as it is. Raises
        ``UserError`` as ``marked`` and ``tokens.prompt_ids`` do.
        """
        turns = row.get("messages", [row])
        seen = [picture for turn in turns for picture in turn.get("images", ())]
        fill = self.filling(seen)
        if template is None:
            control.refuse([row], tokenizer)
            text = fill(marked(row["text"], len(seen)))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = [tokenizer.bos_token_id, *ids]
        else:
            new = [_with_marks(turn) for turn in turns]
            plain = {"messages": new} if "messages" in row else new[0]
            ids = tokens.prompt_ids(template, plain, tokenizer, fill=fill)
        return ImagePrompt(ids, self.pixels(seen), self.token, self.types)

    def _tokens_of(self, picture: "Image | str") -> str:
        """The text that stands for an image; of some models its length depends on the image's size."""
        processor = self.processor
        text = getattr(processor, "full_image_sequence", None)
        if text is None or getattr(processor.image_processor, "do_pan_and_scan", False):
            picture = images.open_image(picture) if isinstance(picture, str) else picture
            text = processor.replace_image_token(processor.image_processor([picture]), 0)
        return self.place.replace(processor.image_token, text)


def marked(text: str, number: int) -> str:
    """The text with a mark ``<image>`` for each of its images, all in front where it has none itself.

    Texts beside an image lose the white space at their ends, as Gemma's chat templates have it. Raises
    ``UserError`` where the marks are not as many as the images.
    """
    parts = text.split(MARKER) if MARKER in text else [""] * number + [text]
    if len(parts) - 1 != number:
        raise UserError(
            f"the text has {MARKER} {len(parts) - 1} times, and there are {number} images"
        )
    return MARKER.join(part.strip() for part in parts) if number else text


def _with_marks(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message or a row of fields without its images, which its text has marks for."""
    name = next(key for key in turn if key not in ("role", "system", "images"))
    rest = {key: value for key, value in turn.items() if key != "images"}
    return rest | {name: marked(turn[name], len(turn.get("images", ())))}


def reader(name: str) -> Reader:
    """The ``Reader`` for a model by folder or Hub id; no weight is read.

    Raises ``UserError`` for a model that takes no images, a folder without a processor, a package that
    it needs, and a processor that makes another number of tokens of an image than the model does.
    """
    from transformers import AutoProcessor

    config = load_config(name)
    if config.model_type not in TYPES or getattr(config, "vision_config", None) is None:
        raise UserError(
            f"{name} takes no images: it is a {config.model_type} model, of text alone. Gemma 3 from 4B on, "
            "Gemma 3n and Gemma 4 take them, such as google/gemma-3-4b-it."
        )
    path = fetch(name, weights=False)
    files = ("processor_config.json", "preprocessor_config.json")
    if not any((path / file).is_file() for file in files):
        raise UserError(f"{name} has no image processor ({' or '.join(files)}).")
    with load_errors(name):
        processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
    made = getattr(config, "mm_tokens_per_image", None)
    made = made or getattr(config, "vision_soft_tokens_per_image", None)
    if made and hasattr(processor, "full_image_sequence") and made != processor.image_seq_length:
        raise UserError(
            f"{name}: its processor writes {processor.image_seq_length} tokens for an image, and the model "
            f"makes {made} of one: they do not belong together."
        )
    types = TYPES[config.model_type]
    return Reader(processor, config.image_token_id, types, _place(processor, name))


def _place(processor: Any, name: str) -> str:
    """How the chat template writes an image in front of a text; without a template, its token alone."""
    token = processor.image_token
    if not processor.chat_template:
        return token
    text = {"type": "text", "text": "\x02"}
    with_image, plain = (
        processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        for parts in ([{"type": "image"}, text], [text])
    )
    found = with_image.partition("\x02")[0].removeprefix(plain.partition("\x02")[0])
    if found.count(token) != 1:
        raise UserError(
            f"{name}: its chat template writes an image as {found!r}, without {token!r}"
        )
    return found


def encode(
    rows: Sequence[Mapping[str, Any]],
    template: Template,
    tokenizer: Any,
    see: Reader,
    *,
    max_length: int,
    policy: tokens.Policy = "drop",
) -> Encoded:
    """``tokens.encode`` of rows as ``data.images.read`` gives them; each example has its ``FILES`` besides.

    Image tokens are never cut: they stand before the completion, and an example that would lose its
    completion is dropped. Bad rows, whose images alone fill ``max_length`` among them, are as
    ``bad_rows.Good`` has it. Raises ``UserError`` for ids that lost or gained an image token.
    """
    image = see.processor.tokenizer.convert_ids_to_tokens(see.token)

    def made(row: Mapping[str, Any]) -> tokens.Pair:
        fields = {"instruction": marked(row["prompt"], len(row["images"]))}
        (pair,) = template.turns(fields | {"response": row["completion"]})
        pair["prompt"] = see.filling(row["images"])(pair["prompt"])
        if (count := pair["prompt"].count(image)) >= max_length:
            raise UserError(
                f"{len(row['images'])} images take {count:,} tokens, which max_length={max_length:,} has "
                "no room for, and image tokens are never cut: give fewer images or raise --max-length"
            )
        return pair

    good = bad_rows.Good(rows, tokenizer, made)
    pairs = list(good)
    encoded = tokens.encode(
        pairs,
        tokenizer,
        max_length=max_length,
        policy=policy,
        end=template.end,
        tail=template.tail,
        place=lambda at: good.place(good.kept[at]),
        on_bad_row=good.policy,
    )
    examples = list(encoded.examples)
    for example, at in zip(examples, encoded.rows, strict=True):
        number, wanted = good.kept[at], pairs[at]["prompt"].count(image)
        if (found := example["input_ids"].count(see.token)) != wanted:
            raise UserError(
                f"{rows[number]['where']}: {found} image tokens for images of {wanted}: the tokenizer does not "
                f"read {image!r} as one token"
            )
        example[FILES] = list(rows[number]["images"])
    return tokens.of_rows(replace(encoded, examples=examples), good)


def batch(examples: Sequence[Example], see: Reader, pad: int) -> dict[str, "Tensor"]:
    """Examples padded on the right to the longest, with the pixels of all their images.

    No positions, from which the attention would take a row to be causal, and no mask: images come
    before the text that sees them, and padding after all of it. An example may have no image.
    """
    made = batches.padded_batch(examples, pad)
    del made["position_ids"]
    made[see.types] = (made["input_ids"] == see.token).long()
    paths: list[Any] = [path for example in examples for path in example.get(FILES) or ()]
    return made | see.pixels([images.open_image(path) for path in paths])
