"""The local content-addressed store: packages, cached steps, images, proofs; garbage collection and verification."""

from obelisk.store.collect import Collected, Freed
from obelisk.store.images import StoredImage
from obelisk.store.refs import Ref
from obelisk.store.store import Store
from obelisk.store.verify import Damage

__all__ = ["Collected", "Damage", "Freed", "Ref", "Store", "StoredImage"]
