"""Installed as `gradlight.data`: bytes on disk. Imports nothing of ours but the error class."""
