"""Software bills of materials, SPDX 2.3 and CycloneDX 1.6, from the locked packages. Nothing in them varies between two builds."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid5

from obelisk.build import containers
from obelisk.build.graph import Step
from obelisk.events import Task
from obelisk.model.lock import Lock, Package
from obelisk.model.spec import Spec

_NAMESPACE = UUID("6f62656c-6973-4b00-8000-000000000003")


def sbom_step(spec: Spec, lock: Lock) -> Step:
    """Both documents, named `sbom.spdx.json` and `sbom.cdx.json`."""

    def produce(work: Path, _needs: Mapping[str, Path], _running: Task) -> None:
        (work / "sbom.spdx.json").write_text(spdx(spec, lock))
        (work / "sbom.cdx.json").write_text(cyclonedx(spec, lock))

    options = {"name": spec.name, "version": spec.version, "lock": lock.sha256, "distribution": str(spec.distribution)}
    return Step("sbom", "Bill of materials", options, (), produce, revision=2)


def cyclonedx(spec: Spec, lock: Lock) -> str:
    """The CycloneDX document as JSON text."""
    # Slow to import, and wanted only when the step really runs.
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    bom = Bom(serial_number=uuid5(_NAMESPACE, f"{spec.name} {spec.version} {lock.sha256}"))
    bom.metadata.timestamp = datetime.fromtimestamp(lock.system.epoch, UTC)
    whole = Component(name=spec.name, version=spec.version, type=ComponentType.OPERATING_SYSTEM, bom_ref=f"image:{spec.name}")
    bom.metadata.component = whole
    for package in lock.system.packages:
        address = purl(spec, package)
        bom.components.add(
            Component(
                name=package.name,
                version=package.version,
                type=ComponentType.LIBRARY,
                bom_ref=address,
                purl=PackageURL.from_string(address),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.sha256)],
            )
        )
    if lock.image is not None:
        bom.components.add(
            Component(
                name=containers.origin(spec),
                version=f"sha256:{lock.image.sha256}",
                type=ComponentType.CONTAINER,
                bom_ref=f"oci:{lock.image.sha256}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=lock.image.sha256)],
            )
        )
    bom.register_dependency(whole, bom.components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def spdx(spec: Spec, lock: Lock) -> str:
    """The SPDX document as JSON text."""
    import json

    from spdx_tools.spdx.jsonschema.document_converter import DocumentConverter
    from spdx_tools.spdx.model import (
        Actor,
        ActorType,
        Checksum,
        ChecksumAlgorithm,
        CreationInfo,
        Document,
        ExternalPackageRef,
        ExternalPackageRefCategory,
        Relationship,
        RelationshipType,
        SpdxNoAssertion,
    )
    from spdx_tools.spdx.model import (
        Package as SpdxPackage,
    )

    identity = uuid5(_NAMESPACE, f"{spec.name} {spec.version} {lock.sha256}")
    created = CreationInfo(
        spdx_version="SPDX-2.3",
        spdx_id="SPDXRef-DOCUMENT",
        name=f"{spec.name}_{spec.version}",
        document_namespace=f"urn:uuid:{identity}",
        creators=[Actor(ActorType.TOOL, "obelisk")],
        created=datetime.fromtimestamp(lock.system.epoch, UTC).replace(tzinfo=None),
    )
    packages, relationships = [], []
    for index, package in enumerate(lock.system.packages):
        reference = f"SPDXRef-Package-{index}"
        packages.append(
            SpdxPackage(
                spdx_id=reference,
                name=package.name,
                version=package.version,
                download_location=SpdxNoAssertion(),
                files_analyzed=False,
                checksums=[Checksum(ChecksumAlgorithm.SHA256, package.sha256)],
                external_references=[ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", purl(spec, package))],
            )
        )
        relationships.append(Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, reference))
    if lock.image is not None:
        packages.append(
            SpdxPackage(
                spdx_id="SPDXRef-Image",
                name=containers.origin(spec),
                version=f"sha256:{lock.image.sha256}",
                download_location=SpdxNoAssertion(),
                files_analyzed=False,
                checksums=[Checksum(ChecksumAlgorithm.SHA256, lock.image.sha256)],
            )
        )
        relationships.append(Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, "SPDXRef-Image"))
    document = Document(created, packages=packages, relationships=relationships)
    return json.dumps(DocumentConverter().convert(document), indent=1, sort_keys=True)


def purl(spec: Spec, package: Package) -> str:
    """The package URL of a locked package."""
    from packageurl import PackageURL

    qualifiers = {"arch": package.architecture, "distro": spec.distribution.suite}
    return PackageURL("deb", spec.distribution.name, package.name, package.version, qualifiers).to_string()
