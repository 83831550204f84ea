"""What a run will need in memory, by name, before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ft.plan import answers, parts
from ft.plan import layers as blocks
from ft.plan.autograd import Mode
from ft.plan.shapes import Shape
from ft.text import batches
from ft.train import graphs

GIB, MIB = 2**30, 2**20
# Measured by benchmarks/memory.py with constraints.txt's CPU builds: resident bytes of a process that has
# imported torch, transformers and PEFT, of TRL and a trainer on top, of Gemma's tokenizer for each entry.
LIBRARIES = 400 * MIB
TRAINER = 100 * MIB
TOKENIZER = 1120
# oneDNN's and ideep's kernels of bf16 products, one for each shape: 64 stay in either cache, of about 1 MiB
# each. That size is assumed, as it brings the plans of runs on MTNT and Dolly nearest to their peaks.
KERNELS = 130 * MIB
CONTEXT = 600 * MIB  # what CUDA and its libraries take of a GPU before the first tensor; assumed


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
    passing: int = 0  # bytes that a row's CUDA graph holds once more; none where rows are no graphs
    staying: int = 0  # the others of a step

    def graphed(self, room: int) -> int:
        """Tokens of the largest row that is a CUDA graph on a GPU of ``room`` bytes, by training's own rule."""
        share = graphs.largest_share(room - CONTEXT - self.staying, self.passing)
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
    checkpointing: bool = False,
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
    rows (by default train.sft's), which with ``together`` are all there until one backward of all; ``supervised`` the
    largest share of a row that a loss is taken of; ``processes`` share gradients (by DDP, but where rows can be CUDA graphs) or,
    ``sharded``, everything (FSDP). Answers take no more than a third of what is left of a GPU's ``room`` (none: there is
    enough). What DoRA and Unsloth keep besides is not counted.
    """
    width = 4 if precision == "fp32" or (precision == "nf4" and not bf16) else 2
    row = row_length or batches.row_length(device)
    longest = sorted(lengths, reverse=True)[:batch] if lengths else [max_length] * batch
    passes = [[longest[i] for i in part] for part in batches.pack(longest, row)]
    several = packing and len(passes) > 1 or accumulation > 1
    rows = passes if together else [max(passes, key=sum)] if packing else [[longest[0]] * batch]
    product = 2 if autocast else width
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
    step = _Step(
        *(shape, mode, seen, 1 if packing else batch),
        optim=optim,
        device=device,
        checkpointing=checkpointing,
        passes="together" if together else "several" if several else "one",
        varied=len(set(lengths or ())) > 1,
        supervised=math.ceil(sum(seen) * supervised),
        processes=processes,
        sharded=sharded,
        packed=packing,
        evaluation=evaluation,
        room=room,
    )
    return _plan(step, precision=precision)


@dataclass(frozen=True)
class _Step:
    """A training step, by what its bytes depend on."""

    shape: Shape
    mode: Mode
    seen: Sequence[int]  # the lengths that attention sees at once
    rows: int
    optim: str
    device: str
    checkpointing: bool
    passes: str  # before the optimizer steps: a key of SCATTERED
    varied: bool  # rows of ever new lengths
    supervised: int  # tokens
    processes: int
    sharded: bool
    packed: bool
    evaluation: answers.Evaluation | None
    room: int | None

    @property
    def share(self) -> int:
        """How many processes hold the parameters together."""
        return self.processes if self.sharded else 1

    @property
    def graphs(self) -> bool:
        """Whether rows can be CUDA graphs: the rule of ``train.graphed.refusal``."""
        joint = not self.mode.full and not self.sharded and self.optim in ("adamw", "sgd")
        dropped = self.checkpointing and self.mode.dropout
        able = self.packed and not self.shape.top_k_experts and not dropped
        return self.device == "cuda" and able and (self.processes == 1 or joint)

    @property
    def gradients(self) -> int:
        width = self.mode.width if self.mode.full else 4
        return parts.trained(self.shape, self.mode) * width // self.share

    @property
    def start(self) -> dict[str, int]:
        """What is there before the model."""
        if self.device == "cuda":
            return {"CUDA context": CONTEXT}
        return {"libraries": LIBRARIES + TRAINER, "tokenizer": self.shape.vocab_size * TOKENIZER}

    @property
    def base(self) -> dict[str, int]:
        """The model as it is loaded, whole in each process."""
        return parts.weights(self.shape, self.mode, towers=self.mode.full)


def _plan(step: _Step, *, precision: str) -> Plan:
    training = _moments(step)
    fullest = max(training.values(), key=lambda named: sum(named.values()))
    passing = _passing(step, fullest)
    moments = training | _answering(step, training["in the loss"]["fragmentation"])
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    most: dict[str, int] = {}
    for named in moments.values():
        most |= {name: max(size, most.get(name, 0)) for name, size in named.items()}
    shape, mode = step.shape, step.mode
    return Plan(
        device=step.device,
        precision=precision,
        product=mode.product,
        moment=moment,
        parts=tuple((name, size) for name, size in moments[moment].items() if size),
        most=tuple((name, size) for name, size in most.items() if size),
        parameters=sum(blocks.count(shape)) + shape.towers * mode.full,
        trained=parts.trained(shape, mode),
        tokens=sum(step.seen),
        flops=parts.flops(shape, mode),
        layers=shape.num_hidden_layers,
        checkpointing=step.checkpointing,
        passing=passing,
        staying=_allocated(fullest) - passing,
    )


def _passing(step: _Step, named: Mapping[str, int]) -> int:
    """What of a moment's bytes a CUDA graph of a row has of its own; none where rows are no graphs."""
    if not step.graphs:
        return 0
    stays = {*_always(step), "gradients", "fragmentation"}
    return sum(size for name, size in named.items() if name not in stays)


def _always(step: _Step) -> dict[str, int]:
    """What a step has from its beginning to its end."""
    shape, mode = step.shape, step.mode
    found = step.start | {name: size // step.share for name, size in step.base.items()}
    if step.sharded and (whole := parts.constants(shape, mode)):
        packed = step.base[parts.BASE[0]]
        found[parts.BASE[0]] = (packed - whole) // step.share + whole
    trained = parts.trained(shape, mode)
    found["LoRA weights, fp32"] = 0 if mode.full else trained * 4 // step.share
    if mode.fused and mode.product == 2 and not mode.full and not step.sharded:
        found["LoRA weights, cast"] = trained * 2
    found[f"optimizer states, {step.optim}"] = parts.states(shape, mode, step.optim) // step.share
    if step.processes > 1 and not step.sharded and not step.graphs:
        found["DDP buckets"] = step.gradients
    if step.device == "cpu" and step.varied and mode.product == 2:
        found["kernels, by shape"] = KERNELS
    if step.sharded:
        root = sum(size for name, size in step.base.items() if "layers" not in name)
        found["FSDP, gathered layers"] = root + 2 * parts.layer_weights(shape, mode)
    return found


def _moments(step: _Step) -> dict[str, dict[str, int]]:
    """Named bytes at each moment that may be the peak."""
    shape, mode, always = step.shape, step.mode, _always(step)
    layers, passing, whole = parts.activations(
        shape, mode, step.seen, step.rows, checkpointing=step.checkpointing
    )
    scattered = parts.SCATTERED["gpu" if step.device == "cuda" else step.passes]
    kept = always | {
        "activations": layers,
        "attention masks": parts.masks(shape, mode, step.seen),
        "attention scores in flight": parts.scores(shape, mode, step.seen),
        "dequantised layer in flight": parts.largest(shape, mode, joined=step.device == "cuda"),
        "fragmentation": int(scattered[step.checkpointing] * whole),
    }
    # all parameters' gradients arrive as the activations go, unless they are there, as graphs need them
    if step.passes == "several" or not mode.full or step.graphs:
        kept["gradients"] = step.gradients
    # of the head and of the embedding, which are one
    tied = shape.vocab_size * shape.hidden_size * mode.width if mode.full else 0
    moments = {
        "in the loss": kept
        | {
            "loss of the head": parts.head(shape, mode, step.supervised, step.device),
            "gradient of the head": tied,
            "backward of one layer": passing * step.graphs,  # whose memory is its graph's
        },
        "in the backward": kept
        | {
            "backward of one layer": passing,
            "gradient of the head": 2 * tied,  # and scaled
        },
        "at the end of the backward": always
        | {
            # an adapter's are added to those of earlier rows when all are there
            "gradients": step.gradients * (2 if step.graphs and not mode.full else 1),
            "gradient of the embedding": tied * (2 if step.passes == "several" else 1),
        },
    }
    if step.device == "cpu":
        moments["while it loads"] = _loading(step)
    return moments


def _answering(step: _Step, fragmentation: int) -> dict[str, dict[str, int]]:
    """The moments of an evaluation, when optimizer, gradients and activations are gone."""
    if not step.evaluation:
        return {}
    held = _always(step) | {f"optimizer states, {step.optim}": 0, "DDP buckets": 0}
    if step.device == "cpu":  # the holes that training left stay, and every length has kernels
        held["fragmentation"] = fragmentation
        held["kernels, by shape"] = KERNELS * (step.mode.width == 2)
    free = (step.room or 2**60) - sum(held.values())
    attention = parts.attention(step.shape, step.device, packing=False)
    found = answers.moments(step.shape, step.mode, step.evaluation, step.device, attention, free)
    return {name: held | named for name, named in found.items()}


def _loading(step: _Step) -> dict[str, int]:
    """A file of another dtype is mapped while it is converted; of the same one it is the model."""
    shape, mode = step.shape, step.mode
    number = sum(blocks.count(shape)) + shape.towers
    converted = mode.quantized or mode.width != shape.stored
    extra = {"checkpoint, mapped": number * shape.stored} if converted else {}
    if mode.quantized:  # freed one by one, between what stays
        matrices = blocks.matrices(shape)
        extra["linear layers before quantisation"] = sum(m.numbers for m in matrices) * mode.width
    return step.start | {"libraries": LIBRARIES} | step.base | extra
