"""Several processes that evaluate together, as torchrun starts them.

This is the only file of `measure` that may import torch. A process that fails reports its error in
the exchange that the others are in, or enter next; all of them end with its message.
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

from repzoo.errors import InputError, MissingExtra, RepzooError, first_line

# For all processes to have started. torch waits five times as long, and tries twice.
RENDEZVOUS_SECONDS = 60.0
# For a slower host to reach an exchange. A process that ends breaks its connection at once.
EXCHANGE_TIMEOUT = timedelta(hours=12)
MAX_MESSAGE_BYTES = 2**31  # from one process: 50,000 images take 1.4 MB

# The first byte of a message.
DATA, ERROR = b"+", b"-"
FAILED_KEY = "repzoo/failed"


class Group(Protocol):
    """The processes that share one evaluation; this one is number `rank` of `size`."""

    rank: int
    size: int

    def threads(self, cores: int) -> int:
        """How many of this host's `cores` this process should use."""

    def gather(self, data: bytes) -> list[bytes]:
        """The `data` of every process, by rank, in every process.

        A collective call: all processes must make it equally often.
        """

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse if the processes were given different `facts`. A collective call.

        Raises:
            InputError: they differ; the message names the process and the fact.
        """

    def check(self) -> None:
        """Raise if another process has failed; cheap, for use between two pieces of work."""


class Alone:
    """A group of one process."""

    rank = 0
    size = 1

    def threads(self, cores: int) -> int:
        """All cores."""
        return cores

    def gather(self, data: bytes) -> list[bytes]:
        """Its own data."""
        return [data]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Nothing to compare with."""

    def check(self) -> None:
        """No other process can have failed."""


ALONE: Group = Alone()


def rank() -> int:
    """This process's number among those that torchrun started; 0 for one that was started alone."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdigit() and os.environ.get("WORLD_SIZE") else 0


@contextlib.contextmanager
def join_group() -> Iterator[Group]:
    """The group of this process, as torchrun's environment variables describe it.

    They are RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    A RepzooError inside the block ends every process with its exit code. Process 0 raises the first
    error; the others exit without a message, so that it is printed once.

    Raises:
        MissingExtra: several processes, but no torch.
        InputError: the processes do not find each other, or one fails.
    """
    if _world_size() < 2:
        yield ALONE
        return
    # torch would print a stack of C++ frames for each failure that has a message below.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("evaluating with several processes", "torch") from error
    group = _GlooGroup()
    try:
        yield group
        group.gather(b"")  # nobody leaves before all have succeeded
    except RepzooError as error:
        if group.report_failure(error) and group.rank:
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


class _ReportedFailure(InputError):
    """A process failed, and all processes know; the message is that process's."""


class _LostProcess(InputError):
    """A process ended without reporting an error."""


class _GlooGroup:
    """Processes that communicate through torch's gloo."""

    def __init__(self) -> None:
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            _require_known_master()
            timeout = timedelta(seconds=RENDEZVOUS_SECONDS)
            store, own_rank, size = next(iter(rendezvous("env://", timeout=timeout)))
            self._store = store
            self.rank: int = own_rank
            self.size: int = size
            dist.init_process_group(
                "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=EXCHANGE_TIMEOUT,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"the processes do not find each other: {first_line(error)}; start all of them "
                "with torchrun within a minute, with the address and a free port of the first "
                "process's host"
            ) from None

    def threads(self, cores: int) -> int:
        """The cores, shared among the processes of this host."""
        return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))

    def gather(self, data: bytes) -> list[bytes]:
        """See `Group.gather`."""
        return self._exchange(DATA + data)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See `Group.agree`."""
        own = json.dumps({**facts, "host": socket.gethostname()}, sort_keys=True)
        by_rank = [json.loads(message) for message in self.gather(own.encode())]
        first = by_rank[0]
        for number, other in enumerate(by_rank):
            for key in facts:
                if other[key] != first[key]:
                    raise InputError(
                        f"process {number} of {self.size} on {other['host']} has other {key} than "
                        f"process 0 on {first['host']}; give all of them the same files"
                    )

    def check(self) -> None:
        """See `Group.check`."""
        with self._report_broken_connections():
            failed = self._store.check([FAILED_KEY])
        if failed:
            self.gather(b"")  # the process that failed sends its error in this exchange

    def report_failure(self, error: RepzooError) -> bool:
        """Tell the other processes of `error` unless they know; False if they are unreachable."""
        if isinstance(error, _LostProcess | _ReportedFailure):
            return isinstance(error, _ReportedFailure)
        try:
            self._store.set(FAILED_KEY, str(self.rank))
            self._exchange(ERROR + str(error).encode())
        except (RuntimeError, _LostProcess):
            return False
        except _ReportedFailure:
            pass  # this error, come back, or that of a process that failed at the same time
        return True

    def close(self) -> None:
        """Leave the group."""
        import torch.distributed as dist

        # A trained module holds the group in a reference cycle. Its threads must end here, not when
        # the interpreter does.
        gc.collect()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

    def _exchange(self, data: bytes) -> list[bytes]:
        """The `data` of every process without its first byte.

        Raises:
            _ReportedFailure: a process sent an error.
            _LostProcess: a process ended.
        """
        import torch
        import torch.distributed as dist

        with self._report_broken_connections():
            sizes = list(torch.zeros(self.size, 1, dtype=torch.int64))
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = int(max(sizes))
            if longest > MAX_MESSAGE_BYTES:
                raise InputError(
                    f"a process sends {longest:,} bytes; at most {MAX_MESSAGE_BYTES:,} are accepted"
                )
            # all_gather wants tensors of one size.
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            received = list(torch.empty(self.size, longest, dtype=torch.uint8))
            dist.all_gather(received, padded)
        messages = []
        for tensor, size in zip(received, sizes, strict=True):
            messages.append(tensor.numpy().tobytes()[: int(size)])
        for message in messages:
            if message.startswith(ERROR):
                raise _ReportedFailure(message[1:].decode())
        return [message[1:] for message in messages]

    @contextlib.contextmanager
    def _report_broken_connections(self) -> Iterator[None]:
        """Raise `_LostProcess` where a connection breaks: another process has ended."""
        try:
            yield
        except RuntimeError as error:
            raise _LostProcess(
                f"another of the {self.size} processes has ended ({first_line(error)}); "
                "start them again"
            ) from None


def _require_known_master() -> None:
    """Refuse a host name that does not exist at once; torch would try it again and again."""
    host = os.environ.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(host or None, os.environ.get("MASTER_PORT") or 0)
    except OSError as error:
        raise OSError(
            f"MASTER_ADDR is {host!r}, and no host of that name is known ({error.strerror})"
        ) from None
