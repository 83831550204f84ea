"""The rows that a run is judged by: a split of its own data, or other data of its kind."""

from typing import TYPE_CHECKING, Any

from ft.errors import UserError, one_of

if TYPE_CHECKING:
    from ft.data.rows import Rows
    from ft.runs.opened import Finished

SPLITS = ("train", "valid", "test")


def rows_of(run: "Finished", data: str | None, split: str, quoting: Any = "auto") -> "Rows":
    """The rows of a run that answers prompts; ``quoting`` is of pairs in ``data``.

    Raises ``UserError`` for data that is not there or not of the run's kind.
    """
    from ft.data import gsm8k
    from ft.data.instructions import instructions as open_instructions
    from ft.data.instructions import splits

    s = run.asked  # a run that went on from another is judged as that one
    one_of("split", split, SPLITS)
    if run.task == "translation":
        return _pairs(run, data, split, quoting)
    if data and split != "test":
        raise UserError(f"--split {split}: other data than the run's is scored whole; leave it out")
    if run.task == "reasoning":
        if data:
            return gsm8k.gsm8k(data, split="test")
        chosen = {key: s[key] for key in ("valid_rows", "seed", "on_bad_row")}
        return gsm8k.splits(s["data"], **chosen)[split]
    if data:
        return open_instructions(data)
    options = ("categories", "no_context", "drop_duplicates", "valid_rows", "test_rows", "seed")
    chosen = {key: s[key] for key in (*options, "on_bad_row")}
    return splits(s["data"], **chosen, max_rows=s.get("max_rows"))[split]


def _pairs(run: "Finished", data: str | None, split: str, quoting: Any) -> "Rows":
    """Pairs in the run's direction: a split of its own data, or other data. None may hold its stop strings."""
    from ft.data import translation

    s = run.settings
    if data:
        rows = translation.translation_split(split, data, s["language_pair"], quoting=quoting)
    else:
        names = (
            "data",
            "language_pair",
            "valid_data",
            "test_data",
            "quoting",
            "on_bad_row",
            "seed",
            "max_rows",
        )
        chosen = {key: s[key] for key in names if key in s}
        rows = translation.translation_splits((split,), **chosen)[split]
    if "\n" in run.template.stop and (broken := [r for r in rows if "\n" in r["target"]]) and data:
        raise UserError(
            f"{rows.origin}: {len(broken)} translations have line breaks, at which this run's answers end, "
            f"the first is {broken[0]['target']!r}; leave them out, or train on such pairs"
        )
    return rows
