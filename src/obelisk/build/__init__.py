"""From spec to sealed image: lock, assemble, seal, describe."""
