"""How a row reads, and the ids it becomes."""
