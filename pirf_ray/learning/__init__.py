"""The mathematics of one update: objectives, regularizers, parameters, rollouts. No files, no Ray."""
