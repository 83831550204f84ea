"""Documents as windows of ids to go on pretraining with: a BOS in front of each, every token learnt."""

import itertools
from collections.abc import Sequence
from typing import Any

from ft.errors import UserError
from ft.machine import is_main
from ft.text import bad_rows, tokens
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
    Bad rows, of a control token in the text, are as ``bad_rows.Good`` has it.
    """
    from tqdm import tqdm

    bos, eos, room = tokenizer.bos_token_id, tokenizer.eos_token_id, max_length - 1
    if room < 1:
        raise UserError(f"--max-length {max_length}: a window needs room for <bos> and a token")
    examples, behind, lengths = Examples(), [], []
    good = bad_rows.Good(rows, tokenizer, lambda row: row["text"])
    bar = tqdm(good, "encode", len(rows), delay=2, leave=False, disable=not is_main())
    texts = iter(bar)
    while chunk := list(itertools.islice(texts, tokens.CHUNK)):
        for ids in tokens.ids_of(tokenizer, chunk):
            ids = [*ids, eos] if ends else ids
            for at in range(0, len(ids), room):
                window = ids[at : at + room]
                examples.add([bos, *window], b"\0" + b"\1" * len(window))
                behind.append(len(lengths))
            lengths.append(len(ids) + 1)
    if not examples:
        raise UserError("there are no documents to encode")
    return tokens.of_rows(tokens.Encoded(examples, behind, lengths, 0, 0), good)
