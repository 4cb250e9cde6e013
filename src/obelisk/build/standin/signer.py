"""`securesystemslib.signer` on hosts: what verification takes. Who signs, by whatever means, is left out.

The kinds of keys that count are registered by `obelisk.release.client.keys`.
"""

from securesystemslib.signer._key import KEY_FOR_TYPE_AND_SCHEME, Key, SSlibKey
from securesystemslib.signer._signature import Signature
from securesystemslib.signer._signer import SIGNER_FOR_URI_SCHEME, SecretsHandler, Signer

__all__ = ["KEY_FOR_TYPE_AND_SCHEME", "SIGNER_FOR_URI_SCHEME", "Key", "SSlibKey", "SecretsHandler", "Signature", "Signer"]
