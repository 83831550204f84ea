"""Gemma learns from a reward for each of its answers: GRPO or RLOO, from a run of mtnt_lora.py or another.

accelerate launch recipes/mtnt_lora.py                                    first: what it starts from
accelerate launch recipes/mtnt_grpo.py                                    a laptop, offline
accelerate launch recipes/mtnt_grpo.py --run runs/mtnt_lora --data PATH/TO/MTNT
accelerate launch recipes/mtnt_grpo.py --method rloo --beta 0.05
accelerate launch recipes/mtnt_grpo.py --run runs/dolly_qlora --data prompts.jsonl --reward my_reward.py:function

Each step draws n translations of a few training lines; those above the mean chrF of their line become
more likely, those below it less likely. Through TRL, with our generation and log-probabilities.

Hardware  two CPU cores and no GPU for Gemma 3 270M
Time      --max-minutes (20) for drawing and learning; validations and scoring before and after come on top
Memory    3.8 GiB at the peak (fp32; `peak_memory_bytes` in run.json)
Score     MTNT test, seeds 0 and 1, one core each: chrF 41.8 -> 45.2 and 45.6, BLEU 18.6 -> 18.0 and 18.1 (benchmarks/README.md)
Data      MTNT (Michel & Neubig 2018), https://github.com/pmichel31415/mtnt; a bundled sample without --data;
          the training lines are those that mtnt_lora.py learnt, and a reward compares with their references
Source    GRPO, https://arxiv.org/abs/2402.03300; RLOO, https://arxiv.org/abs/2402.14740; TRL's trainers

Unlike the papers: GRPO here has no KL penalty (paper: 0.04; --beta sets it), a bound on KL ends the run
instead; its loss is the mean over all tokens of a step (TRL's default, of DAPO) and not a mean of means by
answer; one update for each draw, so that the ratio is 1 and nothing is clipped; 4 answers a prompt (paper:
64), rewards from chrF and not from a model; LoRA at 1e-4 (paper: all parameters, 1e-6). RLOO's gradient is
of TRL's clipped ratio, 1 here, and its advantages are not normalised; KL (--beta) is a part of its reward,
as in the paper. Both draw at temperature 1 from the whole distribution.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, plan, runs, text
from ft.config import Amount, Count
from ft.machine import say
from ft.rewards import guards, learning, policy, reward_model, start
from ft.text import Template


@dataclass(frozen=True)
class Config:
    # Start
    run: str = "runs/mtnt_lora"  # finished run whose adapter is trained on
    any_base: bool = False  # take its base as it is now, though the weights are not those of then
    model_name_or_path: str | None = None  # of that run, which fills it in
    language_pair: str | None = None  # of that run, which fills it in
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # auto: fp32 on a CPU

    # Data
    data: str | None = (
        None  # MTNT (`sample`, `release`, a folder), or a table of prompts; none: the run's
    )
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    normalize_punctuation: bool = True  # French quotes of training targets as MTNT's
    max_length: Count = 512  # tokens of a whole example

    # Learning
    reward: str = "chrf"  # to the reference; or number, a folder of `ft reward`, FILE.py:function
    method: Literal["grpo", "rloo"] = "grpo"  # what a reward is compared with: see above
    prompts: Count = 8  # lines of a step, in each process
    n: int = 4  # translations of each
    max_new_tokens: Count = 80  # of a translation
    learning_rate: Amount = 1e-4  # constant
    beta: float = 0.0  # weight of the KL to the start; above 0 a step takes a third longer
    per_device_train_batch_size: Count = 16  # translations in one forward
    gradient_checkpointing: bool | None = None  # recompute activations (slower); none: if needed
    max_steps: Count | None = None  # optimizer steps; none: until the time is over

    # Guards: where one is passed the run ends
    max_kl: float = 0.5  # nats a token from the start
    min_distinct: float = 0.6  # distinct-2, as a share of the start's
    max_drift: float = 1.5  # times that answers may be longer or shorter than the start's
    watch_rows: Count = 32  # lines whose translations are looked at
    watch_steps: Count = 10  # optimizer steps between two looks

    # Run
    output_dir: Path = Path("runs/mtnt_grpo")  # adapter, card and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    max_minutes: Amount | None = 20.0  # of drawing and learning; none: no bound
    valid_rows: Count = 50  # rows of the validation split whose loss is watched
    eval_limit: Count = 200  # rows of the validation split that are translated before and after
    seed: int = 0  # of lines, draws and order

    def check(self) -> Iterator[str]:
        if self.n < 2:
            yield f"n: got {self.n}, must be 2 or more: an answer is compared with others"
        answers, batch = self.prompts * self.n, self.per_device_train_batch_size
        if answers % batch:
            yield f"per_device_train_batch_size: got {batch}, must divide the {answers} answers of a step (prompts x n)"
        if self.max_steps is None and self.max_minutes is None:
            yield "max_steps or max_minutes must be given: nothing else ends the run"


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


def main(c: Config) -> None:
    c, begun = resolved(c), start.run_of(c.run, any_base=c.any_base)
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
    t = template(c)
    learning.require_trl()
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

    options: dict[str, Any] = config.pick(c, learning.grpo) | {"reward": reward}
    options |= {"rows": list(splits["train"]), "run": r}
    trainer = learning.grpo(base.model, base.tokenizer, t, **options)
    seconds = c.max_minutes and 60 * c.max_minutes
    learnt = learning.learn(trainer, run=r, watch=watch, watch_steps=c.watch_steps, seconds=seconds)
    r.note(training=dataclasses.asdict(learnt))
    runs.finish(r, valid=watch.comparison())


if __name__ == "__main__":
    config.run(main, Config, __doc__)
