"""The part of releases that goes to hosts: trust, and how blocks get there. It needs Python's standard library and what images have."""
