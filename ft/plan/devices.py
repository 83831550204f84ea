"""What a run is planned for: this machine's GPU or processor, a card of the table, or a size of memory."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

from ft import machine
from ft.errors import UserError, nearest
from ft.models import precision
from ft.plan.moments import CONTEXT, GIB, MIB

# Memory in GiB as `nvidia-smi` shows it (error correction takes a sixteenth of GDDR6 where it is always on), and
# dense bf16 TFLOP/s with float32 sums as NVIDIA states it (a rate "with sparsity" halved), of NO_BF16 float16's:
# whitepapers of GA102 (rtx3090, a6000), Ada (appendix A: rtx4080, rtx4090) and RTX Blackwell (rtx5090), data
# sheets of P100 PCIe, V100 SXM2, T4, A10, A10G (AWS), L4, L40S, A100, H100 SXM and H200 SXM. GeForce cards and
# the A10G reach half the rate of their chip with float32 sums. Last the rate of float32, which PyTorch keeps whole.
CARDS = {
    "p100": (16, 18.7, 9.3),
    "v100": (16, 125.0, 15.7),
    "v100-32gb": (32, 125.0, 15.7),
    "t4": (15, 65.0, 8.1),
    "rtx3090": (24, 71.0, 35.6),
    "rtx4080": (16, 97.5, 48.7),
    "rtx4090": (24, 165.2, 82.6),
    "rtx5090": (32, 209.5, 104.8),
    "a10": (22.5, 125.0, 31.2),
    "a10g": (22.5, 70.0, 35.0),
    "a6000": (48, 154.8, 38.7),
    "l4": (22.5, 121.0, 30.3),
    "l40s": (45, 362.0, 91.6),
    "a100": (40, 312.0, 19.5),
    "a100-80gb": (80, 312.0, 19.5),
    "h100": (80, 989.4, 66.9),
    "h200": (141, 989.4, 66.9),
}
# 4-bit weights multiply in float16, all else is float32
NO_BF16 = ("p100", "v100", "v100-32gb", "t4")
# words of names that are not the table's card
OTHERS = {"laptop", "max", "mobile", "super", "ti", "d", "nvl"}
SLOWER_BY_PCIE = {"h100", "h200"}


@dataclasses.dataclass(frozen=True)
class Device:
    """One process's share of a machine."""

    kind: Literal["cpu", "cuda"]
    room: int  # bytes: a card's, or those free here
    bf16: bool  # whether it computes in bfloat16 where it may choose
    card: str | None = None  # one of CARDS, whose rates are known
    here: str = ""  # its name, of this machine's

    @property
    def options(self) -> dict[str, Any]:
        """What ``settings.of`` takes of it; here the processes that were launched share it."""
        found: dict[str, Any] = {"device": self.kind, "bf16": self.bf16, "room": self.room}
        if self.here and self.kind == "cuda":
            found["ram"] = machine.free_ram()
        return found | (machine.launched() if self.here else {})

    def __str__(self) -> str:
        """``24.0 GiB``, and where they are."""
        return f"{self.room / GIB:.1f} GiB" + f" free here, on the {self.here}" * bool(self.here)


def named(text: str, flag: str) -> Device:
    """The GPU that is asked for as ``24GB``, or as one of ``CARDS``. Raises ``UserError`` for what is neither."""
    if text in CARDS:
        return Device("cuda", int(CARDS[text][0] * GIB), text not in NO_BF16, text)
    if text[:1].isalpha():
        raise UserError(
            f"{flag} {text}: no such card; known: {', '.join(CARDS)}, or a size such as 24GB."
            + nearest(text, CARDS)
        )
    return Device("cuda", size_of(text, flag), True)


def cpu() -> Device:
    """This machine's processor."""
    import psutil

    # a plan counts this process, but not the files that it reads
    mine = psutil.Process().memory_info()
    room = machine.free_ram() + mine.rss - getattr(mine, "shared", 0)
    return Device("cpu", room, machine.fast_bf16(), None, "CPU")


def here() -> Device:
    """What training takes on this machine: a GPU where PyTorch finds one, else the processor."""
    if not _has_driver():
        return cpu()
    import torch

    on = machine.here()
    if not on.device.startswith("cuda"):
        why = f"CPU, as PyTorch {torch.__version__} finds no GPU, though the driver of one is here"
        return dataclasses.replace(cpu(), here=why)
    precision.check_gpu(on)
    free, total = torch.cuda.mem_get_info()
    # a plan counts what this process has by now, the context too
    room = free + torch.cuda.memory_reserved() + CONTEXT
    return Device("cuda", room, on.bf16, card_of(on.name, total), on.name)


def _has_driver() -> bool:
    """Whether a GPU may be found. PyTorch knows, and takes seconds to import."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if os.name == "nt":
        return Path(os.environ.get("SYSTEMROOT", "C:/Windows"), "System32/nvcuda.dll").exists()
    nvidia = any(Path("/dev").glob("nvidia[0-9]*"))
    return nvidia or os.path.exists("/dev/dxg") or os.path.exists("/dev/kfd")  # WSL, AMD


def card_of(name: str, total: int) -> str | None:
    """Which of ``CARDS`` a GPU is, by its name and bytes; none where it is another, or a slice of one."""
    joined = name.lower().replace("rtx a", "a").replace("rtx ", "rtx")  # RTX A6000, RTX 4090
    words = {*joined.replace("-", " ").split()}
    kin = [card for card in CARDS if card.partition("-")[0] in words]
    if not kin or words & OTHERS or "pcie" in words and words & SLOWER_BY_PCIE:
        return None
    card = min(kin, key=lambda each: abs(CARDS[each][0] - total / GIB))
    return card if abs(total / GIB / CARDS[card][0] - 1) < 0.1 else None


def size_of(text: str, flag: str) -> int:
    """Bytes of ``24GB``, ``24GiB``, ``24G`` or ``900MB``; 2^30 to the GB, as makers of cards count."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM])i?B?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"{flag} {text}: not a size of memory; write it as 24GB or 900MB")
    return int(float(found[1]) * (GIB if found[2].upper() == "G" else MIB))
