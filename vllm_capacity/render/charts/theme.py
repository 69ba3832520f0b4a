"""The look of charts, and how they are displayed offline.

Colors are CSS variables with fallbacks, so that one picture suits light, dark, print and a page
without scripts. They work only for constant colors and ordinal ranges: interpolated scales and
canvas need real colors (the renderer is always SVG).

Why a custom renderer: JupyterLab supports at most Vega 5, but not Altair 6's Vega-Lite 6; Altair's
default loads its scripts from a network, and its HTML lets a `</script>` in the data break out. So
Lab gets a chart as compiled Vega, which its older runtime can draw; a report run gets Vega-Lite,
because the page has its own runtime.
"""

from __future__ import annotations

import altair as alt
from altair.utils import schemapi

from vllm_capacity.render.report import CHART_MIME, CHART_NOTES, VEGALITE_VERSION, is_for_page

VegaSpec = dict[str, object]
"""A part of a Vega or Vega-Lite specification, or of its metadata: JSON."""

LAB_MIME = "application/vnd.vega.v5+json"

INK = "var(--ink, var(--jp-content-font-color1, #1a1a1a))"
SOFT = "var(--soft, var(--jp-content-font-color2, #555555))"
LINE = "var(--line, #8a8a8a)"
GRID = "var(--grid, var(--jp-border-color3, #e6e6e6))"
SHADE = "var(--shade, var(--jp-layout-color2, #ececec))"
LOAD = "var(--load, #0072B2)"
LIMIT = "var(--limit, #D55E00)"
COST = "var(--cost, #009E73)"
KV = "var(--kv, #CC79A7)"
PREFILL = "var(--prefill, #E69F00)"
LATENCY_COLORS = (LOAD, SOFT, KV, PREFILL)
"""Colors of latencies that share a chart, in the order of their targets."""
SECOND = "var(--second, #56B4E9)"
PAPER = "var(--paper, var(--jp-layout-color0, #ffffff))"
LEFT_PIXELS = 46  # from the picture's left edge to the plot
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_AXIS: VegaSpec = {
    "labelColor": SOFT,
    "titleColor": SOFT,
    "labelFont": FONT,
    "titleFont": FONT,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "domainColor": LINE,
    "tickColor": LINE,
    "gridColor": GRID,
}

CONFIG: VegaSpec = {
    "background": None,
    "font": FONT,
    "padding": {"left": 4, "top": 4, "right": 16, "bottom": 4},
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisX": {"grid": False, "labelAngle": 0, "labelOverlap": True, "labelFlush": False},
    # The title is horizontal above the axis, because rotated text is hard to read. All plots start
    # at the same left edge, so that charts over time line up.
    "axisY": {
        "minExtent": LEFT_PIXELS,
        "maxExtent": LEFT_PIXELS,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": -LEFT_PIXELS,
        "titleY": -10,
        "tickCount": 5,
        "domain": False,
        "ticks": False,
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "titleColor": SOFT,
        "labelColor": INK,
        "labelFont": FONT,
        "labelFontSize": 12,
        "labelLimit": 320,
        "symbolSize": 100,
        "offset": 24,  # clear of the y axis title
        "layout": {"top": {"anchor": "start"}},
    },
    "title": {
        "anchor": "start",
        "color": INK,
        "subtitleColor": SOFT,
        "font": FONT,
        "subtitleFont": FONT,
        "fontSize": 16,
        "subtitleFontSize": 13,
        "subtitlePadding": 6,
        "offset": 14,
    },
    "text": {"font": FONT, "fontSize": 12, "color": INK},
}


@alt.theme.register("vllm-capacity", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    return {"config": CONFIG}  # type: ignore[typeddict-item]


def for_page(spec: VegaSpec, **_: object) -> tuple[VegaSpec, VegaSpec]:
    """The MIME bundle of a chart in a report run: Vega-Lite, drawn by the page."""
    return {CHART_MIME: spec, "text/plain": _text(spec)}, {}


def page_bundle(chart: alt.TopLevelMixin, **_: object) -> object:
    """The MIME bundle of a chart in a report run, without validation if it is a built-in chart.

    The tests validate each built-in chart; doing it again takes a quarter of the drawing time.
    """
    usermeta = getattr(chart, "usermeta", None)
    if not isinstance(usermeta, dict) or CHART_NOTES not in usermeta:
        return chart._repr_mimebundle_()
    return for_page(chart.to_dict(validate=False))


def for_lab(spec: VegaSpec, **_: object) -> tuple[VegaSpec, VegaSpec]:
    """The MIME bundle of a chart in JupyterLab: Vega 5, drawn by Lab itself, offline."""
    import vl_convert

    vega = vl_convert.vegalite_to_vega(spec, vl_version=VEGALITE_VERSION)
    vega["$schema"] = "https://vega.github.io/schema/vega/v5.json"
    vega["background"] = "transparent"  # Lab's dark theme would put a gray under the chart
    vega["usermeta"] = {"embedOptions": {"renderer": "svg", "actions": False}}
    return {LAB_MIME: vega, "text/plain": _text(spec)}, {}


def _text(spec: VegaSpec) -> str:
    """The title and the caption, for readers without pictures."""
    title = spec.get("title") or "A chart"
    if not isinstance(title, dict):
        return str(title)
    caption = title.get("subtitle") or ""
    return f"{title.get('text', '')} {caption if isinstance(caption, str) else ' '.join(caption)}"


def enable() -> None:
    """Set up Altair: this package's theme, and the renderer for the current environment.

    In a report run a chart is validated when it is shown, instead of each part when it is created;
    built-in charts are not validated again.
    """
    alt.theme.enable("vllm-capacity")
    alt.renderers.register("vllm-capacity-page", for_page)
    alt.renderers.register("vllm-capacity-lab", for_lab)
    alt.renderers.enable(f"vllm-capacity-{'page' if is_for_page() else 'lab'}")
    if is_for_page():
        from IPython import get_ipython  # there in a kernel; slow to import elsewhere

        schemapi.disable_debug_mode()
        if (shell := get_ipython()) is not None:
            bundles = shell.display_formatter.mimebundle_formatter
            bundles.for_type(alt.TopLevelMixin, page_bundle)


enable()
