"""How an image's partitions are found: their ids follow from the root hash. Source: UAPI.2 Discoverable Partitions Specification."""

from uuid import UUID


def partition_uuids(root_hash: str) -> tuple[UUID, UUID]:
    """The ids of root and verity partition: the first 128 bits of the root hash, and the last."""
    return UUID(root_hash[:32]), UUID(root_hash[-32:])
