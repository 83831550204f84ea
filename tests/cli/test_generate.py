"""`ft generate`: every sampler by name, its settings checked, runs through their template."""

import json

import pytest
from support import finished_run

from ft.__main__ import main
from ft.cli import generate
from ft.errors import UserError
from ft.generate import samplers
from ft.generate.constraints import RepetitionPenalty


def out(capsys, *argv: str) -> str:
    main(["generate", *argv])
    return capsys.readouterr().out


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("greedy", {}, samplers.Greedy()),
        ("sample", {"temperature": 0.7}, samplers.Sample(0.7)),
        ("top-k", {"k": 5, "temperature": 0.5}, samplers.TopK(5, 0.5)),
        ("top-k", {"k": None}, samplers.TopK(40)),
        ("top-p", {}, samplers.TopP(0.9)),
        ("min-p", {"p": 0.2}, samplers.MinP(0.2)),
        ("beam", {"width": 2, "length_penalty": 0.5}, samplers.Beam(2, 0.5)),
        ("contrastive", {"alpha": 0.3}, samplers.Contrastive(4, 0.3)),
    ],
)
def test_a_sampler_by_name(name, settings, expected):
    assert generate.named(name, settings) == expected


def test_a_penalty_goes_before_the_sampler():
    found = generate.named("top-k", {"k": 3}, 1.2)
    assert found == samplers.Chain((RepetitionPenalty(1.2), samplers.TopK(3)))
    with pytest.raises(UserError, match="--repetition-penalty does not go with --sampler beam"):
        generate.named("beam", {}, 1.2)


def test_a_setting_of_another_sampler_is_named_with_those_that_have_it():
    with pytest.raises(UserError, match="--k is a setting of top-k, contrastive, not of greedy"):
        generate.named("greedy", {"k": 5})
    with pytest.raises(UserError, match="--length-penalty is a setting of beam, not of top-p"):
        generate.named("top-p", {"length_penalty": 2.0})


def test_a_model_goes_on_from_text(folder, capsys):
    model, short = folder("gemma3_text"), ("--max-new-tokens", "8", "--precision", "fp32")
    streamed = out(capsys, model, "le chat", *short)
    assert streamed.strip()
    row = json.loads(out(capsys, model, "le chat", "--json", *short))
    assert row["text"] == streamed.removesuffix("\n")
    assert len(row["ids"]) == len(row["logprobs"]) == 8
    assert (row["prompt"], row["reason"]) == ("le chat", "length")
    many = out(
        capsys, model, "le chat", "a", "--sampler", "top-k", "--k", "5", "--n", "3", "--seed", "1", *short
    )  # fmt: skip
    assert [line.split(":")[0] for line in many.splitlines() if line.startswith("── ")] == [
        f"── {prompt}, {i} of 3" for prompt in ("le chat", "a") for i in (1, 2, 3)
    ]
    beams = out(capsys, model, "le chat", "--sampler", "beam", "--width", "2", "--n", "2", *short)
    assert beams.count("── ") == 2


def test_a_run_gets_its_template_unless_it_is_told_otherwise(tmp_path, capsys, monkeypatch):
    run = finished_run.write_real(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(f"model_name_or_path: {tmp_path / 'base'}\n")
    short = ("--max-new-tokens", "6", "--precision", "fp32", "--json")
    filled = json.loads(out(capsys, str(run), "le chat", *short))
    prompt = finished_run.TEMPLATE.prompt_for({"source": "le chat"})
    raw = json.loads(out(capsys, str(run), prompt, "--raw", "--stop", "\n", *short))
    assert raw["ids"] == filled["ids"]
    base = json.loads(out(capsys, str(run), "le chat", "--base", *short))
    assert base["ids"] != filled["ids"]
    assert "brings its own template" in refused(capsys, str(run), "a", "--template", "dolly")


def test_a_template_can_be_given_for_a_model(folder, capsys):
    short = ("--max-new-tokens", "4", "--precision", "fp32", "--json")
    plain = json.loads(out(capsys, folder("gemma"), "a", *short))
    turns = json.loads(out(capsys, folder("gemma"), "a", "--template", "chat", *short))
    assert plain["ids"] != turns["ids"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a", "--sampler", "top-k", "--k", "0"], "TopK: k = 0"),
        (["a", "--sampler", "top-p", "--p", "1.5"], "TopP: p = 1.5"),
        (["a", "--sampler", "sample", "--temperature", "-1"], "Sample: temperature = -1.0"),
        (["a", "--k", "5"], "--k is a setting of top-k"),
        (["a", "--sampler", "beam", "--width", "1", "--n", "2"], "has 1 answer to a prompt"),
        ([""], "a prompt is empty"),
        (["", "--template", "dolly"], "a prompt is empty"),
        (["a", "--stop", ""], "a stop string is empty"),
        (["a", "--raw"], "--raw: .* is a model, not a run"),
        (["a", "--base"], "--base: .* is a model, not a run"),
        (["a", "--precision", "int9"], "unknown precision 'int9'"),
    ],
)
def test_bad_options_are_one_line(folder, capsys, flags, message):
    error = refused(capsys, folder("gemma"), *flags)
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(UserError, match=message):
        raise UserError(error)


def test_help_names_every_sampler(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in generate.SAMPLERS)
