"""The run folder and all in it: config, provenance, checkpoints, metrics, samples, results."""
