"""Cluster: the workers that a command was pointed at, or that it starts here."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from featcache.errors import ClusterError, RecipeError, counted, first_line

log = logging.getLogger("featcache")

_PATIENCE = 10.0  # seconds for a scheduler to answer
_LOCAL = "local:"
_LOGGERS = ("distributed", "distributed.client", "distributed.nanny", "distributed.worker")


class Cluster:
    """A Dask scheduler and its workers; reached, or started, when first needed.

    Parameters
    ----------
    where : str
        "tcp://host:8786" or another address, the path of a scheduler file, "local:N" for N worker
        processes on this machine, or "local:gpus" for one for each GPU.

    Raises
    ------
    RecipeError
        If that is none of these, or Dask is not installed.
    """

    def __init__(self, where: str) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise RecipeError("Dask is not installed", 'pip install "featcache[dask]"')
        self.where = where
        self._count = _read(where)
        self._stack = ExitStack()
        self._client: Any = None

    @property
    def local(self) -> bool:
        """Whether it is started here, and ends with the command."""
        return self.where.startswith(_LOCAL)

    @property
    def here(self) -> int:
        """Workers on this machine that are started here; 0 for a cluster that is there."""
        return self._count

    @property
    def threads(self) -> int:
        """Threads that one worker may use; 0 where that is for the worker to say."""
        return max(1, (os.cpu_count() or 1) // self._count) if self.local else 0

    @property
    def client(self) -> Any:
        """The connection to the scheduler.

        Raises
        ------
        ClusterError
            If no scheduler answers.
        """
        if self._client is None:
            self._client = self._connect()
            seen = len(self._client.nthreads())
            log.info(
                "%s: %s, dashboard %s",
                self.where,
                counted(seen, "worker"),
                self._client.dashboard_link,
            )
        return self._client

    def _connect(self) -> Any:
        dask: Any = importlib.import_module("distributed")
        with ExitStack() as stack:
            stack.enter_context(_silence())
            where: dict[str, Any] = {"address": self.where}
            if self.local:
                where = {"address": stack.enter_context(_here(_workers(self.where, self.threads)))}
            elif "://" not in self.where:
                where = {"scheduler_file": self.where}
            try:
                client = dask.Client(**where, timeout=_PATIENCE, set_as_default=False)
            except (OSError, ValueError, KeyError) as error:
                raise ClusterError(
                    f"no Dask scheduler answers at {self.where}: {first_line(error)}",
                    "Start one with `dask scheduler` and workers with `dask worker ADDRESS`, or "
                    "use this machine: --dask local:2",
                ) from None
            stack.callback(client.close, timeout=1)
            self._stack = stack.pop_all()
            return client

    def workers(self) -> dict[str, int]:
        """Addresses of the workers that are there, and how many tasks each takes at a time.

        Raises
        ------
        ClusterError
            If the scheduler is lost, and has not come back for some seconds.
        """
        end = time.monotonic() + _PATIENCE + 5
        while time.monotonic() < end and self.client.status != "closed":
            if self.client.status == "running":
                try:
                    return {str(k): int(v) for k, v in self.client.nthreads().items()}
                except (OSError, TimeoutError):
                    pass
            time.sleep(0.2)
        raise self.lost()

    def forget(self, futures: Sequence[Any]) -> None:
        """Cancel what nobody waits for any more."""
        if self.client.status == "running":
            with suppress(OSError, TimeoutError, CancelledError):
                self.client.cancel(list(futures), force=True)

    def lost(self) -> ClusterError:
        """The error for when the scheduler is gone."""
        return ClusterError(
            f"the Dask scheduler at {self.where} is gone",
            "What is done is kept. Start the scheduler and its workers again; then the same "
            "command goes on from there.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        self._stack.close()


def _read(where: str) -> int:
    """How many workers to start; 0 for a cluster that is there."""
    if where == f"{_LOCAL}gpus":
        return len(_gpus())
    if where.startswith(_LOCAL):
        number = where.removeprefix(_LOCAL)
        if number.isdecimal() and int(number) > 0:
            return int(number)
    elif "://" in where or Path(where).is_file():
        return 0
    raise RecipeError(
        f"no cluster {where!r}",
        "Pass an address such as tcp://host:8786, the path of a scheduler file, local:2 for two "
        "workers on this machine, or local:gpus for one for each GPU.",
    )


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may say for one worker each."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise RecipeError("local:gpus, and there is no GPU", "--dask local:2")
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(number) for number in range(count)]


def _workers(where: str, threads: int) -> list[dict[str, str]]:
    """The environment of each worker to start."""
    plain = {"OMP_NUM_THREADS": str(threads)}
    if where == f"{_LOCAL}gpus":
        return [plain | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in _gpus()]
    return [plain] * _read(where)


@contextmanager
def _here(environments: list[dict[str, str]]) -> Iterator[Any]:
    """A scheduler and workers on this machine, each a process that is started again if it dies."""
    import dask

    distributed: Any = importlib.import_module("distributed")

    security = _security(distributed)
    where = {"host": "127.0.0.1", "security": security, "protocol": "tls" if security else "tcp"}
    common: Mapping[str, Any] = {
        **where, "nthreads": 1, "memory_limit": 0, "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }  # fmt: skip
    workers = {
        number: {"cls": distributed.Nanny, "options": {**common, "env": env}}
        for number, env in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {**where, "port": 0, "dashboard_address": "127.0.0.1:0"},
    }
    # Set before a worker's interpreter starts: later, its libraries have counted their threads.
    early = {
        f"distributed.nanny.pre-spawn-environ.{name}": value
        for name, value in environments[0].items()
        if name != "CUDA_VISIBLE_DEVICES"
    }
    with (
        dask.config.set(early),
        distributed.SpecCluster(
            workers=workers,
            scheduler=scheduler,
            security=security,
            silence_logs=logging.CRITICAL,
            name="featcache",
        ) as cluster,
    ):
        yield cluster


def _security(distributed: Any) -> Any:
    """A key of this cluster's own, without which nobody on this machine gives it work."""
    if importlib.util.find_spec("cryptography") is not None:
        return distributed.Security.temporary()
    log.warning(
        "workers of this machine listen without a key: whoever has an account here can run code "
        "as you while they work. pip install cryptography, and they talk by TLS"
    )
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """Dask's own log says in many lines what featcache's errors say in one."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
