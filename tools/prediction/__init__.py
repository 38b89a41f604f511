"""What `tools.predict` is made of: predictor, stream of files, writers."""
