"""Installed as `gradlight.explainers`: the mathematics. Needs torch alone; opens no file and loads no network."""
