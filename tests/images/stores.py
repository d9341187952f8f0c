"""A store in memory that counts what it is asked, and fails when it is told to."""

from __future__ import annotations

import hashlib
from collections import Counter

from fsspec.implementations.memory import MemoryFileSystem


class Flaky(MemoryFileSystem):
    """`flaky://…`, with ETags as object stores give them; `errors` are raised before reading."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012  (as MemoryFileSystem's own)
    pseudo_dirs = [""]  # noqa: RUF012
    errors: dict = {}  # noqa: RUF012
    asked: Counter = Counter()  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, **options):
        self.asked["read"] += 1
        waiting = self.errors.get(self._strip_protocol(path))
        if waiting:
            raise waiting.pop(0)
        return super().cat_file(path, **options)

    def info(self, path, **options):
        self.asked["info"] += 1
        return self._marked(super().info(path, **options))

    def find(self, path, **options):
        self.asked["list"] += 1
        return {name: self._marked(one) for name, one in super().find(path, **options).items()}

    def _marked(self, facts):
        if facts["type"] != "file":
            return facts
        content = self.store[facts["name"]].getvalue()
        return {**facts, "ETag": f'"{hashlib.md5(content).hexdigest()}"'}
