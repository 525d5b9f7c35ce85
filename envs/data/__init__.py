"""HDF5 files of fields: written, validated, read, and imported from other codes."""
