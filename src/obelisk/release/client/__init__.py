"""The part of releases that is on every host: what it lacks of an image, where that lies in a repository, and how it gets into a slot.

It ships in images, so it needs nothing but Python's own library, and trusts nothing but the root hash.
"""
