"""Repository names: the awkward ones that are legal, and those that are not."""

import os

import pytest

from oci import (check_image, digest, dump, image_of, index_of, make_image, noise, push_manifest,
                 put_manifest, start_upload, with_query)
from server import running
from wire import head, refused

LEGAL = [
    "a", "0", "a-b", "a--b", "a.b", "a_b", "a__b", "a/b", "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t",
    # Names that look like the API's own paths: it is read from the right.
    "blobs", "manifests", "tags", "uploads", "referrers", "v2", "a/blobs", "a/manifests", "a/tags",
    "tags/list", "blobs/uploads", "a/blobs/uploads", "a/blobs/uploads/b", "a/manifests/b",
    "a/tags/list", "referrers/a", "a/referrers/b", "a/blobs/uploads/blobs/uploads",
    # Names that look like the store's own files.
    "foo", "foo/index.json", "foo/oci-layout", "foo/blobs/sha256", "oci-layout", "lock", "format",
    "repos", "trash", "foo/tags/v1", "index.json",
]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """One server on which all of these names live side by side."""
    with running(tmp_path_factory.mktemp("awkward")) as server:
        client = server.client()
        yield client, {name: make_image(client, name, "v1", layers=1) for name in LEGAL}


@pytest.mark.parametrize("name", LEGAL)
def test_awkward_name_works_with_every_endpoint(awkward, name):
    client, images = awkward
    check_image(client, name, "v1", images[name])
    assert client.get(f"/v2/{name}/tags/list").json() == {"name": name, "tags": ["v1"]}
    assert client.get(f"/v2/{name}/referrers/{images[name].digest}").json()["manifests"] == []
    data = noise()
    location = start_upload(client, name)
    assert location.startswith(f"/v2/{name}/blobs/uploads/")
    location = client.patch(location, data[:100])["Location"]
    assert client.get(location)["Range"] == "0-99"
    answer = client.put(with_query(location, digest=digest(data)), data[100:])
    assert answer.status == 201
    assert client.get(answer["Location"]).body == data
    assert client.delete(start_upload(client, name)).status == 204
    assert client.delete(f"/v2/{name}/blobs/{digest(data)}").status == 202
    extra = push_manifest(client, name, "v2", image_of(noise()))
    assert client.delete(f"/v2/{name}/manifests/v2").status == 202
    assert client.delete(f"/v2/{name}/manifests/{extra}").status == 202
    check_image(client, name, "v1", images[name])


def test_awkward_names_are_all_in_the_catalog(awkward):
    client, _ = awkward
    assert client.get("/v2/_catalog?n=1000").json()["repositories"] == sorted(LEGAL)


def test_nested_repositories_do_not_disturb_each_other(api, repo):
    names = [repo, f"{repo}/b", f"{repo}/b/c"]
    images = {name: make_image(api, name) for name in names}
    assert api.delete(f"/v2/{names[1]}/manifests/{images[names[1]].digest}").status == 202
    for name in names[0], names[2]:
        check_image(api, name, "latest", images[name])
    assert api.get(f"/v2/{names[1]}/manifests/latest").status == 404


def test_longest_name_is_255_characters(api):
    name = "n/" + "x" * 100 + "/" + "y" * 152
    assert len(name) == 255
    image = make_image(api, name)
    check_image(api, name, "latest", image)


def test_long_name_of_short_components(api):
    name = "/".join(["n"] * 128)
    assert len(name) == 255
    check_image(api, name, "latest", make_image(api, name))


@pytest.mark.parametrize("name", ["x" * 256, "n/" + "x" * 254, "/".join(["n"] * 129), "x" * 4000])
def test_name_over_255_characters_is_refused(api, name):
    refused(api.post(f"/v2/{name}/blobs/uploads/"), (400, 404), "NAME_INVALID", "NAME_UNKNOWN")
    refused(put_manifest(api, name, "v1", image_of()), (400, 404), "NAME_INVALID", "NAME_UNKNOWN")


# Percent-encoding (RFC 3986 2.3: what need not be encoded means the same)

def test_percent_encoded_paths_mean_the_same(api, repo):
    image = make_image(api, repo)
    plain = repo.replace("t", "%74", 1)
    for target in (f"/v2/{plain}/manifests/l%61test", f"/v2/{repo}/manifests/%6catest",
                   f"/v2/{repo}/manifests/{image.digest.replace(':', '%3A')}",
                   f"/v2/{repo}/manifests/{image.digest.replace(':', '%3a')}"):
        answer = api.get(target)
        assert (answer.status, answer.body) == (200, image.manifest), target
    config = digest(image.config).replace(":", "%3A")
    assert api.get(f"/v2/{repo}/blobs/{config}").body == image.config


@pytest.mark.parametrize("target", ["/v2/a%/tags/list", "/v2/a%2/tags/list", "/v2/a%zz/tags/list",
                                    "/v2/a%2/manifests/v1", "/v2/a/manifests/%",
                                    "/v2/a/manifests/v%g1"])
def test_broken_percent_encoding_is_refused(api, target):
    assert api.get(target).status in (400, 404)


@pytest.mark.parametrize("query", ["?n=%", "?last=%zz", "?last=%00", "?%=1", "?&&==&n", "?n=1&n=2"])
def test_broken_query_does_no_harm(api, repo, query):
    make_image(api, repo)
    assert api.get(f"/v2/{repo}/tags/list{query}").status in (200, 400)


# What must never become a path

ILLEGAL = [
    "..", ".", "../x", "a/..", "a/../b", "a/../../b", "./a", "a/./b", "a//b", "/a", "a/", "//", "A",
    "a/B",
    "-a", "a-", "_a", "a_", ".a", "a.", "a..b", "a___b", "a._b", "a/-b", "_oci", "a/_oci", "_oci/b",
    "_catalog",
    "%2e%2e", "%2e%2e/x", "..%2fx", "%2e%2e%2f%2e%2e%2fetc", "a%2f..%2fb", "a%00b", "a%2500", "%00",
    "a%0ab",
    "a%20b", "%c3%a9", "a%5cb", "..%5cx", "a+b", "a:b", "a@b", "a*", "~", "%252e%252e", ".../x",
    "a%0d%0ab", "%ff", "%c0%ae%c0%ae/x",
]


@pytest.fixture(scope="module")
def contained(tmp_path_factory):
    """A server whose folder lies a few levels deep, so that an escape by ..
    would show in the levels above."""
    home = tmp_path_factory.mktemp("contained")
    deep = home / "1" / "2" / "3"
    deep.mkdir(parents=True)
    with running(deep) as server:
        client = server.client()
        yield client, make_image(client, "known", "v1"), home, server.data


def tree(home, data):
    """What lies outside of the data folder, and what repositories lie in it."""
    outside = {os.path.join(at, name) for at, folders, files in os.walk(home)
               if not at.startswith(str(data)) for name in folders + files}
    inside = {os.path.relpath(at, data) for at, folders, _ in os.walk(data / "repos")
              if os.path.basename(at) == "_oci"}
    return outside, inside


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_name_is_refused_everywhere_and_leaves_nothing_on_disk(contained, name):
    client, image, home, data = contained
    before = tree(home, data)
    blob = digest(image.config)
    requests = [
        ("GET", "manifests/v1"), ("HEAD", f"manifests/{image.digest}"), ("GET", f"blobs/{blob}"),
        ("GET", "tags/list"), ("POST", "blobs/uploads/"),
        ("POST", f"blobs/uploads/?digest={digest(b'x')}"),
        ("POST", f"blobs/uploads/?mount={blob}&from=known"), ("PUT", "manifests/v1"),
        ("DELETE", "manifests/v1"), ("DELETE", f"manifests/{image.digest}"),
        ("DELETE", f"blobs/{blob}"),
        ("GET", f"referrers/{image.digest}"), ("GET", "blobs/uploads/x"),
        ("PATCH", "blobs/uploads/x"),
    ]
    for method, path in requests:
        body = dump(image_of()) if method == "PUT" else b"x" if "POST" in method else None
        answer = client.request(method, f"/v2/{name}/{path}", (), body)
        if path.startswith("referrers") and answer.status == 200:
            assert answer.json()["manifests"] == []
            continue
        assert answer.status in (400, 404, 405), (method, path, answer)
    assert tree(home, data) == before
    check_image(client, "known", "v1", image)


DOTS = ["..", "%2e%2e", "../../x", "..%2f..%2fx", "%2e%2e%2f%2e%2e%2fx", "....//x", "a/../../../x",
        "%2fetc%2fpasswd", "/etc/passwd", "..%00", "%00"]


@pytest.mark.parametrize("dots", DOTS)
def test_dots_in_every_other_place_are_refused_too(contained, dots):
    client, image, home, data = contained
    before = tree(home, data)
    body = dump(image_of())
    blob = digest(image.config)
    for method, path in [
            ("GET", f"known/manifests/{dots}"), ("PUT", f"known/manifests/{dots}"),
            ("DELETE", f"known/manifests/{dots}"), ("GET", f"known/manifests/sha256:{dots}"),
            ("GET", f"known/blobs/{dots}"), ("GET", f"known/blobs/sha256:{dots}"),
            ("GET", f"known/blobs/{dots}:{'a' * 64}"), ("DELETE", f"known/blobs/sha256:{dots}"),
            ("GET", f"known/referrers/sha256:{dots}"), ("GET", f"known/blobs/uploads/{dots}"),
            ("PATCH", f"known/blobs/uploads/{dots}"), ("DELETE", f"known/blobs/uploads/{dots}"),
            ("PUT", f"known/blobs/uploads/{dots}?digest={digest(body)}"),
            ("PUT", f"known/manifests/{digest(body)}?tag={dots}"),
            ("POST", f"known/blobs/uploads/?digest={dots}"),
            ("POST", f"known/blobs/uploads/?digest=sha256:{dots}"),
            ("POST", f"known/blobs/uploads/?mount={blob}&from={dots}"),
            ("POST", f"known/blobs/uploads/?mount=sha256:{dots}&from=known"),
            ("POST", f"known/blobs/uploads/?digest-algorithm={dots}"),
            ("GET", f"known/tags/list?last={dots}"), ("GET", f"_catalog?last={dots}"),
    ]:
        answer = client.request(method, f"/v2/{path}", (),
                                body if method in ("PUT", "PATCH", "POST") else None)
        assert answer.status < 500, (method, path, answer)
        if method == "GET" and "list" not in path and "_catalog" not in path:
            assert answer.status in (400, 404, 405), (method, path, answer)
        if answer.status == 202 and method == "POST":
            client.delete(answer["Location"])
    assert tree(home, data) == before
    check_image(client, "known", "v1", image)


@pytest.mark.parametrize("target", [
    "/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v2/../../etc/passwd",
    "/v2/%2e%2e/%2e%2e/format",
    "//etc/passwd", "/v2//etc/passwd", "/v2/known/blobs/../../../../format",
    "/..%2f..%2fetc%2fpasswd"])
def test_files_of_the_machine_cannot_be_read(contained, target):
    client, *_ = contained
    with client.connect() as conn:
        conn.send(head("GET", target))
        answer = conn.answer()
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body and b"dims 1" not in answer.body


def test_digests_inside_manifests_are_never_used_as_paths(contained):
    client, image, home, data = contained
    before = tree(home, data)
    evil = "sha256:../../../../../../x"
    for field in "subject", "config":
        body = dump({**image_of(noise()), field: {"mediaType": "a/b", "size": 2, "digest": evil}})
        assert put_manifest(client, "known", digest(body), body).status in (201, 400)
    body = dump({**index_of(), "manifests": [{"mediaType": "a/b", "size": 2, "digest": evil}]})
    assert put_manifest(client, "known", digest(body), body).status in (201, 400)
    assert tree(home, data) == before
