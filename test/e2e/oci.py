"""What a registry client does: blobs, manifests and small images."""

import hashlib
import json
import os

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def digest(data, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def noise(size=512):
    """Bytes that no other test pushes."""
    return os.urandom(size)


def dump(manifest):
    return manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()


def with_query(location, **query):
    """An upload's Location with parameters added, as clients must: it may
    have a query already."""
    added = "&".join(f"{k}={v}" for k, v in query.items())
    return location + ("&" if "?" in location else "?") + added


def start_upload(client, repo, query=""):
    answer = client.post(f"/v2/{repo}/blobs/uploads/{query}")
    assert answer.status == 202, answer
    return answer["Location"]


def push_blob(client, repo, data, algorithm="sha256"):
    """Push by POST and PUT, as most clients do; return the digest."""
    name = digest(data, algorithm)
    location = start_upload(client, repo)
    answer = client.put(with_query(location, digest=name), data)
    assert answer.status == 201, answer
    assert answer["Docker-Content-Digest"] == name
    return name


def put_manifest(client, repo, reference, manifest, media_type=None, **more):
    body = dump(manifest)
    if media_type is None:
        media_type = json.loads(body).get("mediaType", IMAGE)
    headers = {"Content-Type": media_type}
    return client.put(f"/v2/{repo}/manifests/{reference}", body, headers, **more)


def push_manifest(client, repo, reference, manifest, media_type=None):
    """Push and return the digest that the server gave it."""
    answer = put_manifest(client, repo, reference, manifest, media_type)
    assert answer.status == 201, answer
    algorithm = answer["Docker-Content-Digest"].partition(":")[0]
    assert answer["Docker-Content-Digest"] == digest(dump(manifest), algorithm)
    return answer["Docker-Content-Digest"]


def descriptor(content, media_type, algorithm="sha256", **more):
    return {"mediaType": media_type, "digest": digest(content, algorithm),
            "size": len(content), **more}


def image_of(config=b"{}", layers=(), config_type=CONFIG, algorithm="sha256", **more):
    """An image manifest; its blobs need not exist."""
    return {"schemaVersion": 2, "mediaType": IMAGE,
            "config": descriptor(config, config_type, algorithm),
            "layers": [descriptor(l, LAYER, algorithm) for l in layers], **more}


def index_of(*manifests, algorithm="sha256", **more):
    return {"schemaVersion": 2, "mediaType": INDEX,
            "manifests": [descriptor(dump(m), m["mediaType"], algorithm)
                          for m in manifests], **more}


class Image:
    """An image that was pushed: its bytes and digests."""

    def __init__(self, manifest, config, layers):
        self.manifest = dump(manifest)
        self.digest = digest(self.manifest)
        self.config = config
        self.layers = layers


def make_image(client, repo, tag="latest", layers=2, size=512):
    """Push a small image with fresh layers."""
    config = json.dumps({"architecture": "amd64", "os": "linux",
                         "author": noise(8).hex()}).encode()
    contents = [noise(size) for _ in range(layers)]
    for data in [config, *contents]:
        push_blob(client, repo, data)
    image = Image(image_of(config, contents), config, contents)
    assert push_manifest(client, repo, tag, image.manifest) == image.digest
    return image


def check_image(client, repo, reference, image):
    """Pull the image and compare every byte."""
    answer = client.get(f"/v2/{repo}/manifests/{reference}", {"Accept": IMAGE})
    assert answer.status == 200, answer
    assert answer.body == image.manifest
    assert answer["Docker-Content-Digest"] == image.digest
    for data in [image.config, *image.layers]:
        answer = client.get(f"/v2/{repo}/blobs/{digest(data)}")
        assert (answer.status, answer.body) == (200, data)
