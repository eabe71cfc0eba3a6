"""The viewer: maps and photos to look at, in a notebook or as a page of their own."""
