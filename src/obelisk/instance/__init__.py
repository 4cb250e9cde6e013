"""Instances: what runs from images, as VMs. Here: on hosts that a libvirt daemon looks after, and from one of them to another."""
