"""Show what a model is made of, without loading weights."""

import argparse

from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft summary``."""
    parser.epilog = "example: ft summary embedded"
    add = parser.add_argument
    add("name", metavar="MODEL|RUN", help="a folder, Hub id, `embedded`, or a run")
    add("--precision", help="as loaded in auto, fp32, bf16 or nf4 (default: as stored)")
    add("--model", metavar="BASE", help="of an adapter made elsewhere: its base")


def command(name: str, precision: str | None, model: str | None = None) -> None:
    """Print what the model is made of; no weight is read."""
    from ft.cli import console
    from ft.models import description
    from ft.runs import opened

    if precision == "int8":
        raise UserError("--precision int8: a summary shows a model in fp32, bf16 or nf4")
    run = opened.find(name, model=model)
    base = run.base if run else name
    source = run.weights if run else name
    if run and precision is None:
        precision = run.record.get("model", {}).get("precision")
    shape, towers = description.skeleton(source)
    if run and not run.whole:
        shape = description.with_adapter(shape, run.folder)
    parts = description.parameters_of(shape, precision)
    out = console.standard_output()
    cells = [
        (part.name, description.spans(part.layers), " × ".join(map(str, part.shape)))
        + (f"{part.parameters:,}", part.dtype, "yes" if part.trained else "")
        for part in parts
    ]
    headings = ("module", "layers", "shape", "parameters", "dtype", "trains")
    console.show_rows(out, headings, cells, right=("parameters",))
    rows = console.table(out, "", "")
    rows.show_header = False
    found = [*description.sizes(parts, shape, towers), *description.facts(shape)]
    for label, text in [*found, ("licence", description.licence(base, shape))]:
        rows.add_row(label, text)
    console.show(out, rows)
