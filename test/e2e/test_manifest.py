"""Push of manifests: end-7, what is taken, what is refused, what comes back."""

import json

import pytest

from oci import (CONFIG, DOCKER, DOCKER_LIST, EMPTY, IMAGE, INDEX, descriptor, digest, dump,
                 image_of, index_of, make_image, noise, push_blob, push_manifest, put_manifest)
from wire import refused

LIMIT = 4 << 20


def check_stored(api, repo, reference, body, media_type):
    answer = api.get(f"/v2/{repo}/manifests/{reference}")
    assert (answer.status, answer.body) == (200, body)
    assert answer["Content-Type"] == media_type
    return answer


# end-7a

@pytest.mark.parametrize("by", ["tag", "sha256", "sha512"])
@pytest.mark.parametrize("chunked", [False, True])
def test_push_answers_201_with_location_and_digest(api, repo, by, chunked):
    body = dump(image_of(noise()))
    name = digest(body, "sha512" if by == "sha512" else "sha256")
    reference = "v1" if by == "tag" else name
    answer = put_manifest(api, repo, reference, body, chunked=chunked)
    assert answer.status == 201
    assert answer["Docker-Content-Digest"] == name
    got = api.get(answer["Location"])
    assert (got.status, got.body) == (200, body)
    check_stored(api, repo, reference, body, IMAGE)


CONFIG_FIELD = dump(descriptor(b"{}", CONFIG))


@pytest.mark.parametrize("body", [
    b'{\n\t"schemaVersion" : 2,\r\n "config": CONFIG, "layers" :[ ]\t}\n\n',
    b' {"b":1,"a":2,"layers":[],"a":3,"schemaVersion":2,"config":CONFIG}',
    b'{"schemaVersion":2,"\xc3\xbc":"\\u00e9\xc3\xa9\\/","config":CONFIG,"layers":[]}',
    b'{"schemaVersion":2,"n":1e400,"m":-0.0,"config":CONFIG,"layers":[]}',
], ids=["blanks", "double key", "escapes", "numbers"])
def test_bytes_come_back_exactly_as_pushed(api, repo, body):
    body = body.replace(b"CONFIG", CONFIG_FIELD)
    assert push_manifest(api, repo, "v1", body, IMAGE) == digest(body)
    check_stored(api, repo, "v1", body, IMAGE)


@pytest.mark.parametrize("media_type", [
    IMAGE, INDEX, DOCKER, DOCKER_LIST, "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.example.something+json", "application/json"])
def test_any_media_type_is_kept(api, repo, media_type):
    manifest = index_of() if "index" in media_type or "list" in media_type else image_of(noise())
    body = dump({**manifest, "mediaType": media_type})
    push_manifest(api, repo, "v1", body, media_type)
    check_stored(api, repo, "v1", body, media_type)
    assert api.head(f"/v2/{repo}/manifests/v1")["Content-Type"] == media_type


def test_parameters_of_the_content_type_are_dropped(api, repo):
    body = dump(image_of(noise()))
    push_manifest(api, repo, "v1", body, f"{IMAGE}; charset=utf-8")
    check_stored(api, repo, "v1", body, IMAGE)


def test_without_content_type_the_manifests_own_type_counts(api, repo):
    body = dump(image_of(noise()))
    answer = api.put(f"/v2/{repo}/manifests/v1", body)
    assert answer.status == 201
    check_stored(api, repo, "v1", body, IMAGE)


def test_without_any_type_it_is_refused_or_gets_one(api, repo):
    body = dump({"schemaVersion": 2, "n": noise(4).hex()})
    answer = api.put(f"/v2/{repo}/manifests/v1", body)
    if answer.status != 201:
        refused(answer, 400, "MANIFEST_INVALID")
    else:
        assert api.get(f"/v2/{repo}/manifests/v1")["Content-Type"]


def test_without_media_type_inside_the_header_counts(api, repo):
    # Valid by the image spec, and what old builders push.
    body = dump({"schemaVersion": 2, "config": descriptor(b"{}", CONFIG), "layers": []})
    push_manifest(api, repo, "v1", body, IMAGE)
    check_stored(api, repo, "v1", body, IMAGE)


def test_media_type_inside_that_contradicts_the_header(api, repo):
    # "Clients MUST" agree; what a registry does if they do not is left open.
    body = dump(image_of(noise()))
    answer = put_manifest(api, repo, "v1", body, INDEX)
    if answer.status == 201:
        check_stored(api, repo, "v1", body, INDEX)
    else:
        refused(answer, 400, "MANIFEST_INVALID")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digest_that_does_not_match_is_400(api, repo, algorithm):
    body = dump(image_of(noise()))
    wrong = digest(body, algorithm)
    refused(put_manifest(api, repo, wrong, body + b"  "), 400, "DIGEST_INVALID")
    assert api.get(f"/v2/{repo}/manifests/{wrong}").status == 404
    assert api.get(f"/v2/{repo}/manifests/{digest(body + b'  ')}").status == 404


@pytest.mark.parametrize("reference", [
    "sha256:baddigeststring", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 32])
def test_push_by_an_invalid_digest_is_400(api, repo, reference):
    refused(put_manifest(api, repo, reference, image_of()), 400, "DIGEST_INVALID",
            "MANIFEST_INVALID", "UNSUPPORTED")


@pytest.mark.parametrize("tag", ["a", "A", "_", "0", "v1.0-rc_1", "a" * 128, "latest",
                                 "sha256-" + "a" * 64, "sha256-" + "a" * 64 + ".sig", "__..--"])
def test_legal_tags(api, repo, tag):
    body = dump(image_of(noise()))
    push_manifest(api, repo, tag, body)
    check_stored(api, repo, tag, body, IMAGE)
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == [tag]


@pytest.mark.parametrize("tag", [".", "..", ".a", "-a", "a" * 129, "a+b", "a%20b", "a@b", "%2e%2e",
                                 "a%00", "%C3%A9", "a~b", "a,b"])
def test_illegal_tags_are_refused(api, repo, tag):
    make_image(api, repo, "v1")
    answer = put_manifest(api, repo, tag, image_of())
    assert answer.status in (400, 404), answer
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v1"]


def test_tag_is_overwritten_and_the_old_manifest_stays(api, repo):
    old, new = dump(image_of(noise())), dump(image_of(noise()))
    push_manifest(api, repo, "v1", old)
    push_manifest(api, repo, "v1", new)
    check_stored(api, repo, "v1", new, IMAGE)
    check_stored(api, repo, digest(old), old, IMAGE)
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v1"]


def test_a_moved_tag_is_seen_at_once_by_every_worker(shared, repo):
    # A worker may keep small answers in memory.
    clients = [shared.client() for _ in range(6)]
    for i in range(30):
        body = dump(image_of(annotations={"n": str(i)}))
        push_manifest(clients[i % 6], repo, "v1", body)
        for client in clients:
            assert client.get(f"/v2/{repo}/manifests/v1").body == body
    for client in clients:
        client.close()


# end-7b

@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_tag_parameters_set_tags(api, repo, algorithm):
    body = dump(image_of(noise()))
    name = digest(body, algorithm)
    tags = [f"t{i}" for i in range(12)]
    query = "&".join(f"tag={t}" for t in tags)
    answer = put_manifest(api, repo, f"{name}?{query}", body)
    assert answer.status == 201
    assert answer["Docker-Content-Digest"] == name
    accepted = [t.strip() for line in answer.all("OCI-Tag") for t in line.split(",")]
    assert sorted(accepted) == sorted(tags)
    for tag in tags:
        got = check_stored(api, repo, tag, body, IMAGE)
        # The only way to tag by sha512; the tag then serves that digest.
        assert got["Docker-Content-Digest"] == name
        assert got["ETag"] == f'"{name}"'
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == sorted(tags)


def test_push_by_digest_alone_sets_no_tag(api, repo):
    body = dump(image_of(noise()))
    answer = put_manifest(api, repo, digest(body), body)
    assert answer.status == 201
    assert answer.all("OCI-Tag") == []
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == []


def test_illegal_tag_parameter_is_never_set(api, repo):
    body = dump(image_of(noise()))
    answer = put_manifest(api, repo, f"{digest(body)}?tag=good&tag=..%2Fbad", body)
    assert answer.status in (201, 400)
    tags = ["good"] if answer.status == 201 else []
    assert answer.all("OCI-Tag") == tags
    if tags:
        assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == tags


def test_the_same_manifest_by_both_digests(api, repo):
    body = dump(image_of(noise()))
    for algorithm in "sha256", "sha512":
        name = digest(body, algorithm)
        assert put_manifest(api, repo, name, body).status == 201
    for algorithm in "sha256", "sha512":
        got = check_stored(api, repo, digest(body, algorithm), body, IMAGE)
        assert got["Docker-Content-Digest"] == digest(body, algorithm)


# What manifests may hold

def test_sparse_image_whose_layers_are_missing(api, repo):
    push_manifest(api, repo, "v1", image_of(noise(), [noise(), noise()]))


def test_sparse_index_whose_images_are_missing(api, repo):
    push_manifest(api, repo, "v1", index_of(image_of(noise()), image_of(noise())))


def test_nested_and_empty_indexes(api, repo):
    image = image_of(noise())
    inner = index_of(image)
    outer = index_of(inner, annotations={"n": noise(4).hex()})
    for manifest in image, inner, outer, index_of():
        push_manifest(api, repo, digest(dump(manifest)), manifest)
    push_manifest(api, repo, "v1", outer)
    check_stored(api, repo, "v1", dump(outer), INDEX)


def test_index_of_things_that_are_not_manifests(api, repo):
    # BuildKit's cache is one.
    blob = noise()
    push_blob(api, repo, blob)
    manifest = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip"),
        descriptor(b"{}", "application/vnd.buildkit.cacheconfig.v0")]}
    push_manifest(api, repo, "cache", manifest)


def test_artifact_with_empty_config_and_no_layers(api, repo):
    push_manifest(api, repo, "v1", image_of(b"{}", config_type=EMPTY,
                                            artifactType="application/vnd.example.thing"))


def test_layers_with_data_urls_and_foreign_types(api, repo):
    layer = descriptor(noise(), "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                       urls=["https://store.example.com/x"])
    body = dump({"schemaVersion": 2, "mediaType": IMAGE, "x-unknown": {"a": [None, True]},
                 "config": descriptor(b"{}", EMPTY, data="e30="), "layers": [layer]})
    push_manifest(api, repo, "v1", body)
    check_stored(api, repo, "v1", body, IMAGE)


def sized(size):
    manifest = image_of(noise(), annotations={"fill": ""})
    manifest["annotations"]["fill"] = "x" * (size - len(dump(manifest)))
    assert len(dump(manifest)) == size
    return dump(manifest)


@pytest.mark.parametrize("chunked", [False, True])
def test_manifest_of_4_mib_is_taken(api, repo, chunked):
    body = sized(LIMIT)
    assert put_manifest(api, repo, "v1", body, chunked=chunked).status == 201
    check_stored(api, repo, "v1", body, IMAGE)


@pytest.mark.parametrize("chunked", [False, True])
def test_manifest_over_4_mib_is_413(api, repo, chunked):
    answer = put_manifest(api, repo, "v1", sized(LIMIT + 1), chunked=chunked)
    refused(answer, 413)
    assert api.get(f"/v2/{repo}/manifests/v1").status == 404


def test_manifest_with_20000_layers(api, repo):
    layer = descriptor(b"x", "application/vnd.oci.image.layer.v1.tar")
    body = dump({**image_of(noise()), "layers": [layer] * 20000})
    push_manifest(api, repo, "v1", body)
    check_stored(api, repo, "v1", body, IMAGE)


# What is refused

@pytest.mark.parametrize("body", [
    b"", b" ", b"{", b"not json", b"{} x", b'{"a":}', b'{"a":1,}', b"{'a':1}", b'{"a":"\x01"}',
    b'{"a":"\\x"}',
    b'{"a":01}', b"\x00", b'{"a":1}\x00', b"\xef\xbb\xbf", b"\x1f\x8b\x08\x00", b'{"a":"',
    b'{"a":nul}', b"[", b"{]", b'{"a" 1}', b'{1:2}', b'{"a":1 "b":2}'])
def test_what_is_not_json_is_400(api, repo, body):
    refused(put_manifest(api, repo, "v1", body, IMAGE), 400, "MANIFEST_INVALID")
    assert api.get(f"/v2/{repo}/manifests/v1").status == 404


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true",
                                  b'[{"schemaVersion":2}]'])
def test_json_that_is_not_an_object_is_400(api, repo, body):
    refused(put_manifest(api, repo, "v1", body, IMAGE), 400, "MANIFEST_INVALID")


@pytest.mark.parametrize("field, value", [
    ("schemaVersion", "two"), ("mediaType", 5), ("config", []), ("config", "x"), ("layers", {}),
    ("layers", [5]), ("layers", [{"digest": 5}]), ("subject", "x"), ("subject", {"digest": []}),
    ("subject", {"digest": "../../x"}), ("annotations", [1]), ("annotations", {"a": {}}),
    ("artifactType", {"a": 1}), ("manifests", 7),
    ("config", {"digest": "sha256:../../etc/passwd"})])
def test_fields_of_the_wrong_type_do_no_harm(api, repo, field, value):
    # Whether they are refused is left open; what is taken comes back whole.
    body = dump({**image_of(noise()), field: value})
    answer = put_manifest(api, repo, "v1", body, IMAGE)
    if answer.status == 201:
        check_stored(api, repo, "v1", body, IMAGE)
    else:
        refused(answer, 400, "MANIFEST_INVALID", "DIGEST_INVALID")


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_json_50000_deep_does_no_harm(api, repo, opening, closing):
    depth = 50000
    deep = opening * depth + "1" + closing * depth
    body = f'{{"schemaVersion":2,"mediaType":"{IMAGE}","x":{deep}}}'.encode()
    answer = put_manifest(api, repo, "v1", body, IMAGE)
    assert answer.status in (201, 400)
    unclosed = f'{{"schemaVersion":2,"x":{opening * depth}'.encode()
    refused(put_manifest(api, repo, "v2", unclosed, IMAGE), 400, "MANIFEST_INVALID")
    assert api.get("/v2/").status == 200


@pytest.mark.parametrize("body", [b'{"schemaVersion":2,"x":"\xff\xfe"}',
                                  b'{"schemaVersion":2,"x":"\\ud800"}'])
def test_text_that_is_not_unicode_does_no_harm(api, repo, body):
    answer = put_manifest(api, repo, "v1", body, IMAGE)
    if answer.status == 201:
        check_stored(api, repo, "v1", body, IMAGE)
    else:
        refused(answer, 400, "MANIFEST_INVALID")


@pytest.mark.parametrize("value", ["nonsense", "a b", "text/", "/x", "application/" + "x" * 300,
                                   "a/b\tc"])
def test_content_type_that_is_none_does_no_harm(api, repo, value):
    body = dump({"schemaVersion": 2})
    answer = put_manifest(api, repo, "v1", body, value)
    assert answer.status in (201, 400, 415), answer
    if answer.status == 201:
        assert api.get(f"/v2/{repo}/manifests/v1").body == body


def test_manifest_may_be_pushed_again(api, repo):
    body = dump(image_of(noise()))
    for _ in range(2):
        push_manifest(api, repo, "v1", body)
    assert json.loads(api.get(f"/v2/{repo}/manifests/v1").body) == json.loads(body)
