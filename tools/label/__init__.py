"""The labelling page; `python -m tools.label RUN` serves it."""
