"""sbverify(1): whether the firmware will start a program, by the certificates that it trusts."""

import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from obelisk.errors import CommandError
from obelisk.system.command import run


def is_signed_by(program: Path, certificates: Sequence[bytes]) -> bool:
    """Whether one of the certificates (DER) signed the EFI program."""
    with tempfile.TemporaryDirectory(prefix="obelisk-db-") as scratch:
        for number, certificate in enumerate(certificates):
            file = Path(scratch, f"{number}.pem")
            file.write_text(ssl.DER_cert_to_PEM_cert(certificate))
            try:
                run(["sbverify", "--cert", file, program], timeout_s=60)
            except CommandError:
                continue
            return True
    return False
