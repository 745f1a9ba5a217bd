"""Several processes that evaluate together, as torchrun starts them; the only file of measuring that may import torch.

A process that fails says so in the exchange that the others are in, or come to next, so that all of them end with its sentence.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Protocol

from repzoo.errors import InputError, MissingExtra, RepzooError

MEETING_SECONDS = 60.0  # for all processes to have started; torch waits five times as long, twice
WAITING = timedelta(
    hours=12
)  # for a slower host to come to an exchange; one that is gone breaks its connection at once
MAX_MESSAGE_BYTES = 2**31  # from one process: 50,000 images take 1.4 MB


class Group(Protocol):
    """The processes that share one evaluation; this one is `rank` of `size`."""

    rank: int
    size: int

    def threads(self, cores: int) -> int:
        """How many of this host's `cores` are this process's."""

    def gather(self, data: bytes) -> list[bytes]:
        """The `data` of every process, by rank, in every process. All must call it equally often."""

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse when the processes were given different `facts`."""

    def check(self) -> None:
        """Raise when another process has failed; cheap, for use between two pieces of work."""


class Alone:
    """A process that has no others."""

    rank, size = 0, 1

    def threads(self, cores: int) -> int:
        """All of them."""
        return cores

    def gather(self, data: bytes) -> list[bytes]:
        """Its own."""
        return [data]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """It always does."""

    def check(self) -> None:
        """Nothing can have failed."""


ALONE: Group = Alone()


def rank() -> int:
    """This process's place among those that torchrun started; 0 for one that was started alone."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdigit() and os.environ.get("WORLD_SIZE") else 0


@contextlib.contextmanager
def join_group() -> Iterator[Group]:
    """The group of this process, by the environment that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    An error of repzoo inside the block ends every process with its exit code; the first one raises it, the others are quiet.

    Raises:
        MissingExtra: several processes, but no torch.
        InputError: the processes do not find each other, or one fails.
    """
    if _world_size() < 2:
        yield ALONE
        return
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "FATAL"
    )  # a stack of frames for each failure that is said in a sentence below
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("evaluating with several processes", "torch") from error
    group = _Gloo()
    try:
        yield group
        group.gather(b"")  # nobody leaves before all have succeeded
    except RepzooError as error:
        if group.fail(error) and group.rank:
            sys.exit(error.exit_code)
        raise
    finally:
        group.close()


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit():
        raise InputError(
            f"WORLD_SIZE is {text!r}; expected the number of processes, as torchrun sets it"
        )
    return int(text)


class _Failed(InputError):
    """A process failed and all know; its sentence is the message."""


class _Ended(InputError):
    """A process is gone without a word."""


class _Gloo:
    """Processes that talk through torch's gloo."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            _require_master()
            store, self.rank, self.size = next(
                iter(rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS)))
            )
            self._store = store
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.size, timeout=WAITING
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"the processes do not find each other: {_line(error)}; start all of them with torchrun within a minute, "
                "with the address and a free port of the first one's host"
            ) from None

    def threads(self, cores: int) -> int:
        """The cores, shared among the processes of this host."""
        return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))

    def gather(self, data: bytes) -> list[bytes]:
        """See `Group.gather`."""
        return self._exchange(b"+" + data)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See `Group.agree`."""
        mine = json.dumps({**facts, "host": socket.gethostname()}, sort_keys=True)
        all_facts = [json.loads(one) for one in self.gather(mine.encode())]
        for place, one in enumerate(all_facts):
            for key in facts:
                if one[key] != all_facts[0][key]:
                    raise InputError(
                        f"process {place} of {self.size} on {one['host']} has other {key} than process 0 on {all_facts[0]['host']}; "
                        "give all of them the same files"
                    )

    def check(self) -> None:
        """See `Group.check`."""
        with self._spoken():
            failed = self._store.check(["repzoo/failed"])
        if failed:
            self.gather(b"")  # in which the one that failed says why

    def fail(self, error: RepzooError) -> bool:
        """Tell the others, unless they know; False when they cannot be reached."""
        if isinstance(error, _Ended | _Failed):
            return isinstance(error, _Failed)
        try:
            self._store.set("repzoo/failed", str(self.rank))
            self._exchange(b"-" + str(error).encode())
        except (RuntimeError, _Ended):
            return False
        except _Failed:
            pass  # its own words, come back, or those of another that failed at the same time
        return True

    def close(self) -> None:
        """Leave the group."""
        import torch.distributed as dist

        gc.collect()  # a trained module holds the group in circles; its threads must end here, not when the process does
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

    def _exchange(self, data: bytes) -> list[bytes]:
        import torch
        import torch.distributed as dist

        with self._spoken():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = int(max(sizes))
            if longest > MAX_MESSAGE_BYTES:
                raise InputError(
                    f"a process sends {longest:,} bytes; at most {MAX_MESSAGE_BYTES:,} are accepted"
                )
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, padded)
        messages = [
            one.numpy().tobytes()[: int(size)] for one, size in zip(found, sizes, strict=True)
        ]
        for one in messages:
            if one[:1] == b"-":
                raise _Failed(one[1:].decode())
        return [one[1:] for one in messages]

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        """A connection that breaks is another process's end."""
        try:
            yield
        except RuntimeError as error:
            raise _Ended(
                f"another of the {self.size} processes has ended ({_line(error)}); start them again"
            ) from None


def _require_master() -> None:
    """Say at once what torch would try again and again: a name that no host has."""
    host = os.environ.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(host or None, os.environ.get("MASTER_PORT") or 0)
    except OSError as error:
        raise OSError(
            f"MASTER_ADDR is {host!r}, and no host of that name is known ({error.strerror})"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
