"""A merged run on another server: `transformers serve` gives the greedy answers that `ft serve` gives."""

import http.client
import json
import os
import socket
import subprocess
import sys

import pytest
from support import finished_run
from support.serving import post, serving, until

from ft.chat import partner
from ft.chat.conversation import Conversation
from ft.generate import answers
from ft.runs import merge, opened
from ft.text import prompts

for name in ("fastapi", "openai", "pydantic", "uvicorn"):
    pytest.importorskip(name, reason=f"`transformers serve` needs {name}")

SERVE = "from transformers.cli.transformers import main; main()"
QUESTIONS = ["hi", "Hello, my name is Morgane.", "the capital of France"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@finished_run.peft_asks_by_an_older_name
def test_transformers_serve_answers_a_merged_run_as_ft_serve_does(tmp_path):
    template = prompts.translation("French", one_line=False)
    run = finished_run.write_real(tmp_path / "run", template)
    merged, port = tmp_path / "merged", free_port()
    (run / "config.yaml").write_text(f"model_name_or_path: {tmp_path / 'base'}\n")
    merge.merge_run(opened.finished(run), merged)
    command = [sys.executable, "-c", SERVE, "serve", str(merged), "--port", str(port)]
    options = ["--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "log", "w") as log:
        other = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)

    def ask(path: str, body: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            method = "POST" if body else "GET"
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            found = response.read()
            return json.loads(found) if response.status == 200 else found
        except ConnectionError:
            assert other.poll() is None, (tmp_path / "log").read_text()
            return None
        finally:
            connection.close()

    try:
        until(lambda: bool(ask("/health")))
        who = partner.load(str(run), precision="fp32")
        with serving(who) as ours:
            for question in QUESTIONS:
                body = {"messages": [{"role": "user", "content": question}], "max_tokens": 12}
                body |= {"temperature": 0}
                ids = Conversation(template).asked(question).ids(who.tokenizer)
                ((answer,),) = answers.generate(
                    who.model, who.tokenizer, [ids], max_new_tokens=12, template=template
                )
                own = post(ours, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
                assert own == answer.text.strip()
                found = ask("/v1/chat/completions", body | {"model": str(merged)})
                assert isinstance(found, dict), found
                text = found["choices"][0]["message"]["content"]
                # a random model writes bytes that are no characters: one decoding at once shows others
                whole = who.tokenizer.decode(answer.ids, skip_special_tokens=True)
                assert text.strip() == whole.strip() != ""
    finally:
        other.terminate()
        other.wait(60)
