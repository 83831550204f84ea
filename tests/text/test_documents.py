"""Documents as windows: nothing lost, a BOS in front of each, every token learnt, documents kept apart."""

import pytest
from support import tiny

from ft.errors import UserError
from ft.text import documents
from ft.text.batches import packed_row
from ft.text.documents import TEMPLATE
from ft.text.tokens import IGNORE

ROWS = [{"text": "The cat sleeps on the table. " * 9}, {"text": "Bonjour,\n\nParis."}]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def windows(tokenizer, **options):
    return documents.encode(ROWS, TEMPLATE, tokenizer, **{"max_length": 12} | options)


def test_windows_end_to_end_are_the_documents(tokenizer):
    encoded = windows(tokenizer)
    for number, row in enumerate(ROWS):
        own = [
            e["input_ids"]
            for e, r in zip(encoded.examples, encoded.rows, strict=True)
            if r == number
        ]
        assert {ids[0] for ids in own} == {tokenizer.bos_token_id}
        assert {len(ids) for ids in own[:-1]} <= {12}
        joined = [i for ids in own for i in ids[1:]]
        assert joined == tokenizer(row["text"], add_special_tokens=False)["input_ids"] + [
            tokenizer.eos_token_id
        ]
        assert tokenizer.decode(joined[:-1]) == row["text"]
        assert encoded.lengths[number] == len(joined) + 1


def test_every_token_but_bos_is_learnt_and_documents_are_apart(tokenizer):
    encoded = windows(tokenizer)
    for example in encoded.examples:
        assert example["labels"] == [IGNORE, *example["input_ids"][1:]]
    row = packed_row(encoded.examples[:])
    starts = (row["input_ids"][0] == tokenizer.bos_token_id).nonzero().flatten().tolist()
    assert (row["position_ids"][0] == 0).nonzero().flatten().tolist() == starts
    assert (row["labels"][0] == IGNORE).nonzero().flatten().tolist() == starts
    assert encoded.supervised == sum(encoded.lengths) - len(ROWS)


def test_without_ends_no_eos_is_foreseen(tokenizer):
    assert windows(tokenizer, ends=False).supervised == windows(tokenizer).supervised - len(ROWS)


def test_control_tokens_and_no_room_are_refused(tokenizer):
    with pytest.raises(UserError, match="row 1, text: the text contains '<eos>'"):
        documents.encode([{"text": "a <eos> b"}], TEMPLATE, tokenizer, max_length=12)
    with pytest.raises(UserError, match="--max-length 1"):
        windows(tokenizer, max_length=1)
