"""Fine-tune Google's Gemma models with PyTorch and the Hugging Face stack."""

import os
import sys

__version__ = "0.1.0"

# Nothing goes out unasked: what a library would report of this machine, of its versions and of the run. Read
# when that library is imported, so it is said here, before any of them; who wants to report sets the other value.
for _name, _value in (
    (
        "HF_HUB_DISABLE_TELEMETRY",
        "1",
    ),  # huggingface_hub, and through it transformers, TRL, datasets
    ("DO_NOT_TRACK", "1"),
    ("UNSLOTH_DISABLE_STATISTICS", "1"),
    ("GRADIO_ANALYTICS_ENABLED", "False"),  # trackio
):
    os.environ.setdefault(_name, _value)
if _hub := sys.modules.get(
    "huggingface_hub.constants"
):  # imported before ft, by a program that uses it
    _hub.HF_HUB_DISABLE_TELEMETRY = os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"  # type: ignore
