"""Rounds of a run, each with its answers, adapter and figures: a stopped run goes on after the last whole one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ft.config import differences
from ft.data.rows import Row
from ft.errors import UserError
from ft.files import to_json_lines, write_json
from ft.machine import is_main, say, wait
from ft.rewards.drawn import Scored, mean, share
from ft.rewards.guards import Vitals
from ft.runs import folder as run

STATE, DONE, REPORT = "rounds.json", "round.json", "report.md"
MORE = {"rounds", "max_minutes"}  # settings of which a resumed run may have more


@dataclass(frozen=True)
class Round:
    """What one round drew, kept and learnt."""

    number: int
    prompts: int
    answers: int
    reward: float  # mean of all answers, before the round learns from them
    best: float  # mean of each prompt's best answer
    kept: int  # answers that were learnt
    share: float  # prompts of which an answer was kept
    steps: int  # optimizer steps
    vitals: Vitals  # after the round
    seconds: float  # of drawing and learning


class Rounds:
    """The rounds of a run's folder. ``done`` are those that are complete, oldest first."""

    def __init__(self, run: run.Run, *, resume: bool) -> None:
        """Begin, or with ``resume`` go on. Raises ``UserError`` where that would be another run."""
        self.run, self.place = run, run.folder / "rounds"
        self.done: list[Round] = []
        same = {key: value for key, value in run.made_with.items() if key not in MORE}
        fingerprint = json.loads(json.dumps(same))
        state = run.folder / STATE
        if resume:
            if not state.exists():
                raise UserError(f"--resume last: {run.folder} holds no rounds; start without it")
            made_with = json.loads(state.read_text(encoding="utf-8"))
            if changed := differences(made_with, fingerprint):
                raise UserError(
                    f"--resume last: the rounds in {run.folder} were made with something else:\n  "
                    + "\n  ".join(changed)
                    + "\nrestore it, or start anew in another --output-dir"
                )
            run.begin()
            while (file := self.folder(len(self.done) + 1) / DONE).exists():
                value = json.loads(file.read_text(encoding="utf-8"))
                self.done.append(Round(**{**value, "vitals": Vitals(**value["vitals"])}))
            self._tell()  # of a round that a kill may have kept from being told
        elif is_main():
            write_json(state, fingerprint)

    def folder(self, number: int) -> Path:
        """Where a round lies."""
        return self.place / str(number)

    def begin(self, number: int, scored: Sequence[Scored]) -> run.Run:
        """The folder of a round with its answers, for the training of it; what lay there is deleted."""
        folder = self.folder(number)
        if is_main():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        wait()
        made = run.Run(folder, {**self.run.record, "round": number}, self.run.held[run.CONFIG])
        made.begin()
        rows = (s.row | {"answers": s.texts, "rewards": s.rewards} for s in scored)
        made.write("answers.jsonl", to_json_lines(rows))
        return made

    def finish(
        self,
        number: int,
        scored: Sequence[Scored],
        kept: Sequence[Row],
        *,
        steps: int,
        vitals: Vitals,
        seconds: float,
    ) -> None:
        """Keep a round, and the report of all; from here on it counts."""
        found = Round(
            number=number,
            prompts=len(scored),
            answers=sum(len(s.answers) for s in scored),
            reward=mean(scored),
            best=mean(scored, best=True),
            kept=len(kept),
            share=share(scored, kept),
            steps=steps,
            vitals=vitals,
            seconds=seconds,
        )
        if is_main():
            write_json(self.folder(found.number) / DONE, asdict(found))
        self.done.append(found)
        self._tell()
        say(f"ROUND {line(found)}")

    def _tell(self) -> None:
        """Have record, report and metrics name the rounds that are complete."""
        self.run.note(rounds=[asdict(each) for each in self.done])
        self.run.write(REPORT, report(self.done))
        told = [{"step": r.number, "reward": r.reward, "kl": r.vitals.kl} for r in self.done]
        self.run.write(run.METRICS, to_json_lines(told))

    @property
    def seconds(self) -> float:
        """What the complete rounds took."""
        return sum(each.seconds for each in self.done)


def line(r: Round) -> str:
    """A round in one line."""
    return (
        f"{r.number}: reward {r.reward:.4f}, of the best {r.best:.4f}; {r.kept} of {r.answers} answers "
        f"kept, of {r.share:.0%} of {r.prompts} prompts; {r.steps} steps; {r.vitals}; {r.seconds:.0f} s"
    )


def report(rounds: Sequence[Round]) -> str:
    """All rounds as a table. Rewards are those of the model that the round began with."""
    names = [field.name for field in fields(Round) if field.name != "vitals"]
    names += [field.name for field in fields(Vitals)]
    values = [asdict(r) | asdict(r.vitals) for r in rounds]
    rows = [[f"{value[name]:.4g}" for name in names] for value in values]
    table = [names, ["---"] * len(names), *rows]
    return "# Rounds\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
