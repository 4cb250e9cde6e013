"""Instances of images, on this machine and on hosts, and the services that they make up."""
