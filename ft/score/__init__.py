"""How good: base beside tuned, each number with its interval."""
