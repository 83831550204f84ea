"""Share a run on the Hugging Face Hub: its card, one commit that pushes it, and the way back."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ft.errors import LOG_IN, SECRET, UserError, hub_errors
from ft.files import check_new_dir, new_dir
from ft.models.sources import pinned
from ft.runs import elsewhere
from ft.runs.card import card, read
from ft.runs.card_example import HERE
from ft.runs.folder import ADAPTER, FILES, MODEL, TEXTS
from ft.runs.published import without_paths

__all__ = ["card", "pull", "push"]


def push(
    run_folder: Path,
    repo: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a fine-tuned Gemma",
) -> str:
    """Upload a run to the model repository ``repo`` in one commit and return its address.

    ``repo`` is ``owner/name``, or ``name`` for one's own. A new repository is private unless told
    otherwise; an existing one gets one more commit, but a public one is refused while ``private``.
    ``revision`` names a branch, made if needed. Raises ``UserError``; the repository then has the
    whole commit or nothing of it, and the folder here is never changed. No absolute path of this machine
    goes along: its last part does.
    """
    from huggingface_hub import CommitOperationAdd, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    _check_whole(run_folder)
    if elsewhere.is_alone(run_folder):
        raise UserError(
            f"{run_folder} was made elsewhere, without a run's record that its card could be written from; `hf upload` "
            "takes a folder as it is"
        )
    check_name(repo)
    token = (token or get_token() or "").strip()
    if not re.fullmatch("[!-~]+", token):
        raise UserError(f"not logged in to the Hub with a usable token: {LOG_IN} that may write")
    _check_secrets(run_folder, token)
    readme = read(run_folder / "README.md", str) or card(run_folder)
    api = _api(token)
    with hub_errors(repo):
        repo = repo if "/" in repo else f"{api.whoami()['name']}/{repo}"
        url = f"{api.endpoint}/{repo}"
        try:
            public = not api.model_info(repo).private
        except RepositoryNotFoundError:
            api.create_repo(repo, private=private)
            print(f"created the {'private' if private else 'public'} model repository {url}")
        else:
            if public and private:
                raise UserError(
                    f"{url} exists and is public, and this push asks for a private repository: "
                    "choose another name, or add --public"
                )
            print(f"{url} exists and is {'public' if public else 'private'}: adding a commit")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = api.model_info(repo, revision=revision).sha
    readme = readme.replace(HERE, f"tuned = {json.dumps(repo)}")
    readme = without_paths(readme, "README.md")
    files = [CommitOperationAdd("README.md", readme.encode())]
    for name in FILES:
        if name == "README.md" or not (run_folder / name).is_file():
            continue
        content: Any = run_folder / name
        if name in (*TEXTS, ADAPTER[1]):
            content = without_paths(content.read_text(encoding="utf-8"), name).encode()
        files.append(CommitOperationAdd(name, content))
    with hub_errors(repo, committing=True):
        commit = api.create_commit(repo, files, commit_message=message, revision=revision)
    done = f"pushed {len(files)} files: {commit.commit_url}"
    print("no file has changed: no new commit" if commit.oid == before else done)
    return f"{url}/tree/{revision}" if revision else url


def pull(
    repo_or_folder: str | Path,
    folder: Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder of a run: a local one as it is, or a Hub repository in the Hub's cache.

    With ``folder``, the repository's files are copied there, all or none. Without a network, what
    the cache has serves. Raises ``UserError``.
    """
    name = str(repo_or_folder)
    if Path(name).is_dir():
        _check_whole(Path(name))
        return Path(name)
    name, at = pinned(name)
    check_name(name, "is neither a folder here nor ")
    if folder:
        check_new_dir(folder)
    with hub_errors(name, missing=f"there is no folder {name} here"):
        api = _api(token.strip() if token else None)
        found = Path(api.snapshot_download(name, revision=revision or at, allow_patterns=[*FILES]))
    _check_whole(found, name)
    if folder is None:
        return found
    with new_dir(folder) as new:
        for file in (found / name for name in FILES):
            if file.exists():
                shutil.copyfile(file, new / file.name)
    return folder


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="ft")


def _check_whole(folder: Path, name: str | None = None) -> None:
    missing = [file for file in ADAPTER if not (folder / file).is_file()]
    if missing and not all((folder / file).is_file() for file in MODEL):
        raise UserError(f"{name or folder} is not a finished run: no {' and no '.join(missing)}")


def check_name(repo: str, other: str = "is not ") -> None:
    """Raise ``UserError`` for what cannot be the name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"{repo!r} {other}a name on the Hub: owner/name, of letters, digits, '-', '_' and '.', "
            "96 characters at most, with '-' and '.' neither doubled nor at an end"
        ) from None


def _check_secrets(run_folder: Path, token: str) -> None:
    """Raise ``UserError`` if a text to upload holds an access token, as a noted command may."""
    for name in TEXTS:
        text = read(run_folder / name, str) or ""
        if token in text or SECRET.search(text):
            raise UserError(f"{run_folder / name} holds what looks like an access token: remove it")
