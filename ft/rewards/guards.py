"""Guards: what tells that learning from rewards has gone bad, measured on fresh answers; `Watch` stops a run then."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ft.data.preferences import asking
from ft.data.rows import Row
from ft.errors import UserError
from ft.generate.answers import generate
from ft.generate.draft import Answer
from ft.generate.samplers import Sample
from ft.machine import say
from ft.models.load import Base
from ft.rewards import policy
from ft.rewards.drawn import example
from ft.rewards.judges import Judge
from ft.runs.folder import Run
from ft.score import likelihood
from ft.score.comparison import Comparison
from ft.text.template import Template
from ft.text.tokens import prompt_ids


@dataclass(frozen=True)
class Vitals:
    """How a model writes, by answers that it drew."""

    kl: float  # from its start, nats a token
    distinct: float  # share of pairs of neighbouring words that no other place has
    tokens: float  # of an answer, mean

    def __str__(self) -> str:
        return f"KL {self.kl:.3f} nats a token, distinct-2 {self.distinct:.2f}, {self.tokens:.1f} tokens an answer"


@dataclass(frozen=True)
class Guards:
    """Bounds on ``Vitals``; beyond one of them a run has gone bad."""

    max_kl: float = 0.5  # nats a token from the start
    min_distinct: float = 0.6  # of the distinct-2 that the start had
    max_drift: float = 1.5  # times longer or shorter than at the start
    min_kept: float = 0.1  # share of the prompts of which an answer is worth learning

    def check(self, now: Vitals, start: Vitals, where: str) -> None:
        """Raise ``UserError`` if a bound is passed; ``where`` says at which point of the run."""
        drift = max(now.tokens, 0.5) / max(start.tokens, 0.5)
        faults = []
        if not now.kl <= self.max_kl:
            faults.append(f"KL to the start {now.kl:.3f} nats a token is over {self.max_kl:g}")
        if now.distinct < self.min_distinct * start.distinct:
            faults.append(
                f"distinct-2 fell from {start.distinct:.2f} to {now.distinct:.2f}, under "
                f"{self.min_distinct:g} of it"
            )
        if not 1 / self.max_drift <= drift <= self.max_drift:
            faults.append(
                f"answers went from {start.tokens:.1f} to {now.tokens:.1f} tokens, a factor of more "
                f"than {self.max_drift:g}"
            )
        if faults:
            raise UserError(
                f"stopped {where}, as the model has gone bad: {'; '.join(faults)}. Lower the "
                "--learning-rate, or look at the reward: a model that writes like this may be paid "
                "for it. The run's folder keeps the last model that was not bad, if there was one"
            )

    def check_kept(self, share: float, where: str) -> None:
        """Raise ``UserError`` if too few prompts have an answer that is kept."""
        if share < self.min_kept:
            raise UserError(
                f"stopped {where}: of {share:.1%} of the prompts an answer was kept, fewer than "
                f"--min-kept {self.min_kept:g}; lower --cutoff or draw more answers with --n"
            )


def vitals(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Vitals:
    """How ``model`` writes, by answers that it drew itself (at temperature 1) to ``prompts``.

    The KL divergence from the start is estimated on their tokens by ``r - 1 - log r``, with r the
    start's probability over the model's (Schulman, "Approximating KL divergence"): never below 0.
    """
    import torch

    examples = [example(p, a.ids) for p, a in zip(prompts, answers, strict=True)]
    with torch.no_grad(), policy.as_it_began(model):
        start = torch.cat(likelihood.logprobs(model, examples))
    now = torch.tensor([value for a in answers for value in a.logprobs], device=start.device)
    log_ratio = (start - now).double()
    kl = (log_ratio.expm1() - log_ratio).mean().item()
    return Vitals(
        kl, distinct([a.text for a in answers]), sum(len(a.ids) for a in answers) / len(answers)
    )


def look(
    model: Any,
    tokenizer: Any,
    template: Template,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> Vitals:
    """``vitals`` by one answer to each prompt, drawn now; of one set of prompts they can be compared.

    Several processes share the drawing.
    """
    found = generate(
        model,
        tokenizer,
        prompts,
        Sample(),
        max_new_tokens=max_new_tokens,
        template=template,
        seed=seed,
        shared=True,
    )
    return vitals(model, prompts, [answer for (answer,) in found])


def distinct(texts: Sequence[str]) -> float:
    """distinct-2 (Li et al. 2016): different pairs of neighbouring words over all; 1 without any."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


class Watch:
    """A run that learns from rewards, judged at its start and at its end, and looked at on the way.

    Made before the first step: it says how the start scores and writes. ``lines`` are rows that the
    looks draw answers to; ``judge`` has the held-out ones.
    """

    def __init__(
        self,
        run: Run,
        *,
        base: Base,
        template: Template,
        judge: Judge,
        guards: Guards,
        lines: Sequence[Row],
        max_new_tokens: int,
    ) -> None:
        self.run, self.model, self.tokenizer = run, base.model, base.tokenizer
        self.template, self.guards, self.judge = template, guards, judge
        self.max_new_tokens = max_new_tokens
        self.prompts = [prompt_ids(template, asking(row), self.tokenizer) for row in lines]
        with policy.as_it_began(self.model):  # a resumed run may have gone on
            self.before, self.start = judge(), self.look()
        say(f"start: {judge.line(self.before)}; {self.start}")
        if judge.watched and run.begun:  # one that goes on has it already
            run.log({"step": 0, "eval_loss": self.before.loss})

    def __call__(self, step: int) -> None:
        """Look after a step, log it and say it, and keep the adapter. Raises ``UserError`` as ``keep``."""
        now = self.look()
        seen = {"eval_loss": self.judge.loss()} if self.judge.watched else {}
        self.run.log({"step": step} | asdict(now) | seen)
        said = f"preference loss {seen['eval_loss']:.4f}; " if seen else ""
        say(f"STEP {step}: {said}{now}")
        self.keep(now, f"after step {step}")

    def look(self) -> Vitals:
        """How the model writes now."""
        return look(
            self.model,
            self.tokenizer,
            self.template,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
        )

    def keep(self, now: Vitals, where: str) -> None:
        """Save the adapter into the run's folder. Raises ``UserError`` instead if it has gone bad."""
        self.guards.check(now, self.start, where)
        policy.save(self.model, self.tokenizer, self.run)

    def comparison(self) -> Comparison:
        """The start, which is its base, beside the model as it is now."""
        return self.judge.compare(self.before, self.judge())
