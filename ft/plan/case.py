"""What the checks of a run look at: its settings, data, model's files and encoded examples; and what each saw."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ft.data.rows import Rows
from ft.plan import devices
from ft.plan.devices import Device
from ft.plan.peak import Plan
from ft.plan.shapes import Shape
from ft.text.template import Template
from ft.text.tokens import Encoded

SAMPLE = 500  # rows of the training split that are encoded, but with --all
SEEN = Literal["ok", "WARN", "ERROR", "--"]


@dataclass(frozen=True)
class Seen:
    """What a check saw: ``ok``, a warning, an error, or ``--`` where it did not look."""

    status: SEEN
    name: str
    text: str

    def __str__(self) -> str:
        first, *more = self.text.splitlines() or [""]
        return "\n".join(
            [f"{self.status:<5} {self.name:<11} {first}", *(" " * 18 + x for x in more)]
        )


@dataclass
class Case:
    """A run that might be started. What checks find out, later ones use; none: it is not known."""

    settings: Mapping[str, Any]  # of the recipe, as config.to_dict gives them
    rows: Callable[[], Mapping[str, Rows]]
    reads: Callable[[Any], Template] | None  # how a row reads, of a tokenizer
    output_dir: Path
    encode: Callable[..., Encoded] | None = None  # of a recipe that has its own
    recipe: Path | None = None
    device: Device | None = None  # that it is planned for; none: this machine
    everything: bool = False  # encode all rows
    offline: bool = False
    splits: Mapping[str, Rows] | None = None
    doubles: tuple[int, int] | None = None  # of the splits, as ``data.doubles.doubles`` counts
    folder: Path | None = None  # of the model: configuration and tokenizer at least
    raw: dict[str, Any] | None = None  # its config.json
    shape: Shape | None = None
    tokenizer: Any = None
    template: Template | None = None
    sample: Mapping[str, Rows] | None = None
    encoded: dict[str, Encoded] | None = None  # of the sample, whatever its length
    plan: Plan | None = None
    to_fetch: int = 0  # bytes of weights that are not here yet
    proven: dict[str, Any] | None = None  # by ``check_weights``: what its numbers hold for

    @functools.cached_property
    def place(self) -> Device:
        """The device that it is planned for."""
        return self.device or devices.here()

    @property
    def model(self) -> str:
        """The base model as the settings name it; empty where they name none."""
        return str(self.settings.get("model_name_or_path") or "")

    @property
    def on_hub(self) -> bool:
        """Whether the model is neither a folder here nor one that is made here."""
        here = (
            self.model in ("", "embedded", "tiny-vision") or Path(self.model).expanduser().is_dir()
        )
        return not here and "/" in self.model

    @property
    def data_on_hub(self) -> bool:
        """Whether the data is a dataset of the Hub."""
        data = str(self.settings.get("data") or "")
        named = data.count("/") in (1, 2) and not Path(data).suffix and data[0] not in "./~"
        return named and not Path(data).expanduser().exists()

    @property
    def provable(self) -> bool:
        """Whether ``check_weights`` has something to say: a Gemma is fine-tuned on text."""
        return bool(self.encoded) and "lora_r" in self.settings

    @property
    def length(self) -> int | None:
        """The longest example that is kept, in tokens."""
        return self.settings.get("max_length")


def share(part: int, whole: int) -> str:
    """``12.4%``, and never 0% or 100% for a part that is not."""
    percent = 100 * part / max(whole, 1)
    if 0 < part < whole:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.0f}%" if percent in (0, 100) else f"{percent:.1f}%"


def some(places: Sequence[str], n: int = 3) -> str:
    """The first of some places, in brackets; nothing for none."""
    named = [place for place in places if place][:n]
    return f" ({', '.join(named)}{', …' * (len(places) > n)})" if named else ""


@contextlib.contextmanager
def no_network(when: bool) -> Iterator[None]:
    """While this lasts, nothing is asked of the Hub: what its cache has must do."""
    if not when:
        yield
        return
    import sys

    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    loaded = [sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config")]
    kept = [(module, module.HF_HUB_OFFLINE) for module in loaded if module]
    for module, _ in kept:
        module.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for module, value in kept:
            module.HF_HUB_OFFLINE = value  # pyright: ignore[reportAttributeAccessIssue]
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
