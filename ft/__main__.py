"""The `ft` command: look at the data, check, translate, evaluate, merge and publish a run."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ft import __version__
from ft.errors import UserError, exit_cleanly

DESCRIPTION = """\
Fine-tune Google's Gemma models. Training is a recipe; `ft` does what comes before and after:

  ft show recipes/mtnt_lora.py        what the model will see, with the supervised tokens marked
  ft check recipes/mtnt_lora.py       settings, data and output folder, in a moment
  accelerate launch recipes/mtnt_lora.py
  ft translate runs/mtnt_lora "idk what ur talking about lol"
  ft eval runs/mtnt_lora --data PATH/TO/MTNT
  ft merge runs/mtnt_lora merged/     a plain transformers model
  ft push runs/mtnt_lora --repo NAME/REPO
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(
        prog="ft", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"ft {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    a = command("show", show, "Examples with supervised tokens marked, length histogram, counts.")
    a.add_argument("recipe", type=Path, help="a recipe's file; its own flags may follow")
    a.add_argument("--examples", type=int, default=3, help="how many to print (default 3)")
    a = command(
        "check", check, "Validate a recipe's settings, data and output folder. Loads no model."
    )
    a.add_argument("recipe", type=Path, help="a recipe's file; its own flags may follow")
    for name, run, text in (
        (
            "translate",
            translate,
            "Translate text, lines of a file, or standard input, line by line.",
        ),
        ("eval", evaluate, "Base against tuned on a test split: loss, BLEU, chrF, samples."),
    ):
        a = command(name, run, text)
        a.add_argument("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
        a.add_argument("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
        a.add_argument(
            "--max-new-tokens", type=int, default=256, help="longest answer (default 256)"
        )
        if name == "translate":
            a.add_argument("text", nargs="*", help="texts; without any, standard input is read")
            a.add_argument("--file", type=Path, help="translate each line of this file")
            a.add_argument("--base", action="store_true", help="the base model's answer instead")
        else:
            a.add_argument("--data", help="folder or archive of MTNT (default: as the run's)")
            a.add_argument("--split", default="test", help="train, valid or test (default test)")
            a.add_argument("--limit", type=int, help="score only the first lines")
            a.add_argument("--json", type=Path, help="also write the result to this file")
    a = command("merge", merge, "Merge an adapter into its base and check that the logits agree.")
    a.add_argument("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    a.add_argument("out", metavar="OUT", type=Path, help="a new folder for the merged model")
    a = command("push", push, "Publish adapter, card and record of a run on the Hub.")
    a.add_argument("run_folder", metavar="RUN", type=Path, help="a run's folder")
    a.add_argument("--repo", required=True, metavar="NAME/REPO", help="model repository")
    a.add_argument("--public", action="store_true", help="a new repository is private without this")
    a.add_argument("--revision", help="branch to commit to")
    with exit_cleanly():
        options, rest = parser.parse_known_args(argv)
        if rest and options.command not in ("show", "check"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if options.command in ("show", "check"):
            options.rest = rest
        arguments = vars(options)
        del arguments["command"]
        arguments.pop("run")(**arguments)


def check(recipe: Path, rest: list[str]) -> None:
    """Settings, data and output folder of a recipe, without torch."""
    from ft import runs
    from ft.run import check_folder

    module, config = runs.recipe(recipe, rest)
    for split, rows in module.rows(config).items():
        skipped = f", {rows.skipped} skipped" if rows.skipped else ""
        print(f"{split:6}{len(rows):>7,} rows{skipped}  {rows.origin}")
    check_folder(
        config.output_dir,
        overwrite=config.overwrite_output_dir,
        resume=config.resume_from_checkpoint,
    )
    print(f"output {config.output_dir}\nok")


def show(recipe: Path, rest: list[str], examples: int) -> None:
    """What the model of a recipe will see."""
    from ft import models, runs, tokens

    module, config = runs.recipe(recipe, rest)
    tokenizer = models.load_tokenizer(config.model_name_or_path)
    template = module.template(config)
    for split, rows in module.rows(config).items():
        pairs = [template.render(row) for row in rows]
        encoded = tokens.encode(
            pairs,
            tokenizer,
            max_length=config.max_length,
            policy=getattr(config, "length_policy", "drop"),
            seed_parity=getattr(config, "second_bos", False),
        )
        print(f"\n{split}: {encoded.summary(config.max_length)}\n  {rows.origin}")
        print(tokens.histogram(encoded.lengths, config.max_length))
        if split == "train":
            for example in encoded.examples[:examples]:
                print("\n" + tokens.show(example, tokenizer, colour=sys.stdout.isatty()))


def translate(
    run_folder: str,
    precision: str,
    max_new_tokens: int,
    text: list[str],
    file: Path | None,
    base: bool,
) -> None:
    """Lines in, lines out."""
    from ft import runs
    from ft.generate import greedy

    if text and file:
        raise UserError("give texts or --file, not both")
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: {error}") from None
    else:
        lines = text or [line.rstrip("\n") for line in sys.stdin]
    wanted = [i for i, line in enumerate(lines) if line.strip()]
    if not wanted:
        raise UserError("there is nothing to translate: the input is empty")
    run = runs.finished(run_folder)
    model, tokenizer = runs.load(run, precision, tuned=not base)
    found = greedy(
        model,
        tokenizer,
        run.template,
        [{"source": lines[i]} for i in wanted],
        max_new_tokens=max_new_tokens,
        progress=len(wanted) > 8,
    )
    answers = dict(zip(wanted, found, strict=True))
    for i in range(len(lines)):  # an empty line stays one, so that lines still correspond
        print(answers.get(i, ""))


def evaluate(
    run_folder: str,
    precision: str,
    max_new_tokens: int,
    data: str | None,
    split: str,
    limit: int | None,
    json: Path | None,
) -> None:
    """Base against tuned on a split of MTNT."""
    from ft import data as rows_of
    from ft import evaluate, runs, tokens
    from ft.files import write_json

    run = runs.finished(run_folder)
    rows = rows_of.mtnt(split, run.settings["language_pair"], data or run.settings["data"])
    rows = rows.head(limit) if limit else rows
    print(f"{split} {len(rows):>7,} rows  {rows.origin}")
    model, tokenizer = runs.load(run, precision)
    pairs = [run.template.render(row) for row in rows]
    encoded = tokens.encode(
        pairs,
        tokenizer,
        max_length=run.settings["max_length"],
        seed_parity=run.settings.get("second_bos", False),
    )
    result = evaluate.before_after(
        model,
        tokenizer,
        run.template,
        rows,
        encoded.examples,
        ask={"source": "Hello, my name is Morgane."},
        base=runs.load(run, precision, tuned=False)[0] if run.whole else None,
        packing=tokens.packs_exactly(model),
        max_new_tokens=max_new_tokens,
    )
    print(evaluate.table(result, split))
    if json:
        write_json(json, result)


def merge(run_folder: str, out: Path) -> None:
    """A plain transformers model with the adapter's answers."""
    from ft import lora, runs

    run = runs.finished(run_folder)
    prompts = [run.template.prompt_for({"source": text}) for text in MERGE_PROMPTS]
    print(lora.merge(run.folder, out, base=run.settings["model_name_or_path"], prompts=prompts))


MERGE_PROMPTS = (
    "Hello, my name is Morgane.",
    "idk what ur talking about lol",
    "I can't believe it's ALREADY December!!",
    "tbh the new update is kinda trash, my phone keeps crashing :(",
)


def push(run_folder: Path, repo: str, public: bool, revision: str | None) -> None:
    """Publish a run."""
    from ft import hub

    print(hub.push(run_folder, repo, private=not public, revision=revision))


if __name__ == "__main__":
    main()
