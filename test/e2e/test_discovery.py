"""Content discovery: tags (end-8), referrers (end-12) and the catalog."""

import re

import pytest

from oci import (CONFIG, EMPTY, INDEX, digest, descriptor, dump, image_of, index_of, noise,
                 push_blob, push_manifest, put_manifest)
from wire import refused

TAGS = ["0", "1.0", "10", "A", "Z", "_x", "a", "a-b", "a.b", "aB", "a_b", "ab", "z"]


def next_page(answer):
    """The target of a rel="next" link, None without one."""
    link = answer["Link"]
    if link is None:
        return None
    found = re.fullmatch(r'<([^>]+)>; *rel="?next"?', link)
    assert found, link
    assert re.match(r"/v2/", found[1]), "the link should be relative to the server"
    return found[1]


def pages(client, target, key, limit=1000):
    """The lists of all pages, following Link."""
    found = []
    while target:
        assert len(found) < limit, "the pages do not end"
        answer = client.get(target)
        assert answer.status == 200, answer
        found.append(answer.json()[key])
        target = next_page(answer)
    return found


@pytest.fixture
def tagged(api, repo):
    body = dump(image_of(noise()))
    for tag in sorted(TAGS, reverse=True):
        push_manifest(api, repo, tag, body)
    return repo


# end-8a

def test_tags_come_in_byte_order(api, tagged):
    answer = api.get(f"/v2/{tagged}/tags/list")
    assert answer.status == 200
    assert answer["Content-Type"] == "application/json"
    assert answer.json() == {"name": tagged, "tags": TAGS}
    assert answer["Link"] is None


def test_tags_of_an_unknown_repository_are_404_name_unknown(api, repo):
    refused(api.get(f"/v2/{repo}/tags/list"), 404, "NAME_UNKNOWN")


def test_repository_with_blobs_only_does_not_exist_yet(api, repo):
    push_blob(api, repo, noise())
    refused(api.get(f"/v2/{repo}/tags/list"), 404, "NAME_UNKNOWN")


def test_no_tags_are_an_empty_list_and_not_null(api, repo):
    body = dump(image_of(noise()))
    push_manifest(api, repo, digest(body), body)
    answer = api.get(f"/v2/{repo}/tags/list")
    assert answer.json() == {"name": repo, "tags": []}


def test_digests_are_no_tags(api, repo):
    body = dump(image_of(noise()))
    push_manifest(api, repo, digest(body), body)
    push_manifest(api, repo, "v1", body)
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v1"]


# end-8b

@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_n_limits_the_tags_and_link_leads_through_all(api, tagged, n):
    found = pages(api, f"/v2/{tagged}/tags/list?n={n}", "tags")
    assert sum(found, []) == TAGS
    assert all(len(page) == n for page in found[:-1])


@pytest.mark.parametrize("n", [13, 14, 1000, 1000000])
def test_n_of_all_or_more_has_no_link(api, tagged, n):
    answer = api.get(f"/v2/{tagged}/tags/list?n={n}")
    assert answer.json()["tags"] == TAGS
    assert answer["Link"] is None


def test_n_of_zero_is_an_empty_list_without_link(api, tagged):
    for query in "n=0", "n=0&last=a":
        answer = api.get(f"/v2/{tagged}/tags/list?{query}")
        assert (answer.status, answer.json()["tags"]) == (200, [])
        assert answer["Link"] is None


@pytest.mark.parametrize("last", [*TAGS, "B", "aa", "zzz", "-", "!"])
def test_last_is_where_the_list_goes_on(api, tagged, last):
    answer = api.get(f"/v2/{tagged}/tags/list?last={last}")
    assert answer.json()["tags"] == [t for t in TAGS if t > last]


def test_n_and_last_together(api, tagged):
    answer = api.get(f"/v2/{tagged}/tags/list?n=3&last=Z")
    assert answer.json()["tags"] == ["_x", "a", "a-b"]
    answer = api.get(f"/v2/{tagged}/tags/list?last=Z&n=3")
    assert answer.json()["tags"] == ["_x", "a", "a-b"]


@pytest.mark.parametrize("n", ["-1", "x", "1x", "", "+1", "99999999999999999999", "1.5"])
def test_n_that_is_no_number_does_no_harm(api, tagged, n):
    answer = api.get(f"/v2/{tagged}/tags/list?n={n}")
    # The spec has no code for it; distribution has its own.
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert answer.json()["tags"] == TAGS[:len(answer.json()["tags"])]


def test_many_tags_are_paged_completely(api, repo):
    body = dump(image_of(noise()))
    tags = sorted(f"t{i}" for i in range(240))
    for at in range(0, len(tags), 10):
        query = "&".join(f"tag={t}" for t in tags[at:at + 10])
        assert put_manifest(api, repo, f"{digest(body)}?{query}", body).status == 201
    assert sum(pages(api, f"/v2/{repo}/tags/list", "tags"), []) == tags
    assert sum(pages(api, f"/v2/{repo}/tags/list?n=7", "tags"), []) == tags


# end-12

SUBJECT = image_of(b"subject")


def subject_of(manifest, algorithm="sha256"):
    return descriptor(dump(manifest), manifest["mediaType"], algorithm)


def referrers(api, repo, name, query=""):
    answer = api.get(f"/v2/{repo}/referrers/{name}{query}")
    assert answer.status == 200, answer
    assert answer["Content-Type"] == INDEX
    index = answer.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX)
    assert isinstance(index["manifests"], list)
    return answer, {m["digest"]: m for m in index["manifests"]}


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_no_referrers_are_an_empty_index(api, repo, algorithm):
    # Also in a repository that never existed: 404 would mean "no such API".
    name = digest(noise(), algorithm)
    assert referrers(api, repo, name)[1] == {}
    push_manifest(api, repo, "v1", SUBJECT)
    assert referrers(api, repo, name)[1] == {}


@pytest.mark.parametrize("name", ["sha256:abc", "sha256:" + "A" * 64, "md5:" + "a" * 32, "latest",
                                  "sha256:"])
def test_referrers_of_an_invalid_digest_are_400(api, repo, name):
    refused(api.get(f"/v2/{repo}/referrers/{name}"), 400)


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_subject_is_processed_whether_it_is_there_or_not(api, repo, present, algorithm):
    name = digest(dump(SUBJECT), algorithm)
    if present:
        push_manifest(api, repo, name, SUBJECT)
    manifest = image_of(noise(), subject=subject_of(SUBJECT, algorithm))
    answer = put_manifest(api, repo, "sig", manifest)
    assert answer.status == 201
    assert answer["OCI-Subject"] == name
    assert list(referrers(api, repo, name)[1]) == [digest(dump(manifest))]


def test_without_a_subject_there_is_no_oci_subject(api, repo):
    assert put_manifest(api, repo, "v1", image_of(noise()))["OCI-Subject"] is None


def test_referrer_descriptors_have_type_size_digest_and_annotations(api, repo):
    subject = subject_of(SUBJECT)
    note = {"org.example.format": "json", "ü\n\"": "é\\"}
    typed = image_of(b"1", config_type=EMPTY, artifactType="application/vnd.example.sbom",
                     subject=subject, annotations=note)
    untyped = image_of(b"2", config_type="application/vnd.example.config", subject=subject)
    blank = image_of(b"3", config_type="application/vnd.example.config", subject=subject,
                     artifactType="")
    index = index_of(image_of(b"4"), subject=subject, artifactType="application/vnd.example.index")
    plain = index_of(image_of(b"5"), subject=subject, annotations=note)
    expected = {}
    for manifest, kind in [(typed, "application/vnd.example.sbom"),
                           (untyped, "application/vnd.example.config"),
                           (blank, "application/vnd.example.config"),
                           (index, "application/vnd.example.index"), (plain, None)]:
        name = digest(dump(manifest))
        push_manifest(api, repo, name, manifest)
        expected[name] = descriptor(dump(manifest), manifest["mediaType"])
        if kind:
            expected[name]["artifactType"] = kind
        if "annotations" in manifest:
            expected[name]["annotations"] = manifest["annotations"]
    assert referrers(api, repo, subject["digest"])[1] == expected


def test_artifact_type_filters_the_referrers(api, repo):
    subject = subject_of(SUBJECT)
    kinds = ["application/vnd.example.sbom+json", "application/vnd.example.sig"]
    names = {}
    for i in range(6):
        manifest = image_of(b"%d" % i, artifactType=kinds[i % 2], subject=subject)
        names[push_manifest(api, repo, digest(dump(manifest)), manifest)] = kinds[i % 2]
    for form in kinds[0].replace("+", "%2B"), kinds[0].replace("/", "%2F").replace("+", "%2B"):
        answer, found = referrers(api, repo, subject["digest"], f"?artifactType={form}")
        assert answer["OCI-Filters-Applied"] == "artifactType"
        assert set(found) == {n for n, k in names.items() if k == kinds[0]}
    answer, found = referrers(api, repo, subject["digest"], "?artifactType=application/none")
    assert (answer["OCI-Filters-Applied"], found) == ("artifactType", {})
    answer, found = referrers(api, repo, subject["digest"])
    assert (answer["OCI-Filters-Applied"], set(found)) == (None, set(names))


def test_filter_sees_the_config_type_of_images(api, repo):
    subject = subject_of(SUBJECT)
    name = push_manifest(api, repo, "v1", image_of(noise(), subject=subject))
    found = referrers(api, repo, subject["digest"],
                      f"?artifactType={CONFIG.replace('+', '%2B')}")[1]
    assert list(found) == [name]


def test_referrer_pushed_by_sha512_is_listed_by_it(api, repo):
    subject = subject_of(SUBJECT, "sha512")
    manifest = image_of(noise(), subject=subject)
    name = digest(dump(manifest), "sha512")
    assert put_manifest(api, repo, name, manifest)["OCI-Subject"] == subject["digest"]
    assert list(referrers(api, repo, subject["digest"])[1]) == [name]


def test_referrers_of_one_repository_are_not_those_of_another(api, repo):
    subject = subject_of(SUBJECT)
    push_manifest(api, f"{repo}/a", "v1", image_of(noise(), subject=subject))
    assert referrers(api, f"{repo}/b", subject["digest"])[1] == {}


def test_deleted_referrer_is_gone_from_the_list(api, repo):
    subject = subject_of(SUBJECT)
    manifests = [image_of(noise(), subject=subject) for _ in range(2)]
    names = [push_manifest(api, repo, f"v{i}", m) for i, m in enumerate(manifests)]
    assert api.delete(f"/v2/{repo}/manifests/{names[0]}").status == 202
    assert list(referrers(api, repo, subject["digest"])[1]) == [names[1]]


def test_referrers_outlive_their_subject(api, repo):
    name = push_manifest(api, repo, "v1", SUBJECT)
    signature = push_manifest(api, repo, "sig", image_of(noise(), subject=subject_of(SUBJECT)))
    assert api.delete(f"/v2/{repo}/manifests/{name}").status == 202
    assert list(referrers(api, repo, name)[1]) == [signature]


def referrer_pages(api, repo, name):
    """The {digest: descriptor} of each page."""
    target = f"/v2/{repo}/referrers/{name}"
    while target:
        answer = api.get(target)
        assert (answer.status, answer["Content-Type"]) == (200, INDEX)
        assert len(answer.body) <= 4 << 20
        yield {m["digest"]: m for m in answer.json()["manifests"]}
        target = next_page(answer)


def test_many_large_referrers_are_paged_by_link(api, repo):
    # Over 4 MiB of annotations cannot come in one manifest.
    subject = subject_of(SUBJECT)
    names = set()
    for i in range(24):
        manifest = image_of(b"%d" % i, subject=subject, annotations={"x": "y" * 200000})
        names.add(push_manifest(api, repo, digest(dump(manifest)), manifest))
    found = list(referrer_pages(api, repo, subject["digest"]))
    assert len(found) > 1
    assert sorted(sum(map(list, found), [])) == sorted(names)


TYPE_MAX = 255


@pytest.mark.parametrize("member", ["artifactType", "config"])
def test_type_that_is_too_long_is_refused_and_the_list_stays(api, repo, member):
    subject = subject_of(SUBJECT)

    def pushed(length):
        kind = "a/" + "x" * (length - 2)
        typed = {"artifactType": kind} if member == "artifactType" else {"config_type": kind}
        return put_manifest(api, repo, "v1", image_of(noise(), subject=subject, **typed)), kind

    answer, kind = pushed(TYPE_MAX)
    assert answer.status == 201
    name = answer["Docker-Content-Digest"]
    for length in TYPE_MAX + 1, 5000, 300000:
        refused(pushed(length)[0], 400, "MANIFEST_INVALID")
    found = referrers(api, repo, subject["digest"])[1]
    assert {n: d["artifactType"] for n, d in found.items()} == {name: kind}
    target = f"?artifactType={kind}"
    assert list(referrers(api, repo, subject["digest"], target)[1]) == [name]


@pytest.mark.parametrize("length", [TYPE_MAX + 1, 5000])
def test_filter_that_is_too_long_is_400(api, repo, length):
    refused(api.get(f"/v2/{repo}/referrers/{digest(b'')}?artifactType=a/{'x' * (length - 2)}"),
            400)


def test_annotations_over_256k_are_left_out_of_the_list(api, repo):
    subject = subject_of(SUBJECT)
    names = []
    for size in 100, 261000, 262144, 2000000:
        manifest = image_of(b"%d" % size, subject=subject, artifactType="a/b",
                            annotations={"x": "y" * size})
        names.append(push_manifest(api, repo, digest(dump(manifest)), manifest))
    found = {}
    for page in referrer_pages(api, repo, subject["digest"]):
        found.update(page)
    assert sorted(found) == sorted(names)
    assert ["annotations" in found[n] for n in names] == [True, True, False, False]
    assert {d["artifactType"] for d in found.values()} == {"a/b"}


def test_fallback_tag_is_an_ordinary_tag(api, repo):
    # Clients of registries without this API keep an index under it.
    tag = digest(dump(SUBJECT)).replace(":", "-")
    body = dump(index_of(image_of(noise())))
    push_manifest(api, repo, tag, body)
    assert api.get(f"/v2/{repo}/manifests/{tag}").body == body
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == [tag]


# The catalog

NAMES = ["a", "a-b", "a-b/c", "a.b", "a/b", "a/b-c", "a/b/c", "a/b/c/d/e/f/g/h", "a0", "a__b",
         "a_b", "aa", "b/only/deep", "z"]


@pytest.fixture
def catalog(dims):
    client = dims().client()
    for name in reversed(NAMES):
        push_manifest(client, name, "v1", SUBJECT)
    push_blob(client, "blobs-only", noise())
    return client


def test_catalog_comes_in_byte_order_of_whole_names(catalog):
    assert NAMES == sorted(NAMES)
    answer = catalog.get("/v2/_catalog")
    assert (answer.status, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == {"repositories": NAMES}
    assert answer["Link"] is None
    for n in 1, 2, 3, 5, 13:
        found = pages(catalog, f"/v2/_catalog?n={n}", "repositories")
        assert sum(found, []) == NAMES
        assert all(len(page) == n for page in found[:-1])
    for n in 14, 15:
        answer = catalog.get(f"/v2/_catalog?n={n}")
        assert (answer.json()["repositories"], answer["Link"]) == (NAMES, None)
    for last in [*NAMES, "a-a", "a.", "a/", "a/b/", "0", "zz", "%"]:
        encoded = last.replace("%", "%25").replace("/", "%2F")
        answer = catalog.get(f"/v2/_catalog?last={encoded}")
        assert answer.json()["repositories"] == [n for n in NAMES if n > last], last
    answer = catalog.get("/v2/_catalog?n=2&last=a-b")
    assert answer.json()["repositories"] == ["a-b/c", "a.b"]
    answer = catalog.get("/v2/_catalog?n=0")
    assert answer.status in (200, 400)
    assert answer.status == 400 or answer.json()["repositories"] == []
    assert catalog.get("/v2/_catalog?n=-1").status in (200, 400)


def test_catalog_of_an_empty_registry_is_an_empty_list(dims):
    assert dims().client().get("/v2/_catalog").json() == {"repositories": []}


@pytest.mark.parametrize("folder", ["", "p/q/"])
def test_catalog_of_a_very_large_folder_is_complete(dims, folder):
    # More than the server looks at together; some of the names have others
    # below and beside them, also where one window of the folder ends.
    server = dims()
    names = {f"{folder}n{i:04}" for i in range(4200)}
    for i in [*range(0, 4200, 250), *range(1980, 2060), *range(4050, 4110)]:
        names |= {f"{folder}n{i:04}-b", f"{folder}n{i:04}/sub"}
    for name in names:
        (server.data / "repos" / name / "_oci/manifests").mkdir(parents=True)
    client = server.client()
    for query in "", "?n=2500":
        found = pages(client, f"/v2/_catalog{query}", "repositories")
        assert sum(found, []) == sorted(names)
