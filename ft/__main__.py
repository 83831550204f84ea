"""The `ft` command: which verbs there are, and the one that is meant."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

from ft import __version__
from ft.errors import UserError, exit_cleanly

# verb -> what it does, the first sentence of its file in ft/cli/, which is imported when it is asked for
VERBS: dict[str, dict[str, str]] = {
    "train": {
        "recipes": "List the recipes that come along, or copy one here to change it.",
        "run": "Train by a recipe, with its own flags; `accelerate launch` where several GPUs train together.",
    },
    "before training": {
        "show": "Examples with supervised tokens marked, length histogram, counts.",
        "check": "Prove a run before any money is spent: settings, packages, Hub, data, tokens, memory.",
        "plan": "Memory and time of a run, before anything is loaded or downloaded.",
        "tokenizer": "Train a tokenizer on a corpus.",
        "reward": "Train a reward model on pairs of a better and a worse answer.",
    },
    "use": {
        "translate": "Translate text, lines of a file, or standard input.",
        "chat": "Talk with a run or a model.",
        "serve": "Serve a run over HTTP, as OpenAI's clients expect it.",
        "solve": "Draw chains of thought for a question and let them vote.",
        "generate": "Write on from a prompt, by any sampler.",
    },
    "measure": {
        "eval": "Base against tuned: loss, scores, samples; standard benchmarks.",
        "score": "Show how likely a model finds a text, token by token.",
        "samplers": "Draw what each sampler keeps of a model's next tokens.",
        "summary": "Show what a model is made of, without loading weights.",
        "report": "Make a run's page again, or one that compares several runs.",
    },
    "share": {
        "merge": "Merge an adapter into its base and check that the logits agree.",
        "export": "Write a run or a model as one GGUF file, for llama.cpp.",
        "push": "Publish adapter, card and record of a run on the Hub.",
    },
}
DESCRIPTION = """\
Fine-tune Google's Gemma models. Training is a recipe; `ft` does what comes before and after:

  ft check mtnt_lora
  ft run mtnt_lora           (in a clone: accelerate launch recipes/mtnt_lora.py)
  ft translate runs/mtnt_lora "idk what ur talking about lol"

"""
TAKE_RECIPE_FLAGS = ("show", "check", "plan", "run")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    listed = [
        f"{group}:\n" + "".join(f"  {verb:<11}{line}\n" for verb, line in verbs.items())
        for group, verbs in VERBS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="ft",
        usage="ft [-h] [--version] COMMAND ...",
        description=DESCRIPTION + "\n".join(listed),
        epilog="`ft COMMAND --help` tells a command's options, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ft {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="ft", help="one of those above"
    )
    words = list(sys.argv[1:] if argv is None else argv)
    for verb, line in (pair for verbs in VERBS.values() for pair in verbs.items()):
        # `run` has a --help of its own, which may be a recipe's
        its = commands.add_parser(verb, description=line, add_help=verb != "run")
        if words[:1] == [verb]:  # the others need not be imported
            module = importlib.import_module(f"ft.cli.{verb}")
            module.arguments(its)
            its.set_defaults(run=module.command)
    with exit_cleanly():
        _check_words(words)
        options, rest = parser.parse_known_args(argv)
        if options.command in TAKE_RECIPE_FLAGS:
            options.rest = rest
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments = vars(options)
        del arguments["command"]
        arguments.pop("run")(**arguments)


def _check_words(words: Sequence[str]) -> None:
    """Raise ``UserError`` for a word that no tokenizer reads: its bytes are not of the locale, and it is no file."""
    for word in words:
        if not word.isascii() and re.search("[\ud800-\udfff]", word) and not os.path.exists(word):
            raise UserError(
                f"command line: {word.encode(errors='surrogateescape')!r} is not {sys.getfilesystemencoding()}; write "
                "it so, or set LANG to a locale of UTF-8"
            )


if __name__ == "__main__":
    main()
