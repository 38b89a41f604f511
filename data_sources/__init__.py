"""Where images come from: one file per source, each returning plain numpy arrays (`RawSplits`)."""
