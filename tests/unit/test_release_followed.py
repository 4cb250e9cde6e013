"""What a publisher publishes and a host follows, over HTTP: by the host's own code, from metadata to the last block."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import release_samples as transport
import repository_samples as samples
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from obelisk.model.image import PartKind, parse_manifest
from obelisk.model.release import File, Hosts
from obelisk.release.client import blocks, planning, proof, trust
from obelisk.release.client.edge import New, Old, Uki, apply
from obelisk.release.client.hashtree import parse
from obelisk.release.client.keys import HostKey
from obelisk.release.client.remote import Mirrors, WebMirror
from obelisk.release.delivery import Blocks
from obelisk.release.keys import Role
from obelisk.release.publishing import withdraw
from obelisk.release.rotating import RootWish, rotate, rotate_root
from obelisk.system.http import Client, Limits
from obelisk.system.serving import Site, listening


@contextmanager
def _served(repo: Path) -> Iterator[Mirrors]:
    with listening(Site(repo, lambda _name: True, lambda _line: None), bind="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with Client(Limits()) as client:
                yield Mirrors([WebMirror(f"http://127.0.0.1:{server.port}/", client)])
        finally:
            server.shutdown()
            thread.join()


def test_a_host_gets_what_was_released(tmp_path: Path) -> None:
    who = replace(samples.publisher(tmp_path, samples.keyring(tmp_path)), delivery=Blocks())
    one = samples.restorable(tmp_path, "1", *range(1, 300))
    two = samples.restorable(tmp_path, "2", *range(1, 100), 901, *range(100, 290))
    samples.released(who, tmp_path, one)
    made = samples.released(who, tmp_path, two)
    root = (tmp_path / "repo/metadata/1.root.json").read_bytes()
    with _served(tmp_path / "repo") as mirrors:
        there = trust.refresh(tmp_path / "keep", root, mirrors)
        current = there.channel("shop", "stable").current
        assert current is not None
        release = there.release(current.image)
        assert release == made
        proof.accept([mirrors.read_file(file) for file in release.proofs], there.testers(), release.image)
        manifest = parse_manifest(mirrors.read_file(release.manifest), image_id=release.image)
        for part in manifest.parts:
            if part.kind is not PartKind.ROOT:
                assert mirrors.read_file(File(part.sha256, part.size_bytes)) == two.part_path(part.kind).read_bytes()
        # Block by block, from what the host runs.
        slot, tree = transport.slot(tmp_path, 300)
        have = planning.Have(parse(one.part_path(PartKind.VERITY).read_bytes(), one.manifest.root_hash), one.part_path(PartKind.ROOT))
        wanted = planning.Wanted(release.root_hash, release.root_bytes, release.index)
        plan = planning.plan(mirrors, wanted, slot, [have], on_bytes=transport.ignore)
        assert plan.fetch_bytes < 2 * transport.BLOCK
        blocks.carry_out(mirrors, plan, slot, tree, [have], on_bytes=transport.ignore)
        assert slot.read_bytes()[: release.root_bytes] == two.part_path(PartKind.ROOT).read_bytes()
        # And by the edge.
        mirrors.fetch(release.edges[0].file, tmp_path / "edge", transport.ignore)
        (tmp_path / "other").mkdir()
        slot, tree = transport.slot(tmp_path / "other", 300)
        old = Old(one.part_path(PartKind.ROOT), have.tree, one.part_path(PartKind.UKI))
        part = manifest.part(PartKind.UKI)
        uki = Uki(tmp_path / "uki", part.size_bytes, part.sha256)
        apply(tmp_path / "edge", old, New(slot, tree, release.root_hash, release.root_bytes, uki), on_bytes=transport.ignore)
        assert slot.read_bytes()[: release.root_bytes] == two.part_path(PartKind.ROOT).read_bytes()
        assert (tmp_path / "uki").read_bytes() == two.part_path(PartKind.UKI).read_bytes()


def test_a_host_follows_new_keys_and_a_withdrawal(tmp_path: Path) -> None:
    who = replace(samples.publisher(tmp_path, samples.keyring(tmp_path)), delivery=Blocks())
    for version in ("1", "2"):
        samples.released(who, tmp_path, samples.restorable(tmp_path, version, *range(1, 40)))
    root = (tmp_path / "repo/metadata/1.root.json").read_bytes()
    with _served(tmp_path / "repo") as mirrors:
        trust.refresh(tmp_path / "keep", root, mirrors)
        for role in (Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP):
            rotate(who, role)
        rotate_root(who, RootWish())
        withdraw(who, "2", hosts=Hosts.BACK)
        for keep in ("keep", "fresh"):
            channel = trust.refresh(tmp_path / keep, root, mirrors).channel("shop", "stable")
            assert channel.current is not None
            assert (channel.current.version, channel.listings[-1].hosts) == ("1", Hosts.BACK)


def test_what_a_token_signs_is_checked_on_hosts(tmp_path: Path) -> None:
    """Tokens have keys on P-256, hosts have OpenSSL's library alone."""
    keys = samples.keyring(tmp_path)
    private = ec.generate_private_key(ec.SECP256R1())
    (keys.directory / "targets-2.pub").write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (keys.directory / "targets-2.key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (keys.directory / "targets-2.key").chmod(0o600)
    who = replace(samples.publisher(tmp_path, keys), delivery=Blocks())
    samples.released(who, tmp_path, samples.restorable(tmp_path, "1", 1, 2))
    trusted = who.opened().trusted
    (key_id,) = trusted.key_ids(Role.TARGETS)
    key = HostKey.from_dict(key_id, trusted.root.signed.keys[key_id].to_dict())
    assert key.scheme == "ecdsa-sha2-nistp256"
    key.verify_signature(trusted.targets.signatures[key_id], trusted.targets.signed_bytes)
