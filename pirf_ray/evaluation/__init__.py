"""Evaluation: residuals against their data floors, fidelity to held-out solver data, re-solve; tables, report, sample files."""
