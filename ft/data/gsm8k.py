"""GSM8K, grade-school maths with worked answers, as instructions whose answers end in ``ANSWER:`` and a number."""

import re
from pathlib import Path
from typing import Any

from ft.data.rows import Row, Rows, checked, fault
from ft.data.tables import read_table
from ft.errors import UserError, one_of
from ft.score.rewards import final_number

GSM8K = "openai/gsm8k/main"
# what the paper's calculator was asked: "48/2 = <<48/2=24>>24". Nothing computes it here.
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k(source: str | Path = GSM8K, *, split: str = "train", on_bad_row: str = "error") -> Rows:
    r"""The rows of GSM8K: ``{"instruction", "response"}``, of which the response ends ``\nANSWER: 72``.

    ``source`` is a folder with ``train.jsonl`` and ``test.jsonl``, one such file (whatever its
    ``split``), or the Hub's id; rows have ``question`` and ``answer``, which ends ``#### 72``. Raises
    ``UserError`` for bad rows, such as an answer without ``####``, unless ``on_bad_row="skip"``.
    Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168.
    """
    one_of("split", split, ("train", "test"))
    place = Path(source).expanduser()
    if place.is_dir():
        place = place / f"{split}.jsonl"
    elif not place.exists():
        place = source
    records, origin, sha256, where = read_table(place, split=split)
    return checked(records, origin, sha256, where, on_bad_row=on_bad_row, read=_read)


def splits(
    source: str | Path = GSM8K, *, valid_rows: int, seed: int, on_bad_row: str = "error"
) -> dict[str, Rows]:
    """GSM8K as train, valid (``valid_rows`` held out of its training rows by ``seed``) and test.

    Raises ``UserError`` as ``gsm8k`` does, and for a single file: it has no test split.
    """
    if Path(source).expanduser().is_file():
        raise UserError(
            f"{source} is one file; name the folder that holds train.jsonl and test.jsonl"
        )
    rows, test = (gsm8k(source, split=s, on_bad_row=on_bad_row) for s in ("train", "test"))
    train, valid = rows.split(valid_rows, seed)
    return {"train": train, "valid": valid, "test": test}


def _read(record: dict[str, Any]) -> Row | str:
    if faults := [found for key in ("question", "answer") if (found := fault(record, key))]:
        return "; ".join(faults)
    steps, mark, number = record["answer"].rpartition("####")
    if not mark:
        return "answer has no #### with its final number behind"
    ending = f"ANSWER: {number.strip().replace(',', '')}"
    if final_number(ending) is None:
        return f"answer has no number behind its ####, but {number.strip()!r}"
    steps = _CALCULATOR.sub("", steps).strip()
    return {"instruction": record["question"].strip(), "response": f"{steps}\n{ending}".strip()}
