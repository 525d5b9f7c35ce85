"""The benchmark: methods of the field on one base model, one solver and one noise, with equal budgets."""
