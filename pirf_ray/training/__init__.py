"""One fine-tuning run: settings, presets, checks, run directory, guard, loop."""
