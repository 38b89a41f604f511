"""What people run beside a trial: python -m tools.NAME. Nothing here imports determined."""
