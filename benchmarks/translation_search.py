"""What else a translation run might learn with: one variant of `recipes/mtnt_lora.py`, judged on two sources.

    python benchmarks/translation_search.py --label base --out search.jsonl --also PATH/TO/MTNT
    python benchmarks/translation_search.py --label dropout --lora-dropout 0.05 --out search.jsonl --also …
    python benchmarks/translation_search.py --label all --whole true --learning-rate 3e-5 --max-steps 84 --out …

Takes the recipe's settings and those under "Variant", trains on the recipe's rows and judges on all of its
validation rows and on the first `--also-rows` pairs of another source: loss, and chrF and BLEU of greedy
answers. The test split is not read. A line of JSON for each variant goes to the end of `--out`.
"""

import json
import math
import random
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ft import config, data, machine, models, runs, score, text, train
from ft.config import Amount, Count
from ft.errors import UserError
from ft.runs import record
from ft.train import optim
from recipes import mtnt_lora

SLANG = {"you": "u", "your": "ur", "are": "r", "because": "cuz", "though": "tho", "please": "plz"} | {
    "people": "ppl", "going to": "gonna", "want to": "wanna", "I don't know": "idk", "really": "rly"
}  # fmt: skip
EMOJI = ("😂", "🙄", ":)", "lol", "!!", "😭")


@dataclass(frozen=True)
class Config(mtnt_lora.Config):
    # Variant
    label: str = "base"  # what it is called in the output
    lora_dropout: float = 0.0  # of what enters the adapters
    weight_decay: Amount = 0.0  # of the trained matrices
    neftune_noise_alpha: Amount = 0.0  # noise on embeddings, https://arxiv.org/abs/2310.05914
    loraplus_lr_ratio: float = 1.0  # B's rate over A's, https://arxiv.org/abs/2402.12354
    ema_decay: float = 0.0  # of an average of the trained weights that is judged in their place
    source_noise: float = (
        0.0  # share of training sources that typos, slang, capitals and emoji are put in
    )
    length_ordered: bool = False  # short pairs first
    extra_by_likeness: bool = False  # extra rows: those most like valid's, by letters, not drawn
    shots: int = 0  # pairs of the training rows that stand in front of every prompt
    whole: bool = False  # all parameters but the embeddings train, no adapter

    # Judges
    also: str | None = (
        None  # pairs of another source, as `--data` takes them; their validation rows
    )
    also_rows: Count = 100  # of them, the first
    answers: bool = True  # scored, too: as long again as the training; else losses alone
    out: Path | None = None  # a line of JSON is added to it

    def check(self) -> Iterator[str]:
        if self.whole and (self.lora_dropout or self.loraplus_lr_ratio != 1):
            yield "whole trains no adapter: leave lora_dropout and loraplus_lr_ratio out"
        if self.extra_by_likeness and not (self.extra_data and self.extra_rows):
            yield "extra_by_likeness chooses among extra rows: give extra_data and extra_rows"


def noisy(source: str, draw: random.Random) -> str:
    """``source`` as someone types it in a hurry: slang, then letters lost or swapped, capitals, a face."""
    for proper, short in SLANG.items():
        if draw.random() < 0.5:
            source = source.replace(f" {proper} ", f" {short} ")
    letters = list(source)
    for at in range(1, len(letters) - 2):
        if letters[at] in string.ascii_letters and draw.random() < 0.02:
            swap = draw.random() < 0.5
            letters[at : at + 2] = (letters[at + 1], letters[at]) if swap else ("", letters[at + 1])
    source = "".join(letters)
    how = draw.random()
    if how < 0.3:
        source = source.lower()
    elif how < 0.35:
        source = source.upper()
    return source + (f" {draw.choice(EMOJI)}" if draw.random() < 0.1 else "")


def likest(rows: list[dict[str, str]], like: list[str], count: int) -> list[dict[str, str]]:
    """The ``count`` rows whose sources share most with ``like``: cosine of counts of three letters."""

    def grams(text: str) -> Counter[str]:
        return Counter(text[at : at + 3] for at in range(len(text) - 2))

    centre = grams("\n".join(like))

    def likeness(row: dict[str, str]) -> float:
        own = grams(row["source"])
        length = math.sqrt(sum(n * n for n in own.values())) or 1.0
        return sum(n * centre[gram] for gram, n in own.items()) / length

    return sorted(rows, key=likeness, reverse=True)[:count]


def with_shots(template: Any, rows: list[dict[str, str]]) -> Any:
    """The template with ``rows`` and their translations in front of each prompt."""
    shown = "".join(f"{template.prompt_for(row)}{row['target']}\n\n" for row in rows)
    shown = shown.replace("{", "{{").replace("}", "}}")
    return replace(template, prompt=shown + template.prompt)


def neftune(model: Any, alpha: float) -> None:
    """Add noise to embeddings while training; by the length of a typical example, as rows are packed."""
    import torch

    def add(module: Any, _: Any, out: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return out
        return out + torch.empty_like(out).uniform_(-1, 1) * alpha / (50 * out.shape[-1]) ** 0.5

    model.get_input_embeddings().register_forward_hook(add)


def lora_plus(ratio: float) -> Callable[..., Any]:
    """In place of ``optim.create``: AdamW whose rate of B is ``ratio`` times that of A."""
    import torch

    def create(model: Any, _: str, *, learning_rate: float, weight_decay: float, **__: Any) -> Any:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        rates = {"lora_A": learning_rate, "lora_B": ratio * learning_rate}
        groups = [
            {"params": [p for name, p in named if part in name], "lr": rate}
            for part, rate in rates.items()
        ]
        return torch.optim.AdamW(groups, weight_decay=weight_decay)

    return create


def average(model: Any, decay: float) -> Any:
    """A callback that keeps an average of what trains, and puts it in its place at the end."""
    from transformers.trainer_callback import TrainerCallback

    trained = [p for p in model.parameters() if p.requires_grad]
    means = [p.detach().clone() for p in trained]

    class Average(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            for mean, p in zip(means, trained, strict=True):
                mean.lerp_(p.detach(), 1 - decay)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            for mean, p in zip(means, trained, strict=True):
                p.data.copy_(mean)

    return Average()


def judge(
    model: Any, tokenizer: Any, template: Any, rows: list[Any], *, length: int, answers: bool
) -> dict[str, Any]:
    """Loss, and the scores of greedy answers where they are wanted, on ``rows``."""
    _, encoded = text.encode_splits(
        {"valid": data.Rows(rows, "", "")}, template, tokenizer, max_length=length
    )
    seen = {"loss": round(score.loss(model, encoded["valid"].examples), 4)}
    if not answers:
        return seen
    found = score.translation.translate(model, tokenizer, template, rows)
    scores = score.translation.scores({"x": found}, [row["target"] for row in rows])["x"]
    return seen | {
        "chrf": round(scores["chrf"]["score"], 2),
        "bleu": round(scores["bleu"]["score"], 2),
        "loops": scores["loops"],
    }


def main(c: Config) -> None:
    """Train the variant and judge it."""
    c = replace(c, output_dir=c.output_dir.with_name(f"search_{c.label}"), eval_limit=None)
    target = runs.check_folder(c.output_dir, overwrite=True)
    splits = data.translation_splits(("train", "valid"), **config.pick(c, data.translation_splits))
    if c.extra_by_likeness:
        own = config.pick(replace(c, extra_data=None), data.translation_splits)
        first = len(data.translation_splits(("train",), **own)["train"])
        every = replace(c, extra_rows=None)
        more = data.translation_splits(("train",), **config.pick(every, data.translation_splits))
        train_rows = list(more["train"])
        like = [row["source"] for row in splits["valid"]]
        chosen = likest(train_rows[first:], like, c.extra_rows or 0)
        splits["train"] = replace(splits["train"], rows=train_rows[:first] + chosen)
    judges = {"valid": splits["valid"]}
    if c.also:
        other = data.translation_splits(("valid",), c.also, c.language_pair)["valid"]
        judges["also"] = other.head(c.also_rows)
        if both := data.overlap(judges["also"], splits["train"]):
            raise UserError(f"{c.also}: {len(both)} of its first {c.also_rows} rows are trained on")
    draw = random.Random(c.seed)
    rows = [
        row | {"source": noisy(row["source"], draw)} if draw.random() < c.source_noise else row
        for row in splits["train"]
    ]
    splits["train"] = replace(splits["train"], rows=rows)
    splits["valid"] = splits["valid"].head(40)
    t = with_shots(mtnt_lora.template(c), list(splits["train"])[: c.shots])
    print(machine.use_all_cores())
    loaded = replace(c, precision="fp32") if c.whole else c
    base = models.load(c.model_name_or_path, **config.pick(loaded, models.load))
    machine.seed_everything(c.seed)
    if c.whole:
        model = models.train_all(base)
        model.get_input_embeddings().weight.requires_grad_(False)
    else:
        model = models.attach_lora(
            base,
            r=c.lora_r,
            alpha=c.lora_alpha,
            dropout=c.lora_dropout,
            targets=c.lora_target_modules,
            variant=c.lora_variant,
        )
    if c.neftune_noise_alpha:
        neftune(model, c.neftune_noise_alpha)
    if c.loraplus_lr_ratio != 1:
        optim.create = lora_plus(c.loraplus_lr_ratio)
    callbacks = [average(model, c.ema_decay)] if c.ema_decay else []
    splits, encoded = text.encode_splits(splits, t, base.tokenizer, max_length=c.max_length)
    examples = encoded["train"].examples
    if c.length_ordered:
        examples = sorted(examples, key=lambda e: len(e["input_ids"]))
    r = record.begin(target, recipe=__file__, config_yaml=config.to_yaml(c), seed=c.seed)
    start = time.process_time()
    trained = train.sft(
        model,
        base.tokenizer,
        examples,
        run=r,
        validate=lambda: score.loss(model, encoded["valid"].examples),
        warmup_ratio=0.05,
        shuffle=not c.length_ordered,
        callbacks=callbacks,
        **config.pick(replace(c, keep="last"), train.sft),
    )
    cpu = time.process_time() - start
    found: dict[str, Any] = {"label": c.label, "steps": trained.steps, "cpu_seconds": round(cpu)}
    model.eval()
    for which, judged in judges.items():
        found[which] = judge(
            model, base.tokenizer, t, list(judged), length=c.max_length, answers=c.answers
        )
    print(json.dumps(found))
    if c.out:
        with open(c.out, "a") as out:
            out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    config.run(main, Config, __doc__)
