"""Runs a trial on a Determined cluster. Only this package imports `determined`."""
