"""Writes images: OCI layouts for tools, and a registry's storage folder.

Owns blobs, manifests, indexes and tags on disk. A blob is one file, hard-linked
wherever it is named. The registry's folder is written directly in the format of
`docker-registry`, not pushed: a registry would refuse the broken images that
the tests need, and nothing has to be pushed again.
"""

import hashlib
import json
import os
from pathlib import Path

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker.distribution."
DOCKER_TYPES = {
    OCI + "manifest.v1+json": DOCKER + "manifest.v2+json",
    OCI + "index.v1+json": DOCKER + "manifest.list.v2+json",
    OCI + "config.v1+json": "application/vnd.docker.container.image.v1+json",
    OCI + "layer.v1.tar+gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


def sha256(content):
    """The digest of some bytes, in OCI's notation."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def to_json(value):
    """The one JSON encoding used for manifests and configurations."""
    return json.dumps(value, indent=1, sort_keys=True).encode()


class Repository:
    """One repository: `<out>/layout/<name>` and its part of `<out>/<registry>`."""

    def __init__(self, out, name, registry="public"):
        self.name, self.out = name, Path(out)
        self.layout = self.out / "layout" / name
        self.storage = self.out / registry / "docker/registry/v2"
        self.index = []
        (self.layout / "blobs/sha256").mkdir(parents=True)
        (self.layout / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))

    def blob(self, content, media_type, digest=None, missing=False):
        """Store a blob and return its descriptor. `digest` lies about what it holds; `missing` keeps it out."""
        digest = digest or sha256(content)
        descriptor = {"mediaType": media_type, "digest": digest, "size": len(content)}
        if missing:
            return descriptor
        name = digest.removeprefix("sha256:")
        data = self.storage / "blobs/sha256" / name[:2] / name / "data"
        if not data.exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            data.write_bytes(content)
        copy = self.layout / "blobs/sha256" / name
        if not copy.exists():
            os.link(data, copy)
        self._link("_layers/sha256/" + name, digest)
        return descriptor

    def _link(self, where, digest):
        path = self.storage / "repositories" / self.name / where / "link"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest)

    def manifest(self, content, media_type, tags=()):
        """Store a manifest or an index under tags and return its descriptor."""
        descriptor = self.blob(content, media_type)
        digest = descriptor["digest"]
        self._link("_manifests/revisions/sha256/" + digest.removeprefix("sha256:"), digest)
        for tag in tags:
            self._link(f"_manifests/tags/{tag}/current", digest)
            self._link(f"_manifests/tags/{tag}/index/sha256/" + digest.removeprefix("sha256:"), digest)
            self.index.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}})
        document = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": self.index}
        (self.layout / "index.json").write_bytes(to_json(document))
        return descriptor

    def image(self, layers, config=None, tags=(), architecture="amd64", docker=False, change=None, raw_config=None):
        """Store an image of finished layers and return its manifest's descriptor.

        `change` may spoil the manifest (a dict) before it is written;
        `raw_config` replaces the configuration.
        """
        kind = (lambda name: DOCKER_TYPES[OCI + name]) if docker else (lambda name: OCI + name)
        document = {
            "created": "2023-11-14T22:13:20Z",
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
            "history": [{"created_by": "kvmlet e2e/images"} for _ in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind("manifest.v1+json"),
            "config": self.blob(raw_config or to_json(document), kind("config.v1+json")),
            "layers": [self.blob(blob, kind("layer.v1." + suffix)) for suffix, blob, _ in layers],
        }
        if change:
            change(manifest)
        return self.manifest(to_json(manifest), manifest["mediaType"], tags)

    def multi(self, entries, tags, docker=False):
        """Store an index of (descriptor, platform, annotations) under tags."""
        media_type = DOCKER_TYPES[OCI + "index.v1+json"] if docker else OCI + "index.v1+json"
        manifests = []
        for descriptor, platform, annotations in entries:
            manifests.append({**descriptor, "platform": platform, **({"annotations": annotations} if annotations else {})})
        content = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
        return self.manifest(to_json(content), media_type, tags)
