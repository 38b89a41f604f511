"""Trains and measures the network: settings, seeds, batches, augmentation, scoring and metrics."""
