"""The regularizers, which hold the tuned model near the base model."""
