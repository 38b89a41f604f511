"""Runs a trial on this machine, without Determined: one process, or several under torchrun."""
