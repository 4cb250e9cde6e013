"""Images made available: how their blocks are stored, how they travel, and who may say that they are good.

`client` is the hosts' half; what is beside it runs where releases are made. Files of a repository are immutable and named by their
content, so that any web server can keep them and any number of releases share them.
"""
