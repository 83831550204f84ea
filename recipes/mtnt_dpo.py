"""Gemma learns which of its own answers are better: pairs by a reward, then DPO, from a run of mtnt_lora.py or another.

accelerate launch recipes/mtnt_lora.py                                    first: what it starts from
accelerate launch recipes/mtnt_dpo.py                                     a laptop, offline
accelerate launch recipes/mtnt_dpo.py --run runs/mtnt_lora --data PATH/TO/MTNT
accelerate launch recipes/mtnt_dpo.py --pairs runs/mtnt_dpo/pairs.jsonl   pairs that are there already
accelerate launch recipes/mtnt_dpo.py --run runs/dolly_qlora --reward my_reward.py:function

It draws n translations of training lines, pairs the best whole one of each line by chrF with the worst,
and makes the better one more likely than the worse one by direct preference optimisation, with TRL.

Hardware  two CPU cores and no GPU for Gemma 3 270M
Time      --max-minutes (20) for drawing and learning; validations and scoring before and after come on top
Memory    3.5 to 3.9 GiB at the peak (fp32; `peak_memory_bytes` in run.json)
Score     MTNT test, seeds 0 and 1, one core each: chrF 41.8 -> 44.5 and 45.3, BLEU 18.6 -> 18.9 and 18.8, no sure gain (benchmarks/README.md)
Data      MTNT (Michel & Neubig 2018), https://github.com/pmichel31415/mtnt; a bundled sample without --data;
          the training lines are those that mtnt_lora.py learnt, and a reward compares with their references
Source    DPO, https://arxiv.org/abs/2305.18290; TRL's DPOTrainer

Unlike the paper: pairs come from chrF against a reference and not from people, best against worst of n
drawn by the start itself (the paper: two answers, labelled); the learning rate is constant, 5e-5 for
LoRA with AdamW (the paper: RMSprop, 1e-6, 150 steps of warm-up, all parameters); one pass. Like it: beta
0.1, the start as the reference, sums of log-probabilities without normalisation by length.
"""

import dataclasses
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, plan, runs, text
from ft.config import Amount, Count
from ft.data.preferences import preferences
from ft.files import to_json_lines
from ft.machine import say
from ft.rewards import drawn, guards, learning, policy, reward_model, start
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

    # Pairs
    reward: str = "chrf"  # to the reference; or number, a folder of `ft reward`, FILE.py:function
    pairs: str | None = None  # a table of source, chosen, rejected; none: draw them
    prompts: Count = 1000  # lines that translations are drawn of; fewer where their time is over
    n: int = 8  # translations of each
    max_new_tokens: Count = 80  # of a translation
    margin: float = 0.1  # reward (chrF: 0 to 1) that the two of a pair must be apart
    draw_share: float = 0.45  # of the time that goes into drawing

    # Learning
    learning_rate: Amount = 5e-5  # constant
    beta: float = 0.1  # how strongly the start holds the model
    per_device_train_batch_size: Count = 8  # pairs of a batch, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    gradient_checkpointing: bool | None = None  # recompute activations (slower); none: if needed
    num_train_epochs: Amount = 1.0  # passes over the pairs
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs

    # Guards: where one is passed the run ends
    max_kl: float = 0.5  # nats a token from the start
    min_distinct: float = 0.6  # distinct-2, as a share of the start's
    max_drift: float = 1.5  # times that answers may be longer or shorter than the start's
    watch_rows: Count = 32  # lines whose translations are looked at
    watch_steps: Count = 20  # optimizer steps between two looks

    # Run
    output_dir: Path = Path("runs/mtnt_dpo")  # adapter, card, pairs and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    max_minutes: Amount | None = 20.0  # of drawing and learning; none: no bound
    valid_rows: Count = 50  # rows of the validation split whose loss is watched
    eval_limit: Count = 200  # rows of the validation split that are translated before and after
    seed: int = 0  # of lines, draws and order

    def check(self) -> Iterator[str]:
        if self.beta <= 0:
            yield f"beta: got {self.beta}, must be above 0"
        if self.n < 2:
            yield f"n: got {self.n}, must be 2 or more: a pair has two answers"


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


def own_pairs(c: Config, run: runs.Run, base: Any, lines: list, reward: Any) -> list[drawn.Pair]:
    """Pairs of what the model itself answers to ``lines``, which the run keeps as ``pairs.jsonl``."""
    minutes = c.max_minutes and c.max_minutes * c.draw_share
    options: dict[str, Any] = config.pick(c, drawn.draw) | {"reward": reward, "minutes": minutes}
    chosen = lines[: c.prompts]
    scored = drawn.draw(base.model, base.tokenizer, template(c), chosen, **options)
    pairs, texts = drawn.pairs_of(scored, c.margin)
    run.write("pairs.jsonl", to_json_lines(texts))
    mean, best = drawn.mean(scored), drawn.mean(scored, best=True)
    say(
        f"{len(texts):,} pairs of {len(scored):,} lines; {reward.name} of all answers {mean:.4g}, of "
        f"the best of {c.n} {best:.4g}"
    )
    run.note(pairs={"rows": len(texts), "lines": len(scored), "reward": mean, "best": best})
    return pairs


def main(c: Config) -> None:
    c, begun = resolved(c), start.run_of(c.run, any_base=c.any_base)
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
    t = template(c)
    asks = {"asked": start.asks(begun), "on_bad_row": c.on_bad_row}
    given = preferences(c.pairs, **asks) if c.pairs else None
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

    begun = time.perf_counter()
    if given:
        say(f"{len(given):,} pairs, {given.origin}")
        pairs = drawn.encode_pairs(given, t, base.tokenizer)
        r.note(pairs={"rows": len(given), "origin": given.origin, "sha256": given.sha256})
    else:
        pairs = own_pairs(c, r, base, lines, reward)
    options: dict[str, Any] = config.pick(c, learning.dpo) | {"pairs": pairs, "run": r}
    trainer = learning.dpo(base.model, base.tokenizer, **options)
    left = c.max_minutes and 60 * c.max_minutes - (time.perf_counter() - begun)
    learnt = learning.learn(trainer, run=r, watch=watch, watch_steps=c.watch_steps, seconds=left)
    seconds = time.perf_counter() - begun
    r.note(training=dataclasses.asdict(learnt) | {"seconds_with_drawing": seconds})
    runs.finish(r, valid=watch.comparison())


if __name__ == "__main__":
    config.run(main, Config, __doc__)
