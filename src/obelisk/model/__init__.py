"""The nouns of Obelisk as frozen values: spec, lock, image, proof. No I/O happens here."""
