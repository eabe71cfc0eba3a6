"""Installed as `gradlight.explainers`: the mathematics. Knows torch; opens no file, knows no model zoo."""
