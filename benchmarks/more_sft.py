"""The control of learning from rewards: as many minutes of plain fine-tuning, on the same references.

    python benchmarks/more_sft.py --run runs/mtnt_lora --data PATH/TO/MTNT --seed 0 --output-dir runs/more0

What a reward gains is to be weighed against what the lines' own references, which chrF compares with,
teach in the same time. The settings are those of recipes/mtnt_reject.py, of which rounds, draws and guards
have no meaning here: its start, lines, constant learning rate, examples of a step and precision, and all of its
minutes for training steps. benchmarks/rewards.py scores the folder.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from ft import config, machine, train
from ft.errors import UserError, exit_cleanly
from ft.kernels import recurrent
from ft.models import lora
from ft.rewards import policy
from ft.runs import folder, opened, record
from ft.score import likelihood
from ft.text import tokens

RECIPE = Path(__file__).parents[1] / "recipes" / "mtnt_reject.py"


def main() -> None:
    """Train until the time is over, and leave a run folder."""
    recipe, c = opened.recipe(RECIPE, sys.argv[1:])
    if c.max_minutes is None:
        raise UserError("--max-minutes none: nothing else ends this run; give it minutes")
    target = folder.check_folder(c.output_dir, c.overwrite_output_dir)
    splits, t = recipe.rows(c), recipe.template(c)
    machine.say(machine.use_all_cores())
    machine.seed_everything(c.seed)
    base = policy.load(opened.finished(c.run), c.precision, max_length=c.max_length)
    model, tokenizer = base.model, base.tokenizer
    encoded = {
        split: tokens.encode_rows(found, t, tokenizer, max_length=c.max_length)
        for split, found in splits.items()
    }
    r = record.begin(target, recipe=__file__, config_yaml=config.to_yaml(c), seed=c.seed)
    record.describe(
        r, base=base, adapter=lora.describe(model), template=t, splits=splits, encoded=encoded
    )
    packing = recurrent.packs_exactly(base.model)
    valid = encoded["valid"].examples[: c.valid_rows]
    trained = train.sft(
        model,
        tokenizer,
        encoded["train"].examples,
        run=r,
        validate=lambda: likelihood.loss(model, valid),
        learning_rate=c.learning_rate,
        lr_scheduler_type="constant",
        num_train_epochs=1000,
        per_device_train_batch_size=c.per_device_train_batch_size,
        packing=packing,
        eval_steps=10**6,
        save_steps=10**6,
        seed=c.seed,
        callbacks=[train.deadline(60 * c.max_minutes)],
    )
    policy.save(model, tokenizer, r)
    r.note(training=asdict(trained))
    record.close(r)
    machine.say(
        f"{trained.steps} steps, validation loss {trained.start_loss:.3f} -> {trained.eval_loss:.3f}"
    )


if __name__ == "__main__":
    with exit_cleanly():
        main()
