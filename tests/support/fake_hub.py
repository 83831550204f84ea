"""A local HTTP server that speaks the part of the Hub's protocol that a push and a pull need.

Addresses, headers and answers follow the requests that ``huggingface_hub`` 1.33 and 2.4 send.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ADDRESS = {  # a request's name: its method and path
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "info": r"GET /api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?",
    "tree": r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?",
    "branch": r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)",
    "yaml": r"POST /api/validate-yaml",
    "preupload": r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)",
    "batch": r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "lfs": r"PUT /lfs/(?P<oid>[0-9a-f]{64})",
    "commit": r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>[^/]+)",
    "resolve": r"(?:GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}


@dataclass(frozen=True)
class Commit:
    """A commit's name, its message and all files of the repository then."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Every commit made, and the commit that each branch is at."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        """Commit ``files`` over those of ``branch``."""
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        old = self.branches[branch].files if branch in self.branches else {}
        self.commits.append(Commit(oid, message, {**old, **files}))
        self.branches[branch] = self.commits[-1]
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch or of a commit's own name."""
        return {c.oid: c for c in self.commits}.get(revision) or self.branches.get(revision)


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        super().__init__(message)


class FakeHub:
    """The server: ``with FakeHub({token: user}) as hub``, then ``hub.url`` is its address.

    ``fail[name] = status`` makes every request of that name (a key of ``ADDRESS``) fail;
    ``requests`` lists the names in the order they came, and ``repositories`` is what is stored.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True  # a client may keep its connection
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, name: str, *, private: bool) -> Repository:
        """A repository with its first commit, as the Hub makes it."""
        self.repositories[name] = Repository(private)
        self.repositories[name].add("main", "initial commit", {".gitattributes": b""})
        return self.repositories[name]

    def answer(self, method: str, path: str, token: str, body: bytes) -> Any:
        """What the server says to one request: a JSON value, or a commit's file as bytes."""
        user = self.users.get(token)
        for name, pattern in ADDRESS.items():
            if not (match := re.fullmatch(pattern, f"{method} {path}")):
                continue
            self.requests.append(name)
            found = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
            if status := self.fail.get(name):
                raise Refused(status, "told to fail")
            if name == "lfs":
                return self._lfs(body, **found)
            if token and not user:
                raise Refused(401, "Invalid credentials in Authorization header")
            content = body.decode()
            repo = found.pop("repo", None)
            if repo is None:
                return getattr(self, f"_{name}")(user, content)
            repository = self.repositories.get(repo)
            if repository is None or (repository.private and repo.split("/")[0] != user):
                raise Refused(404, "Repository not found", "RepoNotFound")
            if method == "POST" and repo.split("/")[0] != user:
                raise Refused(403, "You do not have write permission")
            revision = found.pop("revision", "main")
            if not (commit := repository.at(revision)):
                raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if name == "resolve":
                return self._resolve(commit, **found)
            return getattr(self, f"_{name}")(repo, repository, commit, content, **found)
        raise Refused(404, f"{method} {path} is not part of this server")

    def _whoami(self, user: str | None, _: str) -> Any:
        return {"type": "user", "name": user}

    def _create(self, user: str | None, content: str) -> Any:
        wish = json.loads(content)
        name = f"{wish.get('organization') or user}/{wish['name']}"
        if user is None or name.split("/")[0] != user:
            raise Refused(403, "You don't have the rights to create a model under this name")
        if name in self.repositories:
            raise Refused(409, "You already created this model repo")
        self.create(name, private=wish.get("visibility") == "private" or bool(wish.get("private")))
        return {"url": f"{self.url}/{name}", "name": name}

    def _yaml(self, _: str | None, content: str) -> Any:
        assert json.loads(content)["content"].startswith("---\n")
        return {"errors": [], "warnings": []}

    def _info(self, name: str, repo: Repository, commit: Commit, _: str) -> Any:
        files = [{"rfilename": p, "size": len(b)} for p, b in commit.files.items()]
        return {"id": name, "sha": commit.oid, "private": repo.private, "siblings": files}

    def _tree(self, _name: str, _repo: Repository, commit: Commit, _: str) -> Any:
        entry = {"type": "file"}
        return [
            entry | {"path": p, "size": len(b), "oid": blob(b)} for p, b in commit.files.items()
        ]

    def _branch(self, _name: str, repo: Repository, main: Commit, _: str, branch: str) -> Any:
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = main
        return {}

    def _preupload(self, _name: str, _repo: Repository, commit: Commit, content: str) -> Any:
        files = []
        for file in json.loads(content)["files"]:
            large = file["path"].endswith(".safetensors")
            old = commit.files.get(file["path"])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if large else blob(old)
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append({"path": file["path"], **mode, "oid": oid})
        return {"files": files}

    def _batch(self, _name: str, _repo: Repository, _: Commit, content: str) -> Any:
        objects = json.loads(content)["objects"]
        for wish in objects:
            if wish["oid"] not in self.objects:
                wish["actions"] = {"upload": {"href": f"{self.url}/lfs/{wish['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def _lfs(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content has another hash")
        self.objects[oid] = body
        return {}

    def _commit(self, name: str, repo: Repository, _: Commit, content: str, branch: str) -> Any:
        lines = [json.loads(line) for line in content.splitlines()]
        values = [(line["key"], line["value"]) for line in lines]
        files = {v["path"]: base64.b64decode(v["content"]) for k, v in values if k == "file"}
        files |= {v["path"]: self.objects[v["oid"]] for k, v in values if k == "lfsFile"}
        commit = repo.add(branch, values[0][1]["summary"], files)
        return {"commitUrl": f"{self.url}/{name}/commit/{commit.oid}", "commitOid": commit.oid}

    def _resolve(self, commit: Commit, path: str) -> tuple[str, bytes]:
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return commit.oid, commit.files[path]


def blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would wait for each other

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, headers = 200, {"Content-Type": "application/json"}
        try:
            answer = self.hub.answer(self.command, urlsplit(self.path).path, token, body)
        except Refused as refused:
            status, answer, headers = refused.status, {"error": str(refused)}, refused.headers
        if isinstance(answer, tuple):
            oid, content = answer
            headers = {"X-Repo-Commit": oid, "ETag": f'"{blob(content)}"'}
        else:
            content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None: ...
