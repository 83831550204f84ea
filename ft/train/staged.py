"""Checkpoints that are complete or absent, for transformers' trainers and TRL's: written beside their place, then moved."""

import os
import shutil
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.runs import checkpoints


class Staged:
    """What goes in front of a trainer's class so that its ``checkpoint-N`` is never half there."""

    args: Any
    state: Any
    accelerator: Any
    processing_class: Any
    fingerprint: dict[str, Any]  # what must be the same where a run goes on
    best_step: int | None = None  # whose checkpoint stays, whatever comes after
    staging = ""
    tokenizer_files: tuple[Path, ...] = ()  # of the checkpoint before

    def _get_output_dir(self, trial: Any) -> str:
        return self.staging or str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name, folder = f"checkpoint-{self.state.global_step}", Path(self.args.output_dir)
        staging = folder / ".staging"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        self.accelerator.wait_for_everyone()
        self.staging, tokenizer = str(staging), self.processing_class
        try:
            self.processing_class = None
            super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            self.staging = ""
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # a pickle that no one reads
                (staging / name / "training_args.bin").unlink(missing_ok=True)
                names = self._add(tokenizer, staging / name)
                also = () if self.best_step is None else (self.best_step,)
                checkpoints.keep(staging / name, folder / name, self.fingerprint, also)
                self.tokenizer_files = tuple(folder / name / each for each in names)
        finally:
            self.staging, self.processing_class = "", tokenizer
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on from a checkpoint: older transformers ask torch.load for ``cpu:0``, which it does not know."""
        import torch

        if self.args.device.type == "cpu":
            self.args.__dict__["_setup_devices"] = torch.device("cpu")
        try:
            super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        except ValueError as error:
            raise UserError(
                f"{checkpoint}: the optimizer's state does not fit ({error}), as it was kept by another "
                "version of ft; start without --resume"
            ) from None

    def _add(self, tokenizer: Any, made: Path) -> list[str]:
        """Put the tokenizer into a checkpoint and name its files, which are links to those of the one before.

        Training does not change it, and a Gemma's is 33 MB.
        """
        names = [file.name for file in self.tokenizer_files]
        try:
            for file in self.tokenizer_files:
                os.link(file, made / file.name)
        except OSError:  # deleted since, or a disk without links
            for name in names:
                (made / name).unlink(missing_ok=True)  # a link would be written through
            names = []
        if not names:
            before = {*made.iterdir()}
            tokenizer.save_pretrained(made)
            names = [file.name for file in {*made.iterdir()} - before]
        return names
