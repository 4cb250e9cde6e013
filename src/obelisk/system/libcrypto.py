"""Signatures, checked by OpenSSL's library: what images have of it anyway, without a Python package of its own.

Only public keys and only verification. SHA-256 and its like are `hashlib`'s. Source: EVP_DigestVerifyInit(3), EVP_PKEY_new(3).
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from enum import StrEnum
from functools import cache

from obelisk.errors import MissingFeatureError

_ED25519 = 1087  # NID_ED25519
_RSA = 6  # NID_rsaEncryption
_EC = 408  # NID_X9_62_id_ecPublicKey
_PSS_PADDING = 6  # RSA_PKCS1_PSS_PADDING
_ED25519_BYTES = 32
_P256 = b"prime256v1"


class Scheme(StrEnum):
    """How a signature is made, in the words of TUF's metadata."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-sha2-nistp256"
    RSA_PSS = "rsassa-pss-sha256"


_KINDS = {Scheme.ED25519: _ED25519, Scheme.ECDSA_P256: _EC, Scheme.RSA_PSS: _RSA}


def verify(public: bytes, scheme: Scheme, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` is by the key `public`: PEM, or of Ed25519 also the 32 bytes themselves.

    Raises:
        ValueError: that is no public key for the scheme.
        MissingFeatureError: this machine has no libcrypto of OpenSSL 3.
    """
    library = _library()
    with _key(library, public, scheme) as key, _freed(library.EVP_MD_CTX_new(), library.EVP_MD_CTX_free) as context:
        parameters = c_void_p()
        method = None if scheme is Scheme.ED25519 else library.EVP_sha256()
        ready = library.EVP_DigestVerifyInit(context, ctypes.byref(parameters), method, None, key) == 1
        if ready and scheme is Scheme.RSA_PSS:
            ready = library.EVP_PKEY_CTX_set_rsa_padding(parameters, _PSS_PADDING) == 1
        # The length of the salt is found out from the signature: that is what an own setting of it would be, too.
        verified: bool = ready and library.EVP_DigestVerify(context, signature, len(signature), data, len(data)) == 1
        library.ERR_clear_error()
    return verified


@contextmanager
def _key(library: ctypes.CDLL, public: bytes, scheme: Scheme) -> Iterator[int]:
    if scheme is Scheme.ED25519 and len(public) == _ED25519_BYTES:
        found = library.EVP_PKEY_new_raw_public_key(_ED25519, None, public, len(public))
    else:
        with _freed(library.BIO_new_mem_buf(public, len(public)), library.BIO_free) as source:
            found = library.PEM_read_bio_PUBKEY(source, None, None, None)
    library.ERR_clear_error()
    if not found:
        message = f"that is no public key of {scheme}"
        raise ValueError(message)
    with _freed(found, library.EVP_PKEY_free) as key:
        if library.EVP_PKEY_get_base_id(key) != _KINDS[scheme] or (scheme is Scheme.ECDSA_P256 and _curve(library, key) != _P256):
            message = f"that key is of another kind than {scheme}"
            raise ValueError(message)
        yield key


def _curve(library: ctypes.CDLL, key: int) -> bytes:
    name = ctypes.create_string_buffer(64)
    size = c_size_t()
    return name.value if library.EVP_PKEY_get_group_name(key, name, len(name), ctypes.byref(size)) == 1 else b""


@contextmanager
def _freed(found: int | None, free: Callable[[int], object]) -> Iterator[int]:
    if not found:
        raise MemoryError
    try:
        yield found
    finally:
        free(found)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcrypto.so.3")
    except OSError as error:
        raise MissingFeatureError(
            "there is no OpenSSL 3 here (libcrypto.so.3)", code="libcrypto-missing", hint="install libssl3 or what has it"
        ) from error
    pointer = c_void_p
    for name, result, arguments in (
        ("BIO_new_mem_buf", pointer, [c_char_p, c_int]),
        ("BIO_free", c_int, [pointer]),
        ("PEM_read_bio_PUBKEY", pointer, [pointer] * 4),
        ("EVP_PKEY_new_raw_public_key", pointer, [c_int, pointer, c_char_p, c_size_t]),
        ("EVP_PKEY_free", None, [pointer]),
        ("EVP_PKEY_get_base_id", c_int, [pointer]),
        ("EVP_PKEY_get_group_name", c_int, [pointer, c_char_p, c_size_t, pointer]),
        ("EVP_MD_CTX_new", pointer, []),
        ("EVP_MD_CTX_free", None, [pointer]),
        ("EVP_sha256", pointer, []),
        ("EVP_DigestVerifyInit", c_int, [pointer] * 5),
        ("EVP_DigestVerify", c_int, [pointer, c_char_p, c_size_t, c_char_p, c_size_t]),
        ("EVP_PKEY_CTX_set_rsa_padding", c_int, [pointer, c_int]),
        ("ERR_clear_error", None, []),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
