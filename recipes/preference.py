"""Gemma learns which of two answers is preferred, or which are wanted: DPO or KTO, from any run.

accelerate launch recipes/dolly_qlora.py --preset laptop                  first: what it starts from
accelerate launch recipes/preference.py --run runs/dolly_qlora --data pairs.jsonl
accelerate launch recipes/preference.py --run runs/gsm8k_lora --data answers.jsonl --beta 0.05
accelerate launch recipes/preference.py --run runs/chat                   UltraFeedback, from the Hub

Rows of prompt, chosen and rejected make the chosen answer more likely than the rejected one (DPO); rows of
prompt, completion and label make wanted answers more likely and unwanted ones less (KTO). They are read by the
run's own template and tokens, and the run as it was is the reference. Through TRL, with our log-probabilities.

Hardware  two CPU cores and no GPU for Gemma 3 270M
Time      a step is two passes forward (the reference) and one back over a batch; not measured yet
Memory    `ft plan` tells it: 3.3 GiB of 2 pairs of 256 tokens in fp32 (benchmarks/README.md); fewer at once with
          --per-device-train-batch-size 2 --gradient-accumulation-steps 4, or --gradient-checkpointing
Score     not measured yet: the implicit reward on held-out rows, 50% by definition at the start
Data      a table (jsonl, json, csv, tsv, parquet) or a dataset of the Hub in TRL's preference formats: texts or
          messages, prompts of their own or whole conversations, with label for KTO; see docs/rewards.md
Source    DPO, https://arxiv.org/abs/2305.18290; KTO, https://arxiv.org/abs/2402.01306; TRL's trainers

Unlike the papers: LoRA with AdamW at a constant 2e-5 (DPO: RMSprop, 1e-6; KTO: AdamW, 5e-6; all parameters),
one pass. KTO's weights make up for unequal numbers of wanted and unwanted answers unless they are given.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, plan, runs, text
from ft.config import Amount, Count
from ft.data.preferences import answered, preferences
from ft.machine import say
from ft.rewards import drawn, guards, judges, learning, policy, preferred, start
from ft.text import Template

encode: Any = drawn.encode_preferences  # rows as ids, for `ft show` too


@dataclass(frozen=True)
class Config:
    # Start
    run: str = "runs/dolly_qlora"  # finished run whose adapter is trained on
    any_base: bool = False  # take its base as it is now, though the weights are not those of then
    model_name_or_path: str | None = None  # of that run, which fills it in
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # auto: fp32 on a CPU

    # Data
    data: str = "trl-lib/ultrafeedback_binarized"  # a file of preferences, or a dataset of the Hub
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_rows: Count | None = None  # rows drawn by seed; none: all
    max_length: Count = 1024  # tokens of a prompt with its longer answer
    length_policy: Literal["drop", "error"] = "drop"  # what happens to a longer one
    valid_rows: Count | None = None  # held out, it is judged by them; none: a tenth, at most 100

    # Learning
    learning_rate: Amount = 2e-5  # constant
    beta: Amount = 0.1  # how strongly the start holds the model
    desirable_weight: Amount | None = None  # KTO: of wanted answers; none: by their number
    undesirable_weight: Amount | None = None  # KTO: of unwanted ones; none: by their number
    per_device_train_batch_size: Count = 8  # rows of a batch, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    gradient_checkpointing: bool | None = None  # recompute activations (slower); none: if needed
    num_train_epochs: Amount = 1.0  # passes over the rows
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs

    # Guards: where one is passed the run ends
    max_kl: float = 0.5  # nats a token from the start
    min_distinct: float = 0.6  # distinct-2, as a share of the start's
    max_drift: float = 3.0  # times that answers may be longer or shorter than the start's
    watch_rows: Count = 16  # prompts whose answers are looked at
    watch_steps: Count = 20  # optimizer steps between two looks, each with a checkpoint

    # Run
    output_dir: Path = Path("runs/preference")  # adapter, card, curve and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    answer_rows: Count = 20  # held-out prompts that are answered before and after
    max_new_tokens: Count = 256  # of an answer
    seed: int = 0  # of held-out rows and order
    push_to_hub: str | None = None  # repository to publish the adapter in at the end (private)

    def check(self) -> Iterator[str]:
        if self.max_rows and self.valid_rows and self.max_rows <= self.valid_rows:
            yield f"max_rows: got {self.max_rows}, must be above valid_rows ({self.valid_rows})"


def resolved(c: Config) -> Config:
    """The settings with what the run says that they start from."""
    return dataclasses.replace(
        c, model_name_or_path=start.run_of(c.run, any_base=c.any_base).weights
    )


def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split, which the template can read. Needs no model, so `ft check` runs it in a moment."""
    found = preferences(c.data, asked=start.asks(start.run_of(c.run)), on_bad_row=c.on_bad_row)
    chosen = found.sample(c.max_rows, c.seed) if c.max_rows else found
    held = data.held_out(chosen, c.valid_rows, 100)
    train, valid = chosen.split(held, c.seed, "--valid-rows")
    template(c).turns(
        answered(train[0], ".")
    )  # a field that rows lack is found before a model loads
    return {"train": train, "valid": valid}


def template(c: Config, _: Any = None) -> Template:
    """How a row reads: as in the run that this one starts from."""
    return start.run_of(c.run).template


def trainer_of(c: Config, base: Any, learnt: drawn.Preferences, r: runs.Run) -> Any:
    """DPO for pairs, KTO for single answers with labels."""
    made: tuple[Any, ...] = (base.model, base.tokenizer, learnt.pairs)
    common: dict[str, Any] = {"run": r, "save_steps": c.watch_steps}
    if learnt.paired:
        return learning.dpo(*made, **config.pick(c, learning.dpo) | common)
    wanted, unwanted = learning.weights(learnt.pairs, c.desirable_weight, c.undesirable_weight)
    say(f"KTO: weight {wanted:.3g} of wanted answers, {unwanted:.3g} of unwanted ones")
    r.note(weights={"desirable": wanted, "undesirable": unwanted})
    common |= {"desirable_weight": wanted, "undesirable_weight": unwanted}
    return learning.kto(*made, **config.pick(c, learning.kto) | common)


def main(c: Config) -> None:
    c, begun = resolved(c), start.run_of(c.run, any_base=c.any_base)
    given = config.pick(c, plan.checked) | {"encode": encode}
    target, splits = plan.checked(c, rows, template, __file__, **given)
    t = template(c)
    learning.require_trl()
    say(machine.use_all_cores())
    machine.seed_everything(c.seed)
    base = policy.load(begun, c.precision, max_length=c.max_length)
    say("\n".join(base.notes))
    options: dict[str, Any] = {"max_length": c.max_length, "policy": c.length_policy}
    encoded: dict[str, Any]
    splits, encoded = text.encode_splits(splits, t, base.tokenizer, encode=encode, **options)
    made_of: dict[str, Any] = {"base": base, "template": t, "splits": splits, "encoded": encoded}
    planned = plan.of_run(config.to_dict(c), base, encoded["train"])
    r = runs.start(target, recipe=__file__, config=c, task=begun.task, plan=planned, **made_of)
    start.note(r, begun)
    held = [splits["valid"][i] for i in encoded["valid"].rows]
    judge = preferred.Held(
        base,
        t,
        held,
        encoded["valid"],
        beta=c.beta,
        answer_rows=c.answer_rows,
        ask=judges.ASK.get(begun.task, judges.ASKED),
        max_new_tokens=c.max_new_tokens,
    )
    watch = guards.Watch(
        r,
        base=base,
        template=t,
        judge=judge,
        guards=guards.Guards(**config.pick(c, guards.Guards)),
        lines=held[: c.watch_rows],
        max_new_tokens=c.max_new_tokens,
    )

    trainer = trainer_of(c, base, encoded["train"], r)
    learnt = learning.learn(
        trainer, run=r, watch=watch, watch_steps=c.watch_steps, resume=c.resume_from_checkpoint
    )
    r.note(training=dataclasses.asdict(learnt))
    runs.finish(r, valid=watch.comparison(), push_to_hub=c.push_to_hub)
    say(f"try it: ft {'translate' if begun.task == 'translation' else 'chat'} {r.folder}")


if __name__ == "__main__":
    config.run(main, Config, __doc__)
