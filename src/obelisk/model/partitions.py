"""How an image's partitions are found: their ids follow from the root hash. Source: UAPI.2 Discoverable Partitions Specification."""

from uuid import UUID

LABEL_CHARACTERS = 36
"""The most that a GPT partition's label holds. Source: UEFI specification 2.10, table 5-6."""


def partition_uuids(root_hash: str) -> tuple[UUID, UUID]:
    """The ids of root and verity partition: the first 128 bits of the root hash, and the last."""
    return UUID(root_hash[:32]), UUID(root_hash[-32:])


def tree_label(label: str) -> str:
    """The label of the verity partition of the image `label`: as much as a partition's label can hold."""
    return f"{label}_verity"[:LABEL_CHARACTERS]
