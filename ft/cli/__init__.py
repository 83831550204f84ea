"""The verbs of the `ft` command, one file each."""
