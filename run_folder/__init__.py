"""What a run leaves on disk: the run folder, its checkpoints and its tables.

names.py       file names and the format's version
description.py run.json: what a run is about
tables.py      metrics.csv and queries.csv
checkpoint.py  writes and restores one checkpoint
writer.py      the run folder of a local run
reader.py      opens a run folder or a checkpoint for the tools
"""
