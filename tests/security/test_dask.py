"""Who gives work to the workers that a command starts on its own machine."""

from __future__ import annotations

import importlib.util
import logging

import pytest

from featcache.scaling import cluster
from featcache.scaling.cluster import Cluster

distributed = pytest.importorskip("distributed")


def test_without_cryptography_it_says_that_they_listen_without_a_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cryptography" else find(name)
    )
    with caplog.at_level(logging.WARNING, "featcache"):
        assert cluster._security(distributed) is None
    assert "can run code as you" in caplog.text
    assert "pip install cryptography" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="no cryptography")
def test_only_who_has_the_key_gives_work() -> None:
    with Cluster("local:1") as here:
        assert here.client.submit(sum, (1, 2)).result() == 3
        address = here.client.scheduler.address
        (worker,) = here.workers()
        assert address.startswith("tls://127.0.0.1:")
        assert worker.startswith("tls://127.0.0.1:")
        stranger = distributed.Security.temporary()
        for scheme, security in (("tcp", None), ("tls", stranger)):
            with pytest.raises((OSError, TypeError)):
                distributed.Client(
                    address.replace("tls", scheme), security=security, timeout=2,
                    set_as_default=False,
                )  # fmt: skip
