"""OpenSSL's library says the same of a signature as what made it."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from obelisk.system.libcrypto import Scheme, verify

DATA = b"a statement"
EDWARDS = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CURVE = ec.derive_private_key(12345, ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
PSS = padding.PSS(padding.MGF1(SHA256()), SHA256.digest_size)


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


SIGNED = [
    (Scheme.ED25519, pem(EDWARDS), EDWARDS.sign(DATA)),
    (Scheme.ED25519, EDWARDS.public_key().public_bytes_raw(), EDWARDS.sign(DATA)),
    (Scheme.ECDSA_P256, pem(CURVE), CURVE.sign(DATA, ec.ECDSA(SHA256()))),
    (Scheme.RSA_PSS, pem(RSA), RSA.sign(DATA, PSS, SHA256())),
]
WAYS = ["ed25519", "ed25519-raw", "ecdsa", "rsa-pss"]


@pytest.mark.parametrize(("scheme", "public", "signature"), SIGNED, ids=WAYS)
def test_a_signature_holds_for_its_data_and_key_alone(scheme: Scheme, public: bytes, signature: bytes) -> None:
    assert verify(public, scheme, signature, DATA)
    assert not verify(public, scheme, signature, DATA + b".")
    assert not verify(public, scheme, signature[:-1] + bytes([signature[-1] ^ 1]), DATA)
    assert not verify(public, scheme, b"", DATA)
    assert not verify(public, scheme, signature + b"\0", DATA)
    others = {
        Scheme.ED25519: pem(ed25519.Ed25519PrivateKey.generate()),
        Scheme.ECDSA_P256: pem(ec.generate_private_key(ec.SECP256R1())),
        Scheme.RSA_PSS: pem(rsa.generate_private_key(65537, 2048)),
    }
    assert not verify(others[scheme], scheme, signature, DATA)


def test_another_padding_of_rsa_is_another_scheme() -> None:
    assert not verify(pem(RSA), Scheme.RSA_PSS, RSA.sign(DATA, padding.PKCS1v15(), SHA256()), DATA)


@pytest.mark.parametrize(
    ("scheme", "public"),
    [
        (Scheme.ED25519, pem(RSA)),
        (Scheme.ED25519, pem(CURVE)),
        (Scheme.RSA_PSS, pem(EDWARDS)),
        (Scheme.ECDSA_P256, pem(ec.generate_private_key(ec.SECP384R1()))),
        (Scheme.ED25519, b""),
        (Scheme.ED25519, b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"),
        (Scheme.RSA_PSS, bytes(32)),
    ],
)
def test_a_key_of_another_kind_verifies_nothing(scheme: Scheme, public: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        verify(public, scheme, SIGNED[0][2], DATA)


@given(st.binary(max_size=100), st.binary(max_size=80))
def test_no_bytes_hurt_it(public: bytes, signature: bytes) -> None:
    for scheme in Scheme:
        try:
            assert not verify(public, scheme, signature, DATA)
        except ValueError:
            continue
