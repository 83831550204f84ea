"""Fine-tune Google's Gemma models with PyTorch and the Hugging Face stack."""

import os
import sys

__version__ = "0.1.0"

# Nothing goes out unasked: what a library would report of this machine, of its versions and of the run. Each
# reads it when it is imported, so it is said here, before any of them; who wants to report sets the other value.
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers, TRL and datasets
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",  # trackio
}
# of a program that imported the Hub's client before ft
if "HF_HUB_DISABLE_TELEMETRY" not in os.environ and (
    _hub := sys.modules.get("huggingface_hub.constants")
):
    _hub.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore
os.environ |= _QUIET | os.environ
