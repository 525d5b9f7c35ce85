"""What is measured of sample sets: pure functions and typed results."""
