"""Fine-tune Google's Gemma models with PyTorch and the Hugging Face stack."""

__version__ = "0.1.0"
