"""In what type an engine computes float32 models.

OpenVINO computes them in bfloat16 where the processor has AMX, and its default sessions are what
people run. It is three times as fast on RepViT-m0.9, and rounds to 8 bits of precision. Whoever
reads a latency or an accuracy of such an engine must know.
"""

from __future__ import annotations

from collections.abc import Iterable

from repzoo.engines import Engine
from repzoo.remark import Remark

FLOAT32 = "float32"


def float_type(engine: Engine) -> str:
    """The type that float32 models are computed in, in sessions that are not exact."""
    computes_float32_in = getattr(engine, "computes_float32_in", None)
    if computes_float32_in is None:
        return FLOAT32
    computed: str = computes_float32_in()
    return computed


def facts(engine: Engine) -> dict[str, str]:
    """What Records say of an engine: `name`, `version`; `float32`, where it is another type."""
    known = {"name": engine.name, "version": engine.version()}
    computed = float_type(engine)
    return known if computed == FLOAT32 else {**known, "float32": computed}


def remarks(engines: Iterable[Engine]) -> list[str]:
    """A sentence for each of `engines` that computes float32 models in another type."""
    sentences: dict[str, Remark] = {}
    for engine in engines:
        computed = float_type(engine)
        if computed != FLOAT32:
            sentences[engine.name] = Remark(
                "{engine} computes float32 models in {type} on this processor, as its default "
                "sessions do: faster than in float32, and with fewer digits",
                engine=engine.name,
                type=computed,
            )
    return list(sentences.values())
