"""Compares finished runs: learning curves, areas, label savings and paired tests."""
