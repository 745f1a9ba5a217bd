"""The verb `chart`: a result as a picture."""

from __future__ import annotations

from repzoo.errors import InputError
from repzoo.quant.search.gate import QuantReport
from repzoo.report.charts import Chart
from repzoo.report.stage_chart import stages


def chart(report: QuantReport) -> Chart:
    """How noisy each layer was in every stage of a quantization; Jupyter shows it as a picture.

    report  of `quantize`, as in `int8.report`

    Raises:
        InputError: a report without the noise of layers, as other quantizers leave it.
    """
    if not isinstance(report, QuantReport):
        raise InputError(
            f"chart takes the report of repzoo.quantize, such as int8.report; got "
            f"{type(report).__name__}"
        )
    if not any(candidate.layers for candidate in report.candidates):
        raise InputError(
            "this report does not say how noisy each layer is: only repzoo's own quantizer "
            "measures that; quantize without recipe="
        )
    return Chart(stages(report))
