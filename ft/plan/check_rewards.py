"""What pays the answers of a run that learns from rewards: whether it tells answers apart, and what guards it."""

from collections.abc import Sequence

from ft.data.rows import Row
from ft.plan.case import Case, Seen
from ft.score import own

TRIED = 8  # rows whose answers are paid


def rewards(case: Case) -> Seen | None:
    """The reward of answers to some rows, and what stops a run that goes bad all the same."""
    given = case.settings
    if "max_kl" not in given:
        return None
    often = f"every {given['watch_steps']} steps" if "watch_steps" in given else "each round"
    guards = (
        f"stops beyond {given['max_kl']:g} nats a token from its start, or where answers repeat, grow or "
        f"shrink too far; looked at {often}, on fresh answers"
    )
    if "reward" not in given:
        return Seen("ok", "rewards", guards)
    status, paid = "ok", f"{given['reward']} is a model, which is not asked here"
    reward = own.without_model(given["reward"])
    if reward and not case.sample:
        status, paid = "--", f"{reward.name} is not asked: there are no rows"
    elif reward and case.sample:
        texts, rows = _answers(case.sample["train"][:TRIED])
        values = reward.values(texts, rows)
        paid = f"{reward.name} is {min(values):.3g} to {max(values):.3g} for {len(values)} answers tried"
        if len({*values}) == 1:
            status = "WARN"
            paid = (
                f"{reward.name} is {values[0]:g} for all {len(values)} answers tried, references among them: "
                "nothing is learnt where every answer is paid alike, and a step of such ends the run"
            )
    return Seen(status, "rewards", f"{paid}; {guards}")


def _answers(rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """Answers to rows, and the row of each: its own reference, that of the next row, and next to nothing."""
    found = [str(row.get("target") or row.get("response") or "An answer.") for row in rows]
    tried = ((found[i], found[(i + 1) % len(found)], ".") for i in range(len(rows)))
    pairs = [(text, row) for row, texts in zip(rows, tried, strict=True) for text in texts]
    return [text for text, _ in pairs], [row for _, row in pairs]
