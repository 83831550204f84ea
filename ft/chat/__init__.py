"""Talk, at a terminal or over HTTP."""
