"""Gemma learns from its own best answers: rejection sampling in rounds, from a run of mtnt_lora.py or another.

accelerate launch recipes/mtnt_lora.py                                    first: what it starts from
accelerate launch recipes/mtnt_reject.py                                  a laptop, offline
accelerate launch recipes/mtnt_reject.py --run runs/mtnt_lora --data PATH/TO/MTNT
accelerate launch recipes/mtnt_reject.py --run runs/dolly_qlora --data prompts.jsonl --reward my_reward.py:function

Each round draws n translations of some training lines, keeps the one of each line with the highest
chrF, takes one pass over these, and begins again with the model so taught.

Hardware  two CPU cores and no GPU for Gemma 3 270M
Time      --max-minutes (20) for drawing and learning; validations and scoring before and after come on top
Memory    3.0 GiB at the peak (fp32; `peak_memory_bytes` in run.json)
Score     MTNT test, seeds 0 and 1, one core each: chrF 41.8 -> 44.8 and 45.0, BLEU 18.6 -> 19.5 and 20.1 (benchmarks/README.md)
Data      MTNT (Michel & Neubig 2018), https://github.com/pmichel31415/mtnt; a bundled sample without --data;
          the training lines are those that mtnt_lora.py learnt, and a reward compares with their references
Source    F. Chollet, Deep Learning with Python, third edition (the loop); RAFT, https://arxiv.org/abs/2304.06767;
          ReST, https://arxiv.org/abs/2308.08998

Unlike RAFT and ReST: the reward is chrF against the reference translation and not a model; RAFT fine-tunes
the base anew or goes on from the last round, here it always goes on, with a new optimizer each round;
ReST raises its cutoff within a round over several passes, here there is one pass; no KL penalty, but a
bound on KL, distinct-2 and length that ends the run.
"""

import dataclasses
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, plan, runs, text, train
from ft.config import Amount, Count
from ft.machine import say
from ft.rewards import drawn, guards, policy, reward_model, start
from ft.rewards.rounds import Rounds
from ft.text import Template, tokens


@dataclass(frozen=True)
class Config:
    # Start
    run: str = "runs/mtnt_lora"  # finished run whose adapter is trained on
    any_base: bool = False  # take its base as it is now, though the weights are not those of then
    model_name_or_path: str | None = None  # of that run, which fills it in
    language_pair: str | None = None  # of that run, which fills it in
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # auto: fp32 on a CPU

    # Data
    data: str | None = None  # MTNT, as for mtnt_lora, or a table of prompts; none: the run's
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    normalize_punctuation: bool = True  # French quotes of training targets as MTNT's
    max_length: Count = 512  # tokens of a whole example

    # Drawing
    reward: str = "chrf"  # to the reference; or number, a folder of `ft reward`, FILE.py:function
    rounds: Count = 3  # times that answers are drawn and learnt
    prompts: Count = 400  # lines of a round; fewer where its time is over
    n: int = 8  # translations of each
    max_new_tokens: Count = 80  # of a translation
    cutoff: float | None = None  # keep all with this reward (chrF: 0 to 1); none: each line's best
    draw_share: float = 0.7  # of a round's time that goes into drawing

    # Learning
    learning_rate: Amount = 1e-4  # constant
    per_device_train_batch_size: Count = 8  # examples of an optimizer step, in each process
    gradient_checkpointing: bool | None = None  # recompute activations (slower); none: if needed

    # Guards: where one is passed the run ends
    max_kl: float = 0.5  # nats a token from the start
    min_distinct: float = 0.6  # distinct-2, as a share of the start's
    max_drift: float = 1.5  # times that answers may be longer or shorter than the start's
    watch_rows: Count = 32  # lines whose translations are looked at
    min_kept: float = 0.1  # share of a round's lines of which a translation is kept

    # Run
    output_dir: Path = Path("runs/mtnt_reject")  # adapter, card, rounds and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`: go on after the last whole round
    max_minutes: Amount | None = 20.0  # of drawing and learning; none: no bound
    valid_rows: Count = 50  # rows of the validation split whose loss is watched
    eval_limit: Count = 200  # rows of the validation split that are translated before and after
    seed: int = 0  # of lines, draws and order

    def check(self) -> Iterator[str]:
        if self.n < 2:
            yield f"n: got {self.n}, must be 2 or more: the best of one is no choice"
        if self.resume_from_checkpoint not in (None, "last"):
            yield "resume_from_checkpoint must be `last`"


def resolved(c: Config) -> Config:
    """The settings with what the run says that they start from."""
    s = start.run_of(c.run).asked
    return dataclasses.replace(
        c,
        model_name_or_path=start.run_of(c.run, any_base=c.any_base).weights,
        language_pair=s.get("language_pair"),
        data=c.data or s.get("data"),
    )


def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split. Needs no model, so `ft check` runs it in a moment."""
    options: dict[str, Any] = config.pick(c, start.rows) | {"normalize": c.normalize_punctuation}
    return start.rows(start.run_of(c.run), c.data, **options)


def template(c: Config, _: Any = None) -> Template:
    """How a row reads: as in the run that this one starts from."""
    return start.run_of(c.run).template


def answers(
    c: Config, number: int, base: Any, lines: Sequence, reward: Any, minutes: float | None
) -> list[drawn.Scored]:
    """What the model answers in a round to the next lines, which begin anew where they are over."""
    first = (number - 1) * c.prompts
    chosen = [lines[i % len(lines)] for i in range(first, first + min(c.prompts, len(lines)))]
    now = {"reward": reward, "seed": 1000 * c.seed + number, "minutes": minutes}
    options: dict[str, Any] = config.pick(c, drawn.draw) | now
    return drawn.draw(base.model, base.tokenizer, template(c), chosen, **options)


def main(c: Config) -> None:
    c, begun = resolved(c), start.run_of(c.run, any_base=c.any_base)
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
    t = template(c)
    say(machine.use_all_cores())
    machine.seed_everything(c.seed)
    base = policy.load(begun, c.precision, max_length=c.max_length)
    say("\n".join(base.notes))
    reward = reward_model.named(c.reward, base.tokenizer)
    splits, encoded = text.encode_splits(
        splits, t, base.tokenizer, max_length=c.max_length, encode=start.encode
    )
    made_of: dict[str, Any] = {"base": base, "template": t, "splits": splits, "encoded": encoded}
    how: dict[str, Any] = made_of | {"task": begun.task, "examples": False}
    how["plan"] = plan.of_run(config.to_dict(c), base, encoded["train"])
    r = runs.start(target, recipe=__file__, config=c, **how)
    start.note(r, begun, c.data, reward)
    state = Rounds(r, resume=c.resume_from_checkpoint is not None)
    lines = random.Random(c.seed).sample(list(splits["train"]), len(splits["train"]))
    judge = start.judge(begun, reward, c.valid_rows, c.max_new_tokens, **made_of)
    watch = guards.Watch(
        r,
        base=base,
        template=t,
        judge=judge,
        guards=guards.Guards(**config.pick(c, guards.Guards)),
        lines=lines[-c.watch_rows :],
        max_new_tokens=c.max_new_tokens,
    )
    if state.done:
        policy.replace_adapter(base.model, state.folder(state.done[-1].number))
    for number in range(len(state.done) + 1, c.rounds + 1):
        where, begun = f"in round {number}", time.perf_counter()
        minutes = c.max_minutes and c.max_minutes / c.rounds
        scored = answers(c, number, base, lines, reward, minutes and minutes * c.draw_share)
        kept = drawn.best(scored, c.cutoff)
        watch.guards.check_kept(drawn.share(scored, kept), where)
        left = minutes and 60 * minutes - (time.perf_counter() - begun)
        trained = train.sft(
            base.model,
            base.tokenizer,
            tokens.encode_rows(kept, t, base.tokenizer, max_length=c.max_length).examples,
            run=state.begin(number, scored),
            validate=judge.loss,
            learning_rate=c.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=c.per_device_train_batch_size,
            gradient_checkpointing=c.gradient_checkpointing,
            eval_steps=10**6,
            accept_loss=True,  # whatever it is: a run began from it
            seed=c.seed + number,
            callbacks=[train.deadline(left)] if left else [],
        )
        vitals = watch.look()
        watch.keep(vitals, where)
        took = {"steps": trained.steps, "seconds": time.perf_counter() - begun}
        state.finish(number, scored, kept, vitals=vitals, **took)

    r.note(training={"steps": sum(each.steps for each in state.done), "seconds": state.seconds})
    runs.finish(r, valid=watch.comparison())


if __name__ == "__main__":
    config.run(main, Config, __doc__)
