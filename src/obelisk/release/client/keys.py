"""Public keys of TUF's metadata on hosts: their signatures are checked by OpenSSL's library, without a Python package for that."""

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Signature, SSlibKey

from obelisk.system import libcrypto


class HostKey(SSlibKey):
    """A key whose signatures libcrypto checks: Ed25519, ECDSA over P-256, or RSA-PSS with SHA-256."""

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raise securesystemslib's UnverifiedSignatureError unless the signature is this key's; see `Key.verify_signature`."""
        public = self.keyval["public"]
        try:
            key = bytes.fromhex(public) if self.scheme == libcrypto.Scheme.ED25519 else public.encode()
            verified = libcrypto.verify(key, libcrypto.Scheme(self.scheme), bytes.fromhex(signature.signature), data)
        except ValueError as error:
            message = f"key {self.keyid} cannot verify anything: {error}"
            raise VerificationError(message) from error
        if not verified:
            message = f"signature of key {self.keyid} is wrong"
            raise UnverifiedSignatureError(message)


_SCHEMES = (
    ("ed25519", libcrypto.Scheme.ED25519),
    ("ecdsa", libcrypto.Scheme.ECDSA_P256),
    ("ecdsa-sha2-nistp256", libcrypto.Scheme.ECDSA_P256),  # as older metadata names the kind of key
    ("rsa", libcrypto.Scheme.RSA_PSS),
)


def register() -> None:
    """Have all signatures of this process checked so, and no others accepted."""
    KEY_FOR_TYPE_AND_SCHEME.clear()
    KEY_FOR_TYPE_AND_SCHEME.update({(kind, scheme.value): HostKey for kind, scheme in _SCHEMES})
