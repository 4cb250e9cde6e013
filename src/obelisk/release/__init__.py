"""How images are made available, trusted and delivered: keys, the repository, and the ways of their blocks to hosts."""
