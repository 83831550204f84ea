"""Documents as windows of ids to go on pretraining with: a BOS in front of each, every token learnt."""

from collections.abc import Sequence
from typing import Any

from ft.errors import UserError
from ft.machine import is_main
from ft.text import control, tokens
from ft.text.examples import Examples
from ft.text.template import Template

TEMPLATE = Template(
    name="text", prompt="{text}", completion="{text}"
)  # what is asked goes on as it is


def encode(
    rows: Sequence[Any], _: Template, tokenizer: Any, *, max_length: int, ends: bool = True
) -> tokens.Encoded:
    """Windows of at most ``max_length`` ids of documents ``{"text"}``.

    A window is BOS and ids of one document: a longer one gives several, so that its ids are those of its
    windows end to end, and none is lost. All but the BOS are supervised. With ``ends`` the EOS stands
    behind a document's last id. Windows of different documents never see each other: a packed row keeps
    examples apart. ``rows`` of what comes are the documents behind the windows, ``lengths`` of documents.
    Raises ``UserError`` for a control token in a text.
    """
    from tqdm import tqdm

    control.refuse(rows, tokenizer)
    bos, eos, room = tokenizer.bos_token_id, tokenizer.eos_token_id, max_length - 1
    if room < 1:
        raise UserError(f"--max-length {max_length}: a window needs room for <bos> and a token")
    examples, behind, lengths = Examples(), [], []
    starts = range(0, len(rows), tokens.CHUNK)
    for start in tqdm(starts, "encode", delay=2, leave=False, disable=not is_main()):
        texts = [row["text"] for row in rows[start : start + tokens.CHUNK]]
        for number, ids in enumerate(tokens.ids_of(tokenizer, texts), start):
            ids = [*ids, eos] if ends else ids
            lengths.append(len(ids) + 1)
            for at in range(0, len(ids), room):
                window = ids[at : at + room]
                examples.add([bos, *window], b"\0" + b"\1" * len(window))
                behind.append(number)
    if not examples:
        raise UserError("there are no documents to encode")
    return tokens.Encoded(examples, behind, lengths, 0, 0)
