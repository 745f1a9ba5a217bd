"""The hosts whose figures `match` may use: this machine, machines of Records, and boards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.board import BoardAccuracy, BoardLatency
from repzoo.measure.host import host
from repzoo.measure.record import Record
from repzoo.plugins import unknown
from repzoo.zoo import catalog

THIS = "this"
ANY = "any"

# What tells machines apart: processor, architecture, CPUs that may be used, INT8 instructions.
Machine = tuple[str, str, int, tuple[str, ...]]


@dataclass(frozen=True)
class MatchHost:
    """A host that a candidate runs on.

    name     "this", a device of the catalog or of logs such as "rdk-x5", or a description
    machine  what identifies a machine that repzoo measured on; None for a device
    """

    name: str
    machine: Machine | None = None


def machine_of(facts: Mapping[str, Any]) -> Machine | None:
    """What identifies the machine of a Record's host; None where the Record does not say."""
    if not isinstance(facts.get("cpu"), str):
        return None
    cores = facts.get("affinity", facts.get("cores", 0))
    flags = facts.get("int8")
    names = map(str, flags) if isinstance(flags, list | tuple) else ()
    return (
        facts["cpu"],
        str(facts.get("machine", "")),
        cores if isinstance(cores, int) else 0,
        tuple(sorted(names)),
    )


def this_machine() -> MatchHost:
    """The host of this process."""
    return MatchHost(THIS, machine_of(host()))


def find_hosts(name: str, records: Iterable[Record[Any]]) -> list[MatchHost]:
    """The hosts that `name` means; only "any" means several.

    Args:
        name: "this", "any", a device, or a part of the description of a machine of `records`.
        records: that measured figures come from.

    Raises:
        InputError: an unknown name, or one that several machines share.
    """
    machines = _machines(records)
    devices = _devices(records)
    if name == THIS:
        return [this_machine()]
    if name == ANY:
        return [this_machine(), *machines, *devices]
    for device in devices:
        if device.name == name:
            return [device]
    alike = [item for item in machines if name.casefold() in item.name.casefold()]
    exact = [item for item in machines if item.name == name]
    matching = exact or alike
    if len(matching) == 1:
        return matching
    if matching:
        names = "; ".join(item.name for item in matching)
        raise InputError(
            f"the Records are of {len(matching)} hosts that {name!r} names ({names}); their "
            "latencies are not comparable: give more of one host's name, or the Records of one host"
        )
    known = [THIS, ANY, *(item.name for item in (*devices, *machines))]
    raise InputError(unknown("host", name, known))


def timed_devices() -> list[str]:
    """Names of the devices whose latencies the catalog has."""
    timed: dict[str, None] = {}
    for spec in catalog.models():
        for figure in spec.figures:
            device = catalog.sources()[figure.source].host
            latencies = (figure.latency_ms, figure.latency_1thread_ms)
            if device and any(latency is not None for latency in latencies):
                timed[device] = None
    return list(timed)


def _machines(records: Iterable[Record[Any]]) -> list[MatchHost]:
    """The machines that `records` were measured on, other than this one."""
    machines: dict[Machine, MatchHost] = {}
    own = this_machine().machine
    for record in records:
        machine = machine_of(record.host)
        if machine is not None and machine != own:
            machines[machine] = MatchHost(_describe(machine), machine)
    return list(machines.values())


def _describe(machine: Machine) -> str:
    """The machine in a few words, such as "AMD EPYC, 2 CPUs (avx2)"."""
    processor, architecture, cpus, flags = machine
    name = processor or architecture or "unknown processor"
    instructions = f" ({', '.join(flags)})" if flags else ""
    return f"{name}, {cpus} CPU{'' if cpus == 1 else 's'}{instructions}"


def _devices(records: Iterable[Record[Any]]) -> list[MatchHost]:
    """The devices that the catalog or imported logs have figures of."""
    names = [source.host for source in catalog.sources().values() if source.host]
    for record in records:
        if isinstance(record.values, BoardLatency | BoardAccuracy):
            names.append(record.values.target)
    return [MatchHost(name) for name in dict.fromkeys(names)]
