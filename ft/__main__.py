"""The `ft` command: look at the data, check, translate, evaluate, merge and publish a run."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ft import __version__
from ft.errors import UserError, exit_cleanly

DESCRIPTION = """\
Fine-tune Google's Gemma models. Training is a recipe; `ft` does what comes before and after:

  ft show recipes/mtnt_lora.py        what the model will see, with the supervised tokens marked
  ft check recipes/mtnt_lora.py       settings, data and output folder, in a moment
  ft plan recipes/dolly_qlora.py --gpu 24GB     its memory and time, and what fits
  accelerate launch recipes/mtnt_lora.py
  ft translate runs/mtnt_lora "idk what ur talking about lol"
  ft eval runs/mtnt_lora --data PATH/TO/MTNT
  ft eval runs/gsm8k_lora --tasks gsm8k,hellaswag     standard benchmarks, by lm-eval
  ft solve runs/gsm8k_lora "A pen costs 3 dollars. How much do 12 cost?"    vote among chains
  ft chat runs/mtnt_lora              questions and answers; /base asks the base model too
  ft serve runs/mtnt_lora             the same over HTTP, for OpenAI's clients
  ft merge runs/mtnt_lora merged/     a plain transformers model
  ft export runs/mtnt_lora mtnt.gguf  one file for llama.cpp, Ollama and LM Studio
  ft generate embedded "Once upon a time" --sampler top-k --k 5 --temperature 0.5 --n 4
  ft score runs/mtnt_lora --text "ça marche" --prompt "It works: "
  ft samplers "The capital of France is"    what each sampler keeps, as a picture
  ft summary embedded                       modules, attention, positions, sizes
  ft push runs/mtnt_lora --repo NAME/REPO
  ft reward PAIRS --run RUN --out DIR a reward model, learnt from pairs
  ft tokenizer train CORPUS --out DIR a SentencePiece tokenizer, to pretrain with
"""

# commands that are modules of their own: `arguments(parser)` names the options that `command(...)` takes
MODULES: dict[str, tuple[str, str]] = {
    "eval": ("cli.eval", "Base against tuned: loss, scores, samples; standard benchmarks."),
    "solve": ("cli.solve", "Draw chains of thought for a question and let them vote."),
    "merge": ("runs.merge", "Merge an adapter into its base and check that the logits agree."),
    "export": ("cli.export", "Write a run or a model as one GGUF file, for llama.cpp."),
    "chat": ("chat.session", "Talk with a run or a model."),
    "serve": ("cli.serve", "Serve a run over HTTP, as OpenAI's clients expect it."),
    "plan": ("cli.plan", "Memory and time of a run, before anything is loaded or downloaded."),
    "reward": ("cli.reward", "Train a reward model on pairs of a better and a worse answer."),
    "tokenizer": ("cli.tokenizer", "Train a tokenizer on a corpus."),
    "generate": ("cli.generate", "Write on from a prompt, by any sampler."),
    "score": ("cli.score", "Show how likely a model finds a text, token by token."),
    "samplers": ("cli.samplers", "Draw what each sampler keeps of a model's next tokens."),
    "summary": ("cli.summary", "Show what a model is made of, without loading weights."),
}
TAKE_RECIPE_FLAGS = ("show", "check", "plan")


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
    a = command("translate", translate, "Translate text, lines of a file, or standard input.")
    a.add_argument("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    a.add_argument("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    a.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    a.add_argument("text", nargs="*", help="texts; without any, standard input is read")
    a.add_argument("--file", type=Path, help="translate each line of this file")
    a.add_argument("--base", action="store_true", help="the base model's answer instead")
    a = command("push", push, "Publish adapter, card and record of a run on the Hub.")
    a.add_argument("run_folder", metavar="RUN", type=Path, help="a run's folder")
    a.add_argument("--repo", required=True, metavar="NAME/REPO", help="model repository")
    a.add_argument("--public", action="store_true", help="a new repository is private without this")
    a.add_argument("--revision", help="branch to commit to")
    words = list(sys.argv[1:] if argv is None else argv)
    for name, (module, text) in MODULES.items():
        parser_of = command(name, _nothing, text)
        if words[:1] == [name]:  # the others need not be imported
            part = importlib.import_module(f"ft.{module}")
            part.arguments(parser_of)
            parser_of.set_defaults(run=part.command)
    with exit_cleanly():
        options, rest = parser.parse_known_args(argv)
        if options.command in TAKE_RECIPE_FLAGS:
            options.rest = rest
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments = vars(options)
        del arguments["command"]
        arguments.pop("run")(**arguments)


def _nothing() -> None:
    """Stands for a command whose module is not imported, as another one was asked for."""


def check(recipe: Path, rest: list[str]) -> None:
    """Settings, data and output folder of a recipe, without torch."""
    from ft.runs import opened
    from ft.runs.folder import check_folder

    module, config = opened.recipe(recipe, rest)
    for split, rows in module.rows(config).items():
        skipped = f", {rows.skipped} skipped" if rows.skipped else ""
        print(f"{split:6}{len(rows):>7,} rows{skipped}  {rows.origin}")
    check_folder(
        config.output_dir,
        overwrite=config.overwrite_output_dir,
        resume=getattr(config, "resume_from_checkpoint", None),
    )
    print(f"output {config.output_dir}\nok")


def show(recipe: Path, rest: list[str], examples: int) -> None:
    """What the model of a recipe will see."""
    from ft.models import vision
    from ft.models.load import load_tokenizer
    from ft.runs import opened
    from ft.text import tokens

    module, config = opened.recipe(recipe, rest, pairs=True)
    sees = hasattr(config, "train_vision")
    see = vision.reader(config.model_name_or_path) if sees else None
    tokenizer = load_tokenizer(config.model_name_or_path)
    template = module.template(config, tokenizer)
    for split, rows in module.rows(config).items():
        options: dict = {"max_length": config.max_length}
        options["policy"] = getattr(config, "length_policy", "drop")
        if see:
            encoded = vision.encode(rows, template, tokenizer, see, **options)
        else:
            options["seed_parity"] = getattr(config, "second_bos", False)
            encoded = tokens.encode_rows(rows, template, tokenizer, **options)
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
    from ft.generate.answers import greedy
    from ft.runs import opened

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
    run = opened.finished(run_folder)
    model, tokenizer = opened.load(run, precision, tuned=not base)
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


def push(run_folder: Path, repo: str, public: bool, revision: str | None) -> None:
    """Publish a run."""
    from ft.runs import hub

    print(hub.push(run_folder, repo, private=not public, revision=revision))


if __name__ == "__main__":
    main()
