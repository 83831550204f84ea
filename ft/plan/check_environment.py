"""What a run needs around it: packages, the Hub, room on the disk, a folder to write to, a checkpoint to go on from."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft.errors import LOG_IN, UserError, hub_errors, nearest
from ft.files import sha256
from ft.models import sources
from ft.plan.case import Case, Seen
from ft.runs import checkpoints, folder, hub
from ft.runs.record import made_with, trackers

# package: the oldest version that ft works with, and the one of constraints.txt, which its tests ran with
TESTED = {
    "torch": ("2.11", "2.13.0"),
    "transformers": ("5.17", "5.24.0"),
    "trl": ("1.15", "1.16.0"),
    "peft": ("0.19", "0.21.2"),
    "accelerate": ("1.13", "1.15.0"),
    "datasets": ("4.8", "5.2.0"),
    "tokenizers": ("0.23.1", "0.23.3"),
    "bitsandbytes": ("0.50", "0.50.2"),
}
# what is known of a version before those, by its start
KNOWN_BAD = {
    (
        "transformers",
        "4.",
    ): "renamed Gemma 3's parameters on the way to 5, so that adapters do not fit",
    (
        "transformers",
        "5.6.",
    ): "asks Gemma 3 for token_type_ids in training, or has only just ceased to",
    ("peft", "0.15."): "fails at the first step with this transformers",
    ("trl", "0."): "has no SFTConfig that these settings fit",
}
COMPANIONS = ("torchvision", "torchaudio")
TRACKERS = ("tensorboard", "trackio", "wandb")
TIMEOUT = 3.0  # seconds for the Hub to answer
TOKENIZER = 40_000_000  # bytes, in each checkpoint, where it is not here to be measured


def versions(case: Case) -> Seen:
    """The installed packages against the tested set, and those that the settings ask for."""
    bad, other = [], []
    for name, (oldest, tested) in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(f"{name} is not installed: pip install {name}=={tested}")
            continue
        why = next((w for (n, v), w in KNOWN_BAD.items() if n == name and found.startswith(v)), "")
        if _numbers(found) < _numbers(oldest):
            because = f" ({why})" * bool(why)
            bad.append(
                f"{name} {found} is older than {oldest}{because}: pip install {name}=={tested}"
            )
        elif found.partition("+")[0] != tested:
            other.append(f"{name} {found} (tested {tested})")
    bad += _missing(case.settings) + _misfits()
    if bad:
        return Seen("ERROR", "versions", "; ".join(bad))
    adapts = ["peft"] * bool(case.settings.get("lora_r", 1))
    shown = ", ".join(f"{n} {TESTED[n][1]}" for n in ("transformers", *adapts, "trl"))
    return Seen(
        "ok",
        "versions",
        f"not the tested set: {', '.join(other)}" if other else f"{shown}: the tested set",
    )


def _missing(settings: Mapping[str, Any]) -> list[str]:
    """What the settings ask for and is not installed."""
    wanted = []
    asked = trackers(settings.get("report_to", "none"))
    for tracker in asked if asked != ["all"] else ():
        if tracker in TRACKERS:
            wanted.append((tracker, f"--report-to {tracker}"))
        else:
            known = ", ".join((*TRACKERS, "none"))
            hint = nearest(tracker, TRACKERS)
            wanted.append((None, f"--report-to {tracker}: allowed are {known}.{hint}"))
    if settings.get("backend") == "unsloth":
        wanted.append(("unsloth", "--backend unsloth"))
    for key, start in (("precision", "nf4"), ("optim", "adamw_8bit"), ("optim", "paged_")):
        if str(settings.get(key, "")).startswith(start):
            wanted.append(("bitsandbytes", f"--{key} {settings[key]}"))
    return [
        f"{asked} needs {name}, which is not installed: pip install {name}" if name else asked
        for name, asked in wanted
        if name is None or importlib.util.find_spec(name) is None
    ]


def _misfits() -> list[str]:
    """Companions of PyTorch that were built for another of its versions, and fail: transformers imports them with a model's code."""
    wrong, torch = [], importlib.metadata.version("torch")
    for name in COMPANIONS:
        try:
            found, needs = importlib.metadata.version(name), importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        built = next(
            (m[1] for each in needs if (m := re.match(r"torch *\(?== *([\d.]+)", each))), ""
        )
        if not built or _numbers(built)[:2] == _numbers(torch)[:2]:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever its library says
            why = " ".join(str(error).split())[:100]
            wrong.append(
                f"{name} {found} is for torch {built} and fails with {torch} ({why}): pip install --upgrade {name}, "
                f"or pip uninstall {name}"
            )
    return wrong


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def hub_access(case: Case) -> Seen:
    """Whether what lies on the Hub is there and may be had, and a push could be made; one short question each."""
    push = case.settings.get("push_to_hub")
    if push:
        hub.check_name(push)
    if not (case.on_hub or case.data_on_hub or push):
        return Seen("ok", "hub", "not needed: model and data are here")
    asked = [name for name, there in ((case.model, case.on_hub), (str(push or ""), push)) if there]
    asked += [str(case.settings.get("data"))] * case.data_on_hub
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import get_session

    token = get_token()
    if push and not token:
        raise UserError(f"--push-to-hub {push}: not logged in to the Hub: {LOG_IN} that may write")
    if case.offline:
        return Seen("--", "hub", f"not asked for {', '.join(asked)}: offline, the cache must do")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="ft")
    said = []
    try:
        with hub_errors(asked[0]):
            if token:
                headers = {"authorization": f"Bearer {token}"}
                found = get_session().get(
                    f"{api.endpoint}/api/whoami-v2", headers=headers, timeout=TIMEOUT
                )
                found.raise_for_status()
                said.append(_who(found.json(), push))
            if case.on_hub:
                said.append(_model(case, api))
            if case.data_on_hub:
                owner, name, *_ = str(case.settings["data"]).split("/")
                api.dataset_info(f"{owner}/{name}", timeout=TIMEOUT)
                said.append(f"{owner}/{name} is there")
    except UserError as error:
        if "no connection" not in str(error) and "answered 5" not in str(error):
            raise
        case.offline = True
        return Seen("WARN", "hub", f"no answer within {TIMEOUT:.0f} s: what its cache has must do")
    return Seen("ok", "hub", ", ".join(said))


def _who(found: dict[str, Any], push: str | None) -> str:
    """Whose the token is. Raises ``UserError`` for one that may only read where it is to write."""
    role = found.get("auth", {}).get("accessToken", {}).get("role")
    if push and role == "read":
        raise UserError(f"--push-to-hub {push}: this token may only read: {LOG_IN} that may write")
    return f"token of {found.get('name', '?')}"


def _model(case: Case, api: Any) -> str:
    repo, at = sources.pinned(case.model)
    info = api.model_info(repo, revision=at, files_metadata=True, timeout=TIMEOUT)
    weights = [f for f in info.siblings or () if f.rfilename.endswith(".safetensors")]
    if not weights:
        raise UserError(f"{case.model} has no *.safetensors weights; pickled ones are not loaded")
    if gated := getattr(info, "gated", None):
        api.auth_check(repo)  # raises where the licence is not accepted
    case.to_fetch = 0 if _cached(case.model) else sum(f.size or 0 for f in weights)
    fetch_ = (
        f"{case.to_fetch / 1e9:.1f} GB to fetch" if case.to_fetch else "weights are in the cache"
    )
    return f"{case.model}: {'licence accepted; ' * bool(gated)}{fetch_}"


def _cached(repo: str) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, at = sources.pinned(repo)
    only: dict[str, Any] = {"local_files_only": True, "allow_patterns": ["*.safetensors"]}
    try:
        found = snapshot_download(name, revision=at, **only)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return False
    return any(Path(found).glob("*.safetensors"))


def output(case: Case) -> Seen:
    """The folder that the run will be written to."""
    settings = case.settings
    resume = settings.get("resume_from_checkpoint")
    overwrite = settings.get("overwrite_output_dir", False)
    there = folder.holds_any(case.output_dir)
    folder.check_folder(case.output_dir, overwrite, resume)
    what = "new folder"
    if there:
        what = "the run in it goes on" if resume else "the run in it is deleted and replaced"
    return Seen("ok", "output", f"{case.output_dir}: {what}")


def resume(case: Case) -> Seen | None:
    """Whether the run can go on from its checkpoint; what differs is named."""
    asked = case.settings.get("resume_from_checkpoint")
    if asked is None or case.recipe is None:
        return None
    if "rounds" in case.settings or case.reads is None:  # which keep them in a way of their own
        return Seen("--", "resume", "looked for when the run starts")
    found = checkpoints.resumable(case.output_dir, asked, known(case), part=True)
    assert found
    return Seen("ok", "resume", f"from {found.name}: same data, template, recipe and settings")


def known(case: Case, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is known of the fingerprint that the run will have; all of it with a loaded ``model``'s record."""
    assert case.recipe
    data = {split: rows.sha256 for split, rows in (case.splits or {}).items()}
    template = dataclasses.asdict(case.template) if case.template else {}
    return made_with(case.settings, sha256(case.recipe), data, template, model or {})


def disk(case: Case) -> Seen:
    """Room for the weights to fetch, the checkpoints that stay, one in the making, and what is saved at the end."""
    trained = _started_from(case)
    states = 2 * trained
    if case.plan:
        trained = case.plan.trained * 4
        states = sum(n for name, n in case.plan.most if name.startswith("optimizer states"))
    files = [*case.folder.glob("token*"), *case.folder.glob("*.jinja")] if case.folder else []
    tokenizer = sum(f.stat().st_size for f in files) or TOKENIZER
    own = (
        (checkpoints.KEPT + 2) * (trained + states + tokenizer) + trained + tokenizer
    )  # the best, too
    needs: dict[Path, int] = {_existing(case.output_dir): own}
    if case.to_fetch:
        from huggingface_hub import constants

        cache = _existing(Path(constants.HF_HUB_CACHE))
        same = next((p for p in needs if p.stat().st_dev == cache.stat().st_dev), cache)
        needs[same] = needs.get(same, 0) + case.to_fetch
    texts = []
    for place, need in needs.items():
        free = shutil.disk_usage(place).free
        texts.append(f"needs {_size(need)}, {_size(free)} free in {place}")
        if need > free:
            raise UserError(f"{texts[-1]}: free some space, or choose another --output-dir")
    return Seen("ok", "disk", "; ".join(texts))


def _started_from(case: Case) -> int:
    """Bytes that are trained on, of the run that this one starts from; 0 for none."""
    start = Path(str(case.settings.get("run") or "")).expanduser()
    files = (start / name for name in (*folder.ADAPTER, "model.safetensors"))
    return next((f.stat().st_size for f in files if f.suffix == ".safetensors" and f.is_file()), 0)


def _existing(path: Path) -> Path:
    path = path.expanduser().resolve()
    return next(p for p in (path, *path.parents) if p.exists())


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
