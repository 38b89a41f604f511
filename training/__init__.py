"""How the network is trained and measured: hyperparameters, seeds, batches, rates and metrics."""
