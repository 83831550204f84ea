"""What a run will need in memory, by name, before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ft.plan import answers, moments, parts
from ft.plan import layers as blocks
from ft.plan.autograd import Mode
from ft.plan.moments import CONTEXT, GIB
from ft.plan.shapes import Shape
from ft.text import batches
from ft.train import graph_room


@dataclass(frozen=True)
class Plan:
    """Named bytes: ``parts`` add up to the peak, at its moment; ``most`` has each at its own highest."""

    device: str  # "cpu" or "cuda"
    precision: str  # of the base
    product: int  # bytes of what a matrix product returns
    moment: str
    parts: tuple[tuple[str, int], ...]
    most: tuple[tuple[str, int], ...]
    parameters: int
    trained: int
    tokens: int  # in one pass through the model
    flops: tuple[float, float]  # a training step's, per token and per supervised token
    layers: int  # of the language model
    checkpointing: bool = False  # activations are computed again
    aside: int = 0  # bytes that they are computed from in the processor's memory, where they are not on the GPU
    forwards: int = 0  # of a row without gradients, beside that which it learns by
    passing: int = 0  # bytes that a row's CUDA graph holds once more; none where rows are no graphs
    staying: int = 0  # the others of a step

    def graphed(self, room: int) -> int:
        """Tokens of the largest row that is a CUDA graph on a GPU of ``room`` bytes, by training's own rule."""
        share = graph_room.largest_share(room - CONTEXT - self.staying, self.passing)
        return int(max(0, share) * self.tokens) if self.passing else 0

    @property
    def peak(self) -> int:
        """Bytes of the process on a CPU; on a GPU, of the card."""
        return sum(size for _, size in self.parts)

    @property
    def allocated(self) -> int:
        """The part that ``torch.cuda.max_memory_allocated`` counts, of a GPU."""
        return _allocated(dict(self.parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        named = {"parts": dict(self.parts), "most": dict(self.most)}
        return asdict(self) | named | {"peak": self.peak}

    def __str__(self) -> str:
        """A table of both, and the peak with its moment."""
        now = dict(self.parts)
        lines = [f"  {'GiB':<40}{'at most':>9}{'at the peak':>13}"]
        for name, size in self.most:
            peak = f"{now[name] / GIB:>13.3f}" if name in now else f"{'':>13}"
            lines.append(f"  {name:<40}{size / GIB:>9.3f}{peak}")
        where = "process" if self.device == "cpu" else "GPU"
        lines.append(f"  {f'peak of the {where}, {self.moment}':<49}{self.peak / GIB:>13.3f}")
        return "\n".join(lines)


def _allocated(named: Mapping[str, int]) -> int:
    outside = ("CUDA context", "fragmentation")
    return sum(size for name, size in named.items() if name not in outside)


def plan_of(
    shape: Shape,
    *,
    precision: str,
    lora_r: int,
    optim: str,
    batch: int,
    max_length: int,
    lengths: Sequence[int] | None = None,
    device: str = "cpu",
    lora_dropout: float = 0.0,
    targets: Sequence[str] = ("auto",),
    packing: bool = True,
    row_length: int | None = None,
    together: bool = False,
    forwards: int = 0,
    checkpointing: bool = False,
    offloading: bool = False,
    accumulation: int = 1,
    autocast: bool = False,
    supervised: float = 1.0,
    bf16: bool = True,
    processes: int = 1,
    sharded: bool = False,
    evaluation: answers.Evaluation | None = None,
    room: int | None = None,
) -> Plan:
    """The plan of a training run and its ``evaluation``; ``lora_r`` 0 trains all parameters.

    ``precision`` is fp32, bf16 or nf4, which computes in bf16 where ``bf16``; ``batch`` a number of
    examples, the longest of ``lengths``, or all of ``max_length`` tokens; ``row_length`` that of packed
    rows (by default train.sft's), which with ``together`` are all there until one backward of all; ``forwards``
    go through each row without gradients besides; ``offloading`` keeps what ``checkpointing`` starts from in the
    processor's memory; ``supervised`` is the largest share of a row that a loss is taken of; ``processes`` share
    gradients (by DDP, but where rows can be CUDA graphs) or, ``sharded``, everything (FSDP). Where a GPU's ``room``
    (none: there is enough) does not hold the largest row's CUDA graphs, it is launched; answers take no more than a
    third of what is left. What DoRA and Unsloth keep besides is not counted.
    """
    width = 4 if precision == "fp32" or (precision == "nf4" and not bf16) else 2
    longest = sorted(lengths, reverse=True)[:batch] if lengths else [max_length] * batch
    row = row_length or batches.row_length(device)
    passes = [[longest[i] for i in part] for part in batches.pack(longest, row)]
    product = 2 if autocast else width
    several = packing and len(passes) > 1 or accumulation > 1
    rows = passes if together else [max(passes, key=sum)] if packing else [[longest[0]] * batch]
    mode = Mode(
        full=lora_r == 0,
        rank=lora_r,
        width=width,
        product=product,
        quantized=precision == "nf4",
        dropout=lora_dropout > 0,
        lean=device == "cpu" and lora_r > 0 and width == 4 and not autocast,
        fused=device == "cuda",
        attention=parts.attention(shape, device, packing=packing, half=bf16 and product == 2),
        targets=None if tuple(targets) in (("auto",), ("all-linear",)) else tuple(targets),
    )
    across = mode.attention in ("masked", "eager") and packing  # examples of a row
    seen = [sum(row) for row in rows] if across else [n for row in rows for n in row]
    step = moments.Step(
        *(shape, mode, seen, 1 if packing else batch, optim, device),
        checkpointing=checkpointing,
        offloading=offloading,
        passes="together" if together else "several" if several else "one",
        varied=len(set(lengths or ())) > 1,
        supervised=math.ceil(sum(seen) * supervised),
        processes=processes,
        sharded=sharded,
        packed=packing,
        evaluation=evaluation,
        room=room,
        forwards=forwards,
    )
    plan = _plan(step, precision=precision)
    if room is None or not step.graphs or plan.graphed(room) >= plan.tokens and plan.peak <= room:
        return plan
    launched = _plan(replace(step, launched=True), precision=precision)
    return replace(
        launched, passing=plan.passing, staying=plan.staying
    )  # shorter rows may be graphs


def _plan(step: moments.Step, *, precision: str) -> Plan:
    training = moments.training(step)
    fullest = max(training.values(), key=lambda named: sum(named.values()))
    passing = moments.passing_of(step, fullest)
    at = training | moments.answering(step, training["in the loss"]["fragmentation"])
    moment = max(at, key=lambda name: sum(at[name].values()))
    most: dict[str, int] = {}
    for named in at.values():
        most |= {name: max(size, most.get(name, 0)) for name, size in named.items()}
    shape, mode = step.shape, step.mode
    return Plan(
        device=step.device,
        precision=precision,
        product=mode.product,
        moment=moment,
        parts=tuple((name, size) for name, size in at[moment].items() if size),
        most=tuple((name, size) for name, size in most.items() if size),
        parameters=sum(blocks.count(shape)) + shape.towers * mode.full,
        trained=parts.trained(shape, mode),
        tokens=sum(step.seen),
        flops=parts.flops(shape, mode),
        layers=shape.num_hidden_layers,
        checkpointing=step.checkpointing,
        aside=parts.inputs(shape, mode, step.seen) if step.offloading else 0,
        forwards=step.forwards,
        passing=passing,
        staying=_allocated(fullest) - passing,
    )
