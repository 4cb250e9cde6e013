"""Programs that run inside the tools tree, as its root: they see and change whole root trees. Standard library only.

Each reads one JSON document on standard input and says on standard output what came of it. An expected failure ends with status 3 and
one line `refused: code: message` on standard error.
"""
