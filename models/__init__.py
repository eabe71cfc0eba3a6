"""Installed as `gradlight.models`: the adapters. Everything that differs between networks ends here."""
