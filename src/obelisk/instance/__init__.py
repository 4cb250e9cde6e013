"""Instances of images, and the services that they make up."""
