"""Clients that push, mount, tag and delete, and a ledger of what they were told.

The ledger maps a key to the values that may be found after a crash: one where a
change was acknowledged, the old and the new where it was under way. Keys and
values:

    ("blob", repo, digest)                  True, or None where there is none
    ("manifest", repo, digest)              the same
    ("tag", repo, tag)                      the manifest's digest, or None
    ("referrer", repo, (subject, digest))   True or None
    ("upload", repo, digest)                an Upload, or None
"""

import contextlib
import json
import random
import threading

from oci import descriptor, digest, image_of, with_query
from wire import Client, Closed

LOST = (Closed, ConnectionError)
COMMON = "common"  # a repository that everybody pushes to and nobody deletes from


class Ledger:
    def __init__(self):
        self.facts = {}
        self.touched = set()
        self.told = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def change(self, *pairs):
        """While the block runs both values are possible, after it the new one;
        an exception leaves it at both."""
        with self.lock:
            for key, value in pairs:
                self.facts[key] = self.facts.get(key, {None}) | {value}
                self.touched.add(key)
        yield
        with self.lock:
            self.told += 1
            for key, value in pairs:
                self.facts[key] = {value}

    def sure(self, kind, repo):
        """The names that are certainly there."""
        with self.lock:
            return [k[2] for k, v in self.facts.items()
                    if k[:2] == (kind, repo) and None not in v]


class Upload:
    """An upload that takes several requests: what the server has confirmed of
    it, and what it may have got."""

    def __init__(self, location, data):
        self.location = location
        self.data = data
        self.confirmed = self.sent = 0


class Pusher:
    """One client. Only it changes its repository, so that it knows what to
    expect there; the pool below is everybody's."""

    def __init__(self, ledger, rng, name, shared, largest=300000):
        self.ledger = ledger
        self.rng = rng
        self.name = name
        self.shared = shared
        self.largest = largest
        self.repo = name
        self.used = set()    # blobs that a manifest names or named
        self.blobs_of = {}   # (repo, manifest) -> the blobs that it names
        self.again = None    # what a crash cut off
        self.client = None

    def open(self, address):
        self.client = Client(address)

    def fresh(self):
        power = self.rng.random() ** 3
        return self.rng.randbytes(2 + int(power * self.largest))

    def call(self, status, method, target, headers=(), body=None):
        answer = self.client.request(method, target, headers, body)
        assert answer.status == status, f"{method} {target}: {answer}"
        return answer

    # What a client does

    def push(self, data, how=None, repo=None):
        repo = repo or self.repo
        name = digest(data)
        how = how or self.rng.choice(["post", "put", "patch"])
        self.again = lambda: self.push(data, None, repo)
        with self.ledger.change((("blob", repo, name), True)):
            start = f"/v2/{repo}/blobs/uploads/"
            if how == "post":
                self.call(201, "POST", f"{start}?digest={name}", (), data)
            else:
                location = self.call(202, "POST", start)["Location"]
                if how == "patch":
                    location = self.call(202, "PATCH", location, (), data)["Location"]
                    data = b""
                self.call(201, "PUT", with_query(location, digest=name), (), data)
        self.again = None
        return name

    def mount(self, name, source):
        with self.ledger.change((("blob", self.repo, name), True)):
            self.call(201, "POST", f"/v2/{self.repo}/blobs/uploads/?mount={name}&from={source}")

    def put_manifest(self, body, tag=None, repo=None):
        repo = repo or self.repo
        name = digest(body)
        manifest = json.loads(body)
        changes = [(("manifest", repo, name), True)]
        if tag:
            changes.append((("tag", repo, tag), name))
        if "subject" in manifest:
            changes.append((("referrer", repo, (manifest["subject"]["digest"], name)), True))
        blobs = [d["digest"] for d in [manifest["config"], *manifest["layers"]]]
        self.blobs_of[repo, name] = blobs
        self.used.update((repo, b) for b in blobs)
        self.again = lambda: self.put_manifest(body, tag, repo)
        with self.ledger.change(*changes):
            self.call(201, "PUT", f"/v2/{repo}/manifests/{tag or name}",
                      {"Content-Type": manifest["mediaType"]}, body)
        self.again = None
        return name

    def image(self, subject=None, **more):
        """The bytes of a manifest, its blobs pushed."""
        config, layer = self.fresh(), self.fresh()
        for data in config, layer:
            self.push(data)
        if subject:
            more["subject"] = subject
        return json.dumps(image_of(config, [layer], **more)).encode()

    # The same by chance

    def any_blob(self):
        self.push(self.fresh())

    def any_shared(self):
        self.push(self.rng.choice(self.shared))

    def any_common(self):
        self.push(self.rng.choice([*self.shared, self.fresh()]), repo=COMMON)

    def any_mount(self):
        common = self.ledger.sure("blob", COMMON)
        if common:
            self.mount(self.rng.choice(common), COMMON)

    def any_image(self):
        tag = self.rng.choice([None, "t1", "t2", "t3"])
        subject = None
        if self.rng.random() < 0.3:
            subject = descriptor(self.rng.choice(self.shared), "a/b")
        self.put_manifest(self.image(subject), tag)

    def any_delete_blob(self):
        names = [n for n in self.ledger.sure("blob", self.repo) if (self.repo, n) not in self.used]
        if names:
            name = self.rng.choice(names)
            with self.ledger.change((("blob", self.repo, name), None)):
                self.call(202, "DELETE", f"/v2/{self.repo}/blobs/{name}")

    def any_delete_tag(self):
        tags = self.ledger.sure("tag", self.repo)
        if tags:
            tag = self.rng.choice(tags)
            with self.ledger.change((("tag", self.repo, tag), None)):
                self.call(202, "DELETE", f"/v2/{self.repo}/manifests/{tag}")

    def any_delete_manifest(self):
        names = self.ledger.sure("manifest", self.repo)
        if not names:
            return
        name = self.rng.choice(names)
        with self.ledger.lock:
            keys = [k for k, v in self.ledger.facts.items() if k[1] == self.repo and (
                k[0] == "manifest" and k[2] == name or k[0] == "tag" and name in v or
                k[0] == "referrer" and k[2][1] == name)]
        with self.ledger.change(*((key, None) for key in keys)):
            self.call(202, "DELETE", f"/v2/{self.repo}/manifests/{name}")

    def any_upload(self):
        """One request more of an upload of several."""
        under_way = self.ledger.sure("upload", self.repo)
        if not under_way:
            data = self.rng.randbytes(self.largest)
            location = self.call(202, "POST", f"/v2/{self.repo}/blobs/uploads/")["Location"]
            with self.ledger.change((("upload", self.repo, digest(data)),
                                     Upload(location, data))):
                pass
            return
        name = under_way[0]
        (upload,) = self.ledger.facts["upload", self.repo, name]
        left = upload.data[upload.sent:]
        if len(left) > self.largest // 4:
            part = left[:self.rng.randrange(2, len(left))]
            upload.sent += len(part)
            self.call(202, "PATCH", upload.location, (), part)
            upload.confirmed = upload.sent
        else:
            upload.sent = len(upload.data)
            with self.ledger.change((("upload", self.repo, name), None),
                                    (("blob", self.repo, name), True)):
                self.call(201, "PUT", with_query(upload.location, digest=name), (), left)

    DEEDS = {any_blob: 4, any_shared: 4, any_common: 2, any_mount: 3, any_image: 5,
             any_delete_blob: 4, any_delete_tag: 1, any_delete_manifest: 1, any_upload: 3}

    def deed(self):
        """Something, or first what the last crash cut off."""
        if self.again and self.rng.random() < 0.7:
            self.again()
        else:
            self.again = None
            (deed,) = self.rng.choices([*self.DEEDS], [*self.DEEDS.values()])
            deed(self)


class Load:
    """Pushers in threads, round after round, on one folder."""

    def __init__(self, seed, pushers=6, largest=300000):
        self.ledger = Ledger()
        shared = [random.Random(f"{seed} shared {i}").randbytes(3000 << i) for i in range(5)]
        self.pushers = [Pusher(self.ledger, random.Random(f"{seed} {i}"), f"c{i}", shared, largest)
                        for i in range(pushers)]
        self.ending = False
        self.failures = []
        self.threads = []

    def start(self, address):
        self.ending = False
        for pusher in self.pushers:
            # Now and then a name that needs new folders.
            if pusher.rng.random() < 0.3:
                pusher.repo = f"{pusher.name}/{pusher.rng.randbytes(4).hex()}/deep/er"
            pusher.open(address)
        self.threads = [threading.Thread(target=self._run, args=[p]) for p in self.pushers]
        for thread in self.threads:
            thread.start()

    def _run(self, pusher):
        try:
            while not self.ending:
                pusher.deed()
        except LOST as lost:
            if not self.ending:
                self.failures.append(f"{pusher.repo}: cut off before the crash: {lost!r}")
        except Exception as failure:
            self.failures.append(f"{pusher.repo}: {failure!r}")
        finally:
            pusher.client.close()

    def join(self):
        for thread in self.threads:
            thread.join()
        failures, self.failures = self.failures, []
        return failures


class Checker:
    """Holds a server against the ledger, once."""

    def __init__(self, ledger, address, power=False):
        self.ledger = ledger
        self.client = Client(address)
        self.power = power    # a power cut may take an upload back
        self.whole = {}       # (repo, digest) -> its blob as it was found
        self.lists = {}

    def check(self, everything=False):
        """What was lost or is damaged, a line each. Afterwards the ledger says
        what was found."""
        facts = self.ledger.facts
        keys = set(facts) if everything else self.ledger.touched
        # Uploads first: finishing one makes a blob.
        keys = sorted(keys, key=lambda k: (k[0] != "upload", repr(k)))
        losses = []
        for key in keys:
            if key[0] == "upload":
                losses += self._upload(key)
                continue
            found = getattr(self, "_" + key[0])(*key[1:])
            if found not in facts[key]:
                losses.append(f"{key}: {found!r} is there, and should be {facts[key]!r}")
            facts[key] = {found}
        for repo in {key[1] for key in keys if key[0] == "tag"}:
            losses += self._tags(repo)
        self.ledger.touched.clear()
        self.client.close()
        return losses

    def _get(self, repo, kind, reference):
        answer = self.client.get(f"/v2/{repo}/{kind}/{reference}")
        if answer.status == 404:
            return None, None
        name = digest(answer.body)
        if answer.status != 200 or answer["Docker-Content-Digest"] != name:
            return f"damaged: {answer.status}, {len(answer.body)} bytes", None
        return name, answer.body

    def _blob(self, repo, name):
        if (repo, name) not in self.whole:
            found, _ = self._get(repo, "blobs", name)
            self.whole[repo, name] = True if found == name else found
        return self.whole[repo, name]

    def _manifest(self, repo, reference):
        found, body = self._get(repo, "manifests", reference)
        if found == reference:
            return self._complete(repo, body) or True
        return found

    def _tag(self, repo, tag):
        found, body = self._get(repo, "manifests", tag)
        return body and self._complete(repo, body) or found

    def _complete(self, repo, body):
        """What a manifest names must be there: nobody deleted it."""
        manifest = json.loads(body)
        for part in manifest["config"], *manifest["layers"]:
            if self._blob(repo, part["digest"]) is not True:
                return f"a manifest without its blob {part['digest']}"
        return None

    def _tags(self, repo):
        answer = self.client.get(f"/v2/{repo}/tags/list")
        listed = (answer.json()["tags"] or []) if answer.status == 200 else []
        expected = self.ledger.sure("tag", repo)
        return [] if sorted(expected) == listed else [f"{repo}: tags {listed}, not {expected}"]

    def _referrer(self, repo, pair):
        subject, name = pair
        if (repo, subject) not in self.lists:
            answer = self.client.get(f"/v2/{repo}/referrers/{subject}")
            listed = {m["digest"] for m in answer.json()["manifests"]}
            self.lists[repo, subject] = listed
        if name not in self.lists[repo, subject]:
            return None
        return True if self._manifest(repo, name) is True else "a referrer that is not there"

    def _upload(self, key):
        """It goes on from its last confirmed byte; or its end had come."""
        _, repo, name = key
        states = self.ledger.facts.pop(key)
        self.ledger.touched.discard(key)
        upload = next(filter(None, states), None)
        if upload is None:
            return []
        answer = self.client.get(upload.location)
        blob = ("blob", repo, name)
        if answer.status == 404 and (self.power or None in states):
            # A blob that was being committed is there now, unless power was cut.
            if not self.power:
                self.ledger.facts[blob] = {True}
            return []
        if answer.status != 204:
            return [f"{key}: {answer}"]
        size = int(answer["Range"].partition("-")[2]) + 1
        if size == 1:
            size = 0    # 0-0 also says that it is empty, and parts are larger
        if not (0 if self.power else upload.confirmed) <= size <= upload.sent:
            return [f"{key}: at {size} of {upload.sent}, {upload.confirmed} were confirmed"]
        answer = self.client.put(with_query(upload.location, digest=name), upload.data[size:])
        self.ledger.facts[blob] = {True}
        self.ledger.touched.add(blob)
        found = self._blob(repo, name)
        if (answer.status, found) != (201, True):
            return [f"{key}: finished from {size}: {answer}, then {found!r}"]
        return []
