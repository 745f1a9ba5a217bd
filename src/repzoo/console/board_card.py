"""The table of a board in the view of `repzoo card --target`."""

from __future__ import annotations

from rich.table import Table

from repzoo.console.output import make_table
from repzoo.measure.board import BoardLatency
from repzoo.report import figures
from repzoo.report.board import BoardFacts
from repzoo.report.card_facts import CardFacts


def board_table(card: CardFacts, board: BoardFacts) -> Table:
    """The figures of a board, each with its source; what nobody measured is a dash."""
    table = make_table(f"{card.name} on {board.target}", ">value", "source")
    size = figures.pixels(card.size)
    table.add_row("size (pixels)", size, "the model")
    table.add_row("classes", str(card.classes), "the model")
    parameters = figures.millions(card.cost["deploy"].parameters)
    table.add_row("parameters (M)", parameters, "the model")
    float_top1 = figures.percent(card.accuracy["deploy"].top1)
    table.add_row("float Top-1 %", float_top1, "this host")
    table.add_row("quantized Top-1 %", *_quantized(board))
    if board.difference is not None:
        difference = figures.points(board.difference)
        table.add_row("predicted drop - the maker's", difference, "points")
    elif board.top1_difference is not None:
        difference = figures.points(board.top1_difference)
        table.add_row("predicted Top-1 - the maker's", difference, "points")
    table.add_row("latency, 1 thread (ms)", *_single(board))
    many = board.many
    threads = f"{many.threads}" if many else "several"
    latency = (
        figures.ms(many.latency_ms) if many and many.latency_ms else figures.ABSENT
    )
    source = "board log" if many else "not measured"
    table.add_row(f"latency, {threads} threads (ms)", latency, source)
    table.add_row("frame rate (FPS)", *_rate(board))
    if board.on_accelerator is not None:
        accelerator, cpu = board.on_accelerator
        table.add_row(
            "nodes on the CPU", f"{cpu} of {accelerator + cpu}", "the maker's tool"
        )
    for row in board.accuracies:
        name = f"{row.precision} Top-1 %".strip()
        table.add_row(name, figures.percent(row.top1), row.source)
    return table


def _quantized(board: BoardFacts) -> tuple[str, str]:
    if board.measured is not None:
        values = board.measured
        span = figures.span(figures.percent, values.top1_low, values.top1_high)
        source = f"the maker's quantizer, n = {values.n}, 95 %: {span}"
        return figures.percent(values.top1), source
    if board.predicted is not None and board.predicted.top1 is not None:
        source = f"prediction, n = {board.predicted.n}"
        return figures.percent(board.predicted.top1), source
    return figures.ABSENT, "not measured"


def _single(board: BoardFacts) -> tuple[str, str]:
    row = board.single or board.estimate
    if row is None or row.latency_ms is None:
        return figures.ABSENT, "not measured"
    return figures.ms(row.latency_ms), _source(row)


def _rate(board: BoardFacts) -> tuple[str, str]:
    for row in (board.many, board.single, board.estimate):
        if row is not None and row.fps is not None:
            return figures.rate(row.fps), _source(row)
    return figures.ABSENT, "not measured"


def _source(row: BoardLatency) -> str:
    return f"{row.source}, no interval"
