"""The peak of this processor: its clock, and its multiply-accumulates (MACs) per cycle.

Both are measured, since tables of processors tell neither a virtual machine's clock nor what it
shares with its neighbors. Loops of a few instructions run for some milliseconds each; of many such
bursts the fastest counts, because an interruption only lengthens one.

- *Clock*: additions of which each needs the result of the one before. One takes a cycle on every
  x86 processor.
- *MACs per cycle*: independent VPDPBUSD (VNNI, four 8-bit products in each 32-bit lane) where the
  host has it, else independent fused multiply-adds (FMA) in float32, in the widest registers.

The clock of a shared host changes while a benchmark runs. So the second loop is also an engine,
`PeakEngine`, which runs in the same interleaved rounds as what is compared with the peak.

The loops are machine code in memory of this process, because no compiler may be there. Only x86-64
has them; elsewhere nothing is known of the peak.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (encodings).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from repzoo.artifact import Artifact
from repzoo.engines import Array
from repzoo.measure.host import host
from repzoo.measure.latency_case import Case
from repzoo.processor import EXACT_FEATURES

ADDS = 64  # in one turn of the loop
ACCUMULATORS = 12  # independent sums: more than latency x units of any processor needs
BURST_SECONDS = 0.002
BURSTS = 40
FIRST_TURNS = 1000
CALL_SECONDS = 0.001  # of one call of PeakEngine
NOTHING = np.zeros(0, np.float32)

ADD = bytes.fromhex("4801d0")  # add rax, rdx
CLEAR = bytes.fromhex("c5fc77")  # vzeroall
END_OF_TURN = bytes.fromhex("48ffcf0f85")  # dec rdi; jnz to the distance that follows
RETURN = bytes.fromhex("c3")
JUMP_BYTES = 4
# Registers 14 and 15 are multiplied; the destination is in the last byte and the second.
VEX = (bytes.fromhex("c4c20d"), bytes.fromhex("c4420d"))
EVEX = (bytes.fromhex("62d20d48"), bytes.fromhex("62520d48"))
FMA, DOT = 0xB8, 0x50  # vfmadd231ps, vpdpbusd


@dataclass(frozen=True)
class Peak:
    """What one core can do at most.

    clock_ghz       billions of cycles a second
    macs_per_cycle  multiply-accumulates
    instruction     "VNNI" or "FMA"
    """

    clock_ghz: float
    macs_per_cycle: float
    instruction: str

    @property
    def macs_per_second(self) -> float:
        """Multiply-accumulates of one core."""
        return self.clock_ghz * 1e9 * self.macs_per_cycle


@dataclass(frozen=True)
class Multiplier:
    """The instruction that sets the peak.

    name        as in `Peak`
    prefixes    of its encoding, for destinations 0..7 and 8..15
    opcode      its byte
    macs        of one instruction
    """

    name: str
    prefixes: tuple[bytes, bytes]
    opcode: int
    macs: int

    @property
    def macs_of_turn(self) -> int:
        """Of one turn of the loop over `code`."""
        return ACCUMULATORS * self.macs

    def code(self) -> bytes:
        """One instruction for each accumulator."""
        encoded = bytearray()
        for register in range(ACCUMULATORS):
            operands = 0xC0 | (register % 8) << 3 | 7
            encoded += self.prefixes[register // 8]
            encoded += bytes([self.opcode, operands])
        return bytes(encoded)


def multiplier(flags: Collection[str]) -> Multiplier | None:
    """The widest multiplier of a processor with these `flags` (those of measure.host)."""
    if "avx512_vnni" in flags:
        return Multiplier("VNNI", EVEX, DOT, 64)
    if "avx_vnni" in flags:
        return Multiplier("VNNI", VEX, DOT, 32)
    if "avx512f" in flags:
        return Multiplier("FMA", EVEX, FMA, 16)
    if "avx2" in flags:
        return Multiplier("FMA", VEX, FMA, 8)
    return None


def known_multiplier() -> Multiplier | None:
    """The multiplier of this host; None where it is not known, or its loop cannot run."""
    # Windows wants some of the registers preserved.
    if platform.machine() != "x86_64" or platform.system() == "Windows":
        return None
    return multiplier(host()["int8"])


def measure() -> Peak | None:
    """The peak of one core; None where it is not known how to measure it."""
    widest = known_multiplier()
    if widest is None:
        return None
    try:
        clock = ADDS * Loop(b"", ADD * ADDS).turns_per_second()
        turns = Loop(CLEAR, widest.code()).turns_per_second()
    except OSError:  # a system that lets no process write code for itself
        return None
    macs_per_second = turns * widest.macs_of_turn
    return Peak(clock / 1e9, macs_per_second / clock, widest.name)


def has_vnni() -> bool:
    """Whether this host adds 8-bit products in 32 bits."""
    return not EXACT_FEATURES.isdisjoint(host()["int8"])


def loop(before: bytes, body: bytes) -> bytes:
    """Machine code that runs `body` as often as its first argument says, after `before`."""
    length = len(body) + len(END_OF_TURN) + JUMP_BYTES
    distance = (-length).to_bytes(JUMP_BYTES, "little", signed=True)
    return before + body + END_OF_TURN + distance + before + RETURN


class Loop:
    """A loop in machine code, in memory of its own.

    Raises:
        OSError: the system lets no process write code for itself.
    """

    def __init__(self, before: bytes, body: bytes) -> None:
        """`body` is repeated, `before` is not."""
        code = loop(before, body)
        access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        self._memory = mmap.mmap(-1, len(code), prot=access)
        self._memory.write(code)
        # It keeps the memory mapped.
        self._start = ctypes.c_char.from_buffer(self._memory)
        function = ctypes.CFUNCTYPE(None, ctypes.c_uint64)
        self.run = function(ctypes.addressof(self._start))

    def seconds(self, turns: int) -> float:
        """How long `turns` of the loop take."""
        began = time.perf_counter_ns()
        self.run(turns)
        return (time.perf_counter_ns() - began) / 1e9

    def turns_per_second(self) -> float:
        """The most of many bursts."""
        turns = self.turns_in(BURST_SECONDS)
        fastest = min(self.seconds(turns) for _ in range(BURSTS))
        return turns / fastest

    def turns_in(self, seconds: float) -> int:
        """About how many turns take `seconds`."""
        return max(
            FIRST_TURNS, round(FIRST_TURNS * seconds / self.seconds(FIRST_TURNS))
        )


class PeakEngine:
    """The peak of one core as an engine, whatever model it is asked to open.

    Every call runs the same number of MACs, `macs`.

    Raises:
        OSError: as `Loop`.
    """

    name = "peak"

    def __init__(self, widest: Multiplier) -> None:
        self._loop = Loop(CLEAR, widest.code())
        self._turns = self._loop.turns_in(CALL_SECONDS)
        self.macs = self._turns * widest.macs_of_turn

    def version(self) -> str:
        """None that matters."""
        return ""

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> PeakEngine:
        """See `engines.Engine.open`."""
        return self

    def run(self, inputs: Any) -> Array:
        """See `engines.Session.run`; it computes nothing."""
        self._loop.run(self._turns)
        return NOTHING

    def run_all(self, inputs: Any) -> list[Array]:
        """See `engines.Session.run_all`."""
        return [self.run(inputs)]


def case() -> Case | None:
    """The peak as a case to time with others; None where it is not known."""
    widest = known_multiplier()
    if widest is None:
        return None
    try:
        engine = PeakEngine(widest)
    except OSError:
        return None
    artifact = Artifact(onnx.ModelProto(), engine.name)
    return Case(artifact=artifact, engine=engine, session=engine, inputs=NOTHING)
