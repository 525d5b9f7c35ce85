"""HDF5 files of fields: writing, validation, reading, and import from other codes."""
