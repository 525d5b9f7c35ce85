"""What the commands share: flags, errors, progress, tables."""
