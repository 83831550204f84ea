"""What peers reach on the rows of a finished run in the time that it took, on the same machine.

    accelerate launch recipes/mtnt_lora.py                       makes runs/mtnt_lora
    python benchmarks/quality.py --run runs/mtnt_lora --peer trl,trl-ours,unsloth,unsloth-ours \\
        --also PATH/TO/MTNT:valid --limit 150 --out quality.json

Peers     trl: `trl sft --use_peft` by its defaults; unsloth: as its notebooks show (8 examples a step by 2 x 4, rate
          2e-4, 5 steps of warm-up); with -ours: with the run's rate, warm-up, adapter and examples a step
Training  the run's prompts and completions, by TRL or Unsloth itself, for as long as the run trained and validated,
          from the first step on; the rate falls to 0 in a line over that time
Judged    on the run's test lines and on those of --also that the run neither trained on nor watched; each model by greedy
          decoding and as the run answers, all by ft's generation; chrF, BLEU, loops, paired bootstrap
Time      of each peer what the run took, then its answers: minutes for 100 lines on two cores; a rerun goes on

Adapters and answers are kept in --work. What must be true: nothing else runs on the machine.
"""

import dataclasses
import functools
import gc
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import judged, rivals
from harness.judged import Answers, Set
from harness.report import cpu_name

from ft import config, data, files, machine, models, text
from ft.errors import UserError
from ft.generate.samplers import Beam, Greedy, to_generation_config
from ft.models import sources
from ft.runs import opened
from ft.runs.opened import Finished
from ft.score import translation

RECIPES = Path(__file__).parents[1] / "recipes"
GREEDY = "greedy"


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/mtnt_lora")  # a finished run of recipes/mtnt_lora.py
    peer: tuple[str, ...] = ("trl",)  # of trl, trl-ours, unsloth, unsloth-ours
    seconds: float | None = None  # time for each; none: as long as the run trained and validated
    precision: Literal["auto", "fp32"] = "auto"  # of the peers' training; auto: as each chooses
    also: tuple[str, ...] = ()  # more lines to judge by: a table of pairs, or MTNT with :valid
    peer_decoding: Literal["both", "greedy", "run"] = (
        "both"  # run: as the run answers; ft answers in both ways anyway
    )
    limit: int | None = None  # lines of each set to judge by; none: all
    work: Path = Path("runs/peers")  # the peers' adapters and logs, and everyone's answers
    out: Path | None = None  # where the result goes, as JSON

    def check(self) -> list[str]:
        """Mistakes that the types cannot tell."""
        mistakes = [
            f"--peer: {name!r} is none of {', '.join(rivals.RIVALS)}"
            for name in self.peer
            if name not in rivals.RIVALS
        ]
        if not self.peer or len(set(self.peer)) < len(self.peer):
            mistakes.append("--peer: name one or more peers, each once")
        if self.seconds is not None and self.seconds <= 0:
            mistakes.append(f"--seconds {self.seconds}: a time to train in is above 0")
        if self.limit is not None and self.limit < 2:
            mistakes.append(f"--limit {self.limit}: scores are compared on 2 lines or more")
        return mistakes


def main(c: Config) -> None:
    """Train the peers, let all answer, compare."""
    run = opened.finished(c.run, task="translation")
    splits = rows_of(run)
    sets = [own_test(run, c.limit)]
    sets += [
        judged.other(run, spec, (splits["train"], splits["valid"]), c.limit) for spec in c.also
    ]
    job = job_of(run, splits["train"], c)
    ours = rivals.settings_of(run) if any(rivals.RIVALS[p].ours for p in c.peer) else None
    folders = {}
    for name in c.peer:
        settings = ours if rivals.RIVALS[name].ours else None
        folders[name] = rivals.trained(name, job | {"settings": settings}, c.work)
    made = {name: rivals.made(folder) for name, folder in folders.items()}
    for name, result in made.items():
        how = f"{rivals.precision_of(result)}, {result['optim']}"
        print(f"{name}: {result['steps']} steps in {result['seconds']:.0f} s, {how}")

    systems = {"ft": run} | {
        name: dataclasses.replace(run, folder=folder / rivals.ADAPTER, any_base=True)
        for name, folder in folders.items()
    }
    ways, own = ways_of(run)
    wanted = {"both": [*ways], "greedy": [GREEDY], "run": [own]}[c.peer_decoding]
    answers: dict[str, dict[str, Any]] = {way: {} for way in ways}
    for name, system in systems.items():
        chosen = ways if name == "ft" else {way: ways[way] for way in wanted}
        kept = c.work / "answers"
        for way, found in answered(system, chosen, sets, kept, name, run).items():
            answers[way][name] = found
    training = run.record["training"]
    steps = {"ft": training["steps"]} | {name: result["steps"] for name, result in made.items()}
    result: dict[str, Any] = {"options": config.to_dict(c), "seconds": job["seconds"]}
    result |= {"cpu": cpu_name(), "hardware": machine.hardware(), "versions": machine.versions()}
    trained = ("started", "hardware", "versions", "training", "lora", "decoding")
    result["ft"] = {key: run.record.get(key) for key in trained}
    result["ft"]["precision"] = run.record["model"]["precision"]
    result |= {"peers": made, "sets": {}}
    for one in sets:
        by_way = {
            way: {name: lines[one.name] for name, lines in found.items()}
            for way, found in answers.items()
        }
        pair = run.settings["language_pair"]
        result["sets"][one.name] = judged.compared(one, by_way, own, pair=pair)
        print("\n" + judged.table(one.name, result["sets"][one.name], steps))
    print(f"\n{' '.join(result['sets'][sets[0].name]['signatures'].values())}")
    told = f"ft {training['wall_seconds']:.0f} s in {result['ft']['precision']}"
    print(f"{cpu_name()}; {told}, each peer {job['seconds']:.0f} s")
    if c.out:
        files.write_json(c.out, result)


def rows_of(run: Finished) -> dict[str, data.Rows]:
    """The rows of a run, read again. Raises ``UserError`` if they are not those that it trained on."""
    flags = ["--config", str(run.folder / "config.yaml")]
    recipe, settings = opened.recipe(RECIPES / f"{run.record['recipe']}.py", flags)
    splits = recipe.rows(settings)
    recorded = run.record["data"]["train"]["sha256"]
    if splits["train"].sha256 != recorded:
        raise UserError(
            f"{splits['train'].origin} is not what {run.folder} was trained on ({splits['train'].sha256[:12]}, not "
            f"{recorded[:12]}): put those rows back, or train again"
        )
    return splits


def own_test(run: Finished, limit: int | None) -> Set:
    """The test lines that a run is judged on. Raises ``UserError`` for one that has no translations of them."""
    samples = run.record.get("evaluation", {}).get("test", {}).get("samples", [])[:limit]
    if not samples:
        raise UserError(
            f"{run.folder} is not finished: it has no translations of the test split yet"
        )
    rows = [{"source": row["source"], "target": row["reference"]} for row in samples]
    return Set("test", run.record["data"]["test"]["origin"], rows)


def job_of(run: Finished, train: data.Rows, c: Config) -> dict[str, Any]:
    """What all peers are to do; the rows are written beside them, as the run's model reads them."""
    tokenizer = models.load_tokenizer(run.weights)
    length = run.settings["max_length"]
    _, encoded = text.encode_splits({"train": train}, run.template, tokenizer, max_length=length)
    content = files.to_json_lines(encoded["train"].examples)
    digest = hashlib.sha256(content.encode()).hexdigest()
    c.work.mkdir(parents=True, exist_ok=True)
    file = (c.work / f"rows-{digest[:12]}.jsonl").resolve()
    files.write_text(file, content)
    return {
        "model": str(sources.fetch(run.base)),
        "rows": str(file),
        "rows_sha256": digest,
        "precision": c.precision,
        "seconds": c.seconds or run.record["training"]["wall_seconds"],
        "max_length": length,
    }


def ways_of(run: Finished) -> tuple[dict[str, Greedy | Beam], str]:
    """Greedy and the run's own way of decoding, by name, and the name of that; one where they are the same."""
    if isinstance(run.sampler, Greedy):
        return {GREEDY: run.sampler}, GREEDY
    own = f"{run.sampler.width} beams"
    return {GREEDY: Greedy(), own: run.sampler}, own


def answered(
    system: Finished,
    ways: dict[str, Greedy | Beam],
    sets: list[Set],
    folder: Path,
    name: str,
    run: Finished,
) -> dict[str, dict[str, list[str]]]:
    """What a model answers to the lines of each set, by way of decoding; it is loaded for what is not kept."""

    @functools.lru_cache(maxsize=1)
    def model() -> Any:
        return opened.load(system)

    found: dict[str, dict[str, list[str]]] = {}
    for way, sampler in ways.items():

        def ask(
            rows: list[dict[str, str]], way: str = way, sampler: Greedy | Beam = sampler
        ) -> list[str]:
            loaded, start = model(), time.perf_counter()
            texts = translation.translate(
                loaded.model, loaded.tokenizer, run.template, rows, sampler
            )
            seconds = time.perf_counter() - start
            print(f"{name}, {way}: {len(rows)} lines in {seconds:.0f} s", flush=True)
            return texts

        kept = Answers(folder / f"{name}-{key_of(system, sampler)}.json")
        if system is run and sampler == run.sampler:
            samples = run.record["evaluation"]["test"]["samples"]
            kept.add(samples, [row["tuned"] for row in samples])
        found[way] = {one.name: kept.to(one.rows, ask) for one in sets}
    model.cache_clear()
    gc.collect()
    return found


def key_of(system: Finished, sampler: Greedy | Beam) -> str:
    """A name for the answers of these very weights, prompts and way of decoding."""
    weights = "model.safetensors" if system.whole else "adapter_model.safetensors"
    parts = [files.sha256(system.folder / weights), system.record["model"]["precision"]]
    parts += [system.record["template"], to_generation_config(sampler)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    config.run(main, Config, __doc__)
