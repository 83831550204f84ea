"""A run's folder: written, resumed, opened again, described, merged, shared."""
