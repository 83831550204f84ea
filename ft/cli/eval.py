"""Base against tuned: loss, scores, samples; standard benchmarks."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.cli import console
from ft.errors import UserError, one_of

if TYPE_CHECKING:
    from ft.score.comparison import Comparison

LONGEST = 256  # tokens of an answer
EXAMPLE = 2048  # tokens of an example that an adapter made elsewhere is scored on, at most
CHAINS = 16  # of thought for a question


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft eval``."""
    parser.epilog = "example: ft eval runs/mtnt_lora --data PATH/TO/MTNT"
    a = parser.add_argument
    a("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    a("--data", help="MTNT, or own pairs; a file of instructions (default: as the run's)")
    a("--quoting", default="auto", help="own csv or tsv pairs: auto, quoted or raw (default auto)")
    a("--split", default="test", help="train, valid or test (default test)")
    a("--limit", type=int, help="score only the first rows")
    a("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    a("--max-new-tokens", type=int, help=f"longest answer (default: the run's, or {LONGEST})")
    a("--json", type=Path, help="also write the result to this file")
    a("--n", type=int, help="a run of gsm8k_lora.py: chains for each question (default 16)")
    a("--reward", help="a run of gsm8k_lora.py: folder of `ft reward` that picks the best chain")
    a("--plot", type=Path, help="a run of gsm8k_lora.py: draw accuracy over n into this PNG")
    a("--tasks", help="benchmarks of lm-eval instead: gsm8k,hellaswag,… or YAML files")
    a("--num-fewshot", type=int, help="with --tasks: examples in the prompt (default: the task's)")
    a("--batch-size", type=int, help="with --tasks: prompts at a time (default 1)")
    a(
        "--language-pair",
        help="of an adapter made elsewhere whose template is a YAML file, as en-fr",
    )
    console.adapter_options(parser)


def command(
    run_folder: str,
    data: str | None,
    split: str,
    limit: int | None,
    precision: str,
    max_new_tokens: int | None,
    json: Path | None,
    n: int | None,
    reward: str | None,
    plot: Path | None,
    tasks: str | None,
    num_fewshot: int | None,
    batch_size: int | None,
    quoting: str = "auto",
    any_base: bool = False,
    model: str | None = None,
    template: str | None = None,
    language_pair: str | None = None,
) -> None:
    """Score a finished run. Raises ``UserError`` for data or options that are not of the run's kind."""
    from ft.files import check_new_file, write_json
    from ft.runs import opened

    positive = {"limit": limit, "max-new-tokens": max_new_tokens, "batch-size": batch_size, "n": n}
    for flag, value in positive.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: it must be 1 or more")
    for file in filter(None, (json, plot)):
        check_new_file(file)
    of_benchmarks = {"num-fewshot": num_fewshot, "batch-size": batch_size}
    of_data = {"data": data, "max-new-tokens": max_new_tokens, "n": n, "plot": plot}
    of_data |= {"reward": reward, "split": None if split == "test" else split}
    for flag, value in (of_data if tasks else of_benchmarks).items():
        if value is not None:
            raise UserError(f"--{flag} does not go {'with' if tasks else 'without'} --tasks")
    one_of("--quoting", quoting, ("auto", "quoted", "raw"))
    run = opened.finished(run_folder, any_base=any_base, model=model, template=template)
    if not tasks:
        _check_alone(run, data, language_pair)
    if quoting != "auto" and (run.task != "translation" or not data):
        raise UserError("--quoting is of pairs of your own, which --data names")
    if tasks:
        found = _benchmarks(run, tasks, precision, limit, num_fewshot, batch_size or 1)
    else:
        for flag, value in (("n", n), ("plot", plot), ("reward", reward)):
            if value is not None and run.task != "reasoning":
                raise UserError(
                    f"--{flag} is for a run of gsm8k_lora.py, which {run_folder} is not"
                )
        found = _split(run, data, split, limit, precision, max_new_tokens, n, reward, quoting)
    print(found.table)
    if json:
        write_json(json, found.values)
    if plot:
        from ft.runs import curves

        curves.accuracy(found.values, plot)


def _check_alone(run: Any, data: str | None, language_pair: str | None) -> None:
    """Raise ``UserError`` for what an adapter made elsewhere does not say, and no option does; note its languages."""
    from ft.models.load import context_of, load_config
    from ft.text import languages

    if not run.alone:
        if language_pair:
            raise UserError(
                f"--language-pair {language_pair}: {run.named} is a run and has its own"
            )
        return
    task = run.task  # asks for a template
    if not data:
        raise UserError(
            f"{run.named} was made elsewhere and does not say what it is judged by: give --data"
        )
    context = context_of(load_config(run.base)) or EXAMPLE
    run.settings["max_length"] = min(context, EXAMPLE)
    if task != "translation" or "language_pair" in run.settings:
        if language_pair:
            raise UserError(f"--language-pair {language_pair}: --template says what it is asked")
        return
    if not language_pair:
        raise UserError(
            f"--language-pair: {run.template.name!r} does not say from which language into which; give it as en-fr"
        )
    languages.pair(language_pair)
    run.settings["language_pair"] = language_pair


def _benchmarks(
    run: Any,
    tasks: str,
    precision: str,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> "Comparison":
    from ft.score import benchmarks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    return benchmarks.compare(
        run,
        benchmarks.tasks_of(names),
        precision=precision,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
    )


def _split(
    run: Any,
    data: str | None,
    split: str,
    limit: int | None,
    precision: str,
    max_new_tokens: int | None,
    n: int | None,
    reward: str | None,
    quoting: str,
) -> "Comparison":
    from ft.rewards import reward_model
    from ft.runs import opened
    from ft.score import instructions, reasoning, splits, translation
    from ft.text import tokens

    if run.task == "text":
        return _documents(run, data, split, limit, precision, max_new_tokens)
    if run.task == "images":
        return _seen(run, data, split, limit, precision, max_new_tokens)
    rows = splits.rows_of(run, data, split, quoting)
    if (
        run.task == "reasoning" and not data
    ):  # thousands of chains take hours: as many questions as the run
        limit = limit or run.asked["eval_limit"]
    rows = rows.head(limit) if limit else rows
    print(f"{split} {len(rows):>7,} rows  {rows.origin}")
    o = opened.load(run, precision)
    model, tokenizer = o.model, o.tokenizer
    encoded = tokens.encode_rows(
        rows,
        run.template,
        tokenizer,
        max_length=run.settings["max_length"],
        policy="truncate" if run.settings.get("length_policy") == "truncate" else "drop",
        seed_parity=run.settings.get("second_bos", False),
        supervise_thinking=run.settings.get("supervise_thinking", True),
    )
    rows, encoded = tokens.without_bad(rows, encoded)
    common: dict[str, Any] = {
        "split": split,
        "max_new_tokens": max_new_tokens or LONGEST,
        "base": o.base if run.whole else None,
    }
    scored = rows if run.task == "translation" else [rows[i] for i in encoded.rows]
    if run.task == "translation":
        judge, common["ask"] = translation, {"source": "Hello, my name is Morgane."}
        common |= {"pair": run.settings["language_pair"], "sampler": run.sampler}
    elif run.task == "reasoning":
        judge = reasoning
        common |= {key: run.asked[key] for key in ("temperature", "seed")}
        common["n"] = n or CHAINS
        common["reward"] = reward_model.load(reward, tokenizer) if reward else None
        common["max_new_tokens"] = max_new_tokens or run.asked["max_new_tokens"]
    else:
        judge, common["ask"] = instructions, {"instruction": "How can I make brownies?"}
        common["max_new_tokens"] = max_new_tokens or run.asked.get("max_new_tokens", LONGEST)
    return judge.before_after(model, tokenizer, run.template, scored, encoded.examples, **common)


def _documents(
    run: Any,
    data: str | None,
    split: str,
    limit: int | None,
    precision: str,
    max_new_tokens: int | None,
) -> "Comparison":
    """Bits per byte: of a split of the run's documents, or of all documents of other data."""
    from ft.data import texts
    from ft.runs import opened
    from ft.score import documents

    s, shared = run.settings, ("text_field", "on_bad_row")
    one_of("split", split, ("train", "valid", "test"))
    if data and split != "test":
        raise UserError(f"--split {split}: other data than the run's is scored whole; leave it out")
    if data:
        rows = texts.texts(data, **{key: s[key] for key in shared})
    else:
        options = (*shared, "test_data", "valid_rows", "test_rows", "seed", "max_rows")
        rows = texts.splits(s["data"], **{key: s[key] for key in options})[split]
    rows = rows.head(limit) if limit else rows
    print(f"{split} {len(rows):>7,} rows  {rows.origin}")
    o = opened.load(run, precision)
    common = {"base": o.base if run.whole else None, "max_length": s["max_length"]}
    most = max_new_tokens or s["max_new_tokens"]
    return documents.before_after(
        o.model, o.tokenizer, run.template, rows, **common, max_new_tokens=most, split=split
    )


def _seen(
    run: Any,
    data: str | None,
    split: str,
    limit: int | None,
    precision: str,
    max_new_tokens: int | None,
) -> "Comparison":
    """Answers about images: of a split of the run's data, or of all rows of other data."""
    from ft.data import images as image_rows
    from ft.runs import opened
    from ft.score import images

    s, options = run.settings, ("pictures", "valid_rows", "test_rows", "seed", "on_bad_row")
    if data and split != "test":
        raise UserError(f"--split {split}: other data than the run's is scored whole; leave it out")
    chosen = {key: s[key] for key in options}
    rows = image_rows.read(data) if data else image_rows.splits(s["data"], **chosen)[split]
    rows = rows.head(limit) if limit else rows
    print(f"{split} {len(rows):>7,} rows  {rows.origin}")
    o = opened.load(run, precision)
    assert o.see
    most = max_new_tokens or s["max_new_tokens"]
    return images.before_after(
        o.model, o.tokenizer, run.template, o.see, rows, max_new_tokens=most, split=split
    )
