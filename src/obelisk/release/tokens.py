"""Keys on PKCS#11 tokens, by securesystemslib and python-pkcs11, which is an extra: `obelisk[pkcs11]`.

A token's module is a library that $PYKCS11LIB names. A key there is ECDSA on P-256, found by its id, a number.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from obelisk.errors import InputError, MissingFeatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from securesystemslib.signer import Signer, SSlibKey

Pin = Callable[[], bytes]
"""Asks for the token's PIN."""


def public_half(token: str, pin: Pin) -> tuple[str, "PublicKeyTypes"]:
    """How to find the key that `token` names (`ID` or `ID?label=TOKEN`), and its public half.

    Raises:
        InputError: the token or the key is not there.
        MissingFeatureError: the library for tokens is not installed.
    """
    from securesystemslib.exceptions import UnsupportedLibraryError  # noqa: PLC0415 - slow to import
    from securesystemslib.signer import HSMSigner  # noqa: PLC0415

    number, _, label = token.partition("?label=")
    if not number.isdecimal():
        raise InputError(f"{token!r} names no key of a token", code="token", hint="ID or ID?label=TOKEN, such as 2?label=obelisk")
    try:
        uri, public = HSMSigner.import_(int(number), label or None, lambda _message: pin().decode())
    except UnsupportedLibraryError as error:
        raise MissingFeatureError(
            "keys on tokens need the package python-pkcs11", code="token-library", hint="install obelisk[pkcs11]"
        ) from error
    except Exception as error:
        raise InputError(
            f"the token has no such key: {str(error) or type(error).__name__}",
            code="token",
            hint="$PYKCS11LIB names the token's module; the key is one of ECDSA on P-256",
        ) from error
    return uri, public._crypto_key()  # noqa: SLF001 - there is no other way to it


def signer(uri: str, public: "SSlibKey", pin: Pin) -> "Signer":
    """Signs with a key of a token; the token is asked only then.

    Raises:
        InputError: `uri` names none.
    """
    from securesystemslib.signer import HSMSigner  # noqa: PLC0415 - slow to import

    try:
        return HSMSigner.from_priv_key_uri(uri, public, lambda _message: pin().decode())
    except ValueError as error:
        raise InputError(f"{uri!r} names no key of a token: {error}", code="token", hint="restore the .pkcs11 file") from error
