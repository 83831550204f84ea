"""What every peer shares: its job, its pipe to the driver, and a callback that waits there."""

import dataclasses
import json
import os
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "unsloth", "unsloth_zoo")
PACKAGES += ("bitsandbytes", "keras", "jax", "llama_cpp_python")


@dataclasses.dataclass(frozen=True)
class Job:
    """What one worker is to do: a JSON file that the driver names on the command line."""

    model: str  # Hugging Face folder of the base model
    adapter: str  # PEFT folder: the adapter's settings and its initial weights
    rows: str  # JSON lines with "input_ids" and "labels", in training order
    output: str  # folder for whatever the peer insists on writing
    precision: str  # "fp32", "nf4", or "auto": what the peer chooses by itself
    batch_size: int  # examples per optimizer step
    steps: int
    learning_rate: float
    max_length: int  # tokens; no row is longer
    device: str = "cpu"  # or "cuda"
    # of ft's recipe; the others keep their own
    optim: str = "adamw"
    gradient_checkpointing: Any = False

    def read_rows(self) -> list[dict[str, list[int]]]:
        """The encoded examples, in training order."""
        return [json.loads(line) for line in Path(self.rows).read_text().splitlines()]

    def lora(self) -> dict[str, Any]:
        """The adapter's settings by their PEFT names."""
        config = json.loads((Path(self.adapter) / "adapter_config.json").read_text())
        return {k: config[k] for k in ("r", "lora_alpha", "lora_dropout", "target_modules")}

    def trainer_arguments(self) -> Any:
        """Where all leave their defaults: constant rate, rows in order, no clipping, no saving.

        TRL and Unsloth decide about bf16 by themselves unless the precision is "fp32".
        """
        precision = {"bf16": False} if self.precision == "fp32" else {}
        return precision | {
            "output_dir": self.output,
            # without it TRL's default, bf16, is refused where there is no GPU
            "use_cpu": self.device == "cpu",
            "per_device_train_batch_size": self.batch_size,
            "max_steps": self.steps + 1,  # the pipe closes before the last one
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1e9,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
        }


class Pipe:
    """JSON lines on standard input and output; whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started: tuple[float, float] | None = None

    def wait(self, **result: float) -> None:
        """Report the step since the last call, if there was one, then sleep until the next is due.

        A step lasts from one call to the next, so fetching a batch and logging are counted. The
        process ends here when the driver closes the pipe. ``peak_mib`` is of the process so far; on a
        GPU of the tensors since the last call.
        """
        report: dict[str, Any] = {"peak_mib": peak_mib()}
        if self._started is None:
            report["versions"] = versions()
        else:
            report["wall_s"] = time.perf_counter() - self._started[0]
            report["cpu_s"] = _cpu_seconds() - self._started[1]
        print(json.dumps(report | result), file=self._out, flush=True)
        if not sys.stdin.readline():
            self._out.close()
            raise SystemExit(0)
        self._started = time.perf_counter(), _cpu_seconds()


def open_job() -> tuple[Job, Pipe]:
    """The job named on the command line, and the pipe. Call before importing what might print."""
    return Job(**json.loads(Path(sys.argv[1]).read_text())), Pipe()


def step_callback(pipe: Pipe) -> Any:
    """A ``TrainerCallback`` that waits before each step and reports loss and gradient norm."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        last: dict[str, float] = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.wait(**self.last)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            self.last = {k: float(logs[k]) for k in ("loss", "grad_norm") if k in logs}

    return Steps()


def load_adapter(model: Any, folder: str) -> None:
    """Put the common initial weights into a ``PeftModel`` that has just been made."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(Path(folder) / "adapter_model.safetensors"))
    assert not result.unexpected_keys, result.unexpected_keys


def peak_mib() -> float:
    """Most memory of this process so far; on a GPU of the tensors since the last call."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def _cpu_seconds() -> float:
    """User and system time of all threads of this process and of its finished children."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def versions() -> dict[str, str]:
    """Of Python and of the packages that peers are made of, where they are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
