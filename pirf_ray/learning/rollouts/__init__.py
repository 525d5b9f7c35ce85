"""What the learner learns from: prefixes, their plan, and who makes them."""
