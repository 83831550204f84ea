"""The same numbers as PyTorch, PEFT and bitsandbytes give, faster."""
