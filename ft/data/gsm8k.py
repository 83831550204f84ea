"""GSM8K, grade-school maths with worked answers, as instructions whose answers end in ``ANSWER:`` and a number."""

import re
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

from ft.data.rows import Row, Rows, checked, fault, held_out
from ft.data.tables import read_table
from ft.errors import UserError, one_of

LONGEST = 100  # characters of a number; a model that has lost itself writes longer ones
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
    made = {"read": _read, "used": ("question", "answer")}
    return checked(records, origin, sha256, where, on_bad_row=on_bad_row, **made)


def splits(
    source: str | Path = GSM8K,
    *,
    valid_rows: int | None = None,
    seed: int,
    on_bad_row: str = "error",
) -> dict[str, Rows]:
    """GSM8K as train, valid (``valid_rows`` held out of its training rows by ``seed``; else a tenth, 100 at most) and test.

    Raises ``UserError`` as ``gsm8k`` does, and for a single file: it has no test split.
    """
    if Path(source).expanduser().is_file():
        raise UserError(
            f"{source} is one file; name the folder that holds train.jsonl and test.jsonl"
        )
    rows, test = (gsm8k(source, split=s, on_bad_row=on_bad_row) for s in ("train", "test"))
    train, valid = rows.split(held_out(rows, valid_rows, 100), seed, "--valid-rows")
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


_MARK = re.compile(r"answer\s*:|####|\\boxed\s*\{", re.IGNORECASE)
_WHOLE = r"\d{1,3}(?:[, _'’\u00a0\u202f]\d{3})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"(?P<sign>-)?\s*(?:\$|€|£)?\s*(?P<negative>-)?"
    rf"(?:(?:(?P<whole>\d+)\s+)?(?P<top>{_WHOLE})\s*/\s*(?P<bottom>{_WHOLE})"
    rf"|(?P<digits>{_WHOLE})?(?P<rest>\.\d+|,\d{{1,2}}(?!\d))(?:[eE](?P<power>[+-]?\d{{1,2}})(?!\d))?"
    rf"|(?P<plain>{_WHOLE})(?:[eE](?P<exponent>[+-]?\d{{1,2}})(?!\d))?)"
)
_LATEX = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def final_number(text: str, *, anywhere: bool = False) -> Fraction | None:
    """The number behind the last ``ANSWER:``, ``####`` or LaTeX box; none where there is no such.

    Thousands separators, currencies, units, per cent signs, fractions (``3/4``, ``1 1/2``, ``½``,
    ``\\frac``), decimal commas and bold type are read over; of ``12 * 12 = 144`` the last side counts.
    With ``anywhere``, a text without a mark answers with its last number.
    """
    text = unicodedata.normalize("NFKC", re.sub("([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", r" \1", text))
    for written, meant in (("⁄", "/"), ("−", "-"), ("{,}", ","), ("\\$", "$"), ("*", " * ")):
        text = text.replace(written, meant)
    text = _LATEX.sub(r" \1/\2", text)
    marks = list(_MARK.finditer(text))
    if marks:
        lines = text[marks[-1].end() :].strip(" *\n\t").splitlines()
        found = _NUMBER.search(lines[0].rpartition("=")[2] if lines else "")
    elif anywhere:
        found = next(iter([*_NUMBER.finditer(text)][::-1]), None)
    else:
        found = None
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found.group()) > LONGEST:
        return None
    part = found.groupdict()
    negative = part["sign"] or part["negative"]

    def whole(digits: str | None) -> int:
        return int(re.sub(r"\D", "", digits)) if digits else 0

    if part["bottom"]:
        if not (bottom := whole(part["bottom"])):
            return None
        value = whole(part["whole"]) + Fraction(whole(part["top"]), bottom)
    elif part["rest"]:
        digits = part["rest"][1:]
        value = whole(part["digits"]) + Fraction(int(digits), 10 ** len(digits))
        value *= Fraction(10) ** int(part["power"] or 0)
    else:
        value = Fraction(whole(part["plain"])) * Fraction(10) ** int(part["exponent"] or 0)
    return -value if negative else value
