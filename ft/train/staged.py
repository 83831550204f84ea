"""Checkpoints that are complete or absent, for transformers' trainers and TRL's: written beside their place, then moved."""

import shutil
from pathlib import Path
from typing import Any

from ft.runs import checkpoints


class Staged:
    """What goes in front of a trainer's class so that its ``checkpoint-N`` is never half there."""

    args: Any
    state: Any
    accelerator: Any
    fingerprint: dict[str, Any]  # what must be the same where a run goes on
    best_step: int | None = None  # whose checkpoint stays, whatever comes after
    staging = ""

    def _get_output_dir(self, trial: Any) -> str:
        return self.staging or str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name, folder = f"checkpoint-{self.state.global_step}", Path(self.args.output_dir)
        staging = folder / ".staging"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        self.accelerator.wait_for_everyone()
        self.staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            self.staging = ""
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # a pickle that no one reads
                (staging / name / "training_args.bin").unlink(missing_ok=True)
                also = () if self.best_step is None else (self.best_step,)
                checkpoints.keep(staging / name, folder / name, self.fingerprint, also)
        finally:
            self.staging = ""
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
