"""Pictures, JSON and an HTML page from the results of a run.

Everything here is a function from plain results to a file; nothing trains, and nothing knows a trainer. matplotlib and
jinja2 (``pip install 'pymtg[report]'``) are imported when a picture or a page is made.
"""

from __future__ import annotations

from pymtg.report.assignment import save_assignment
from pymtg.report.content import Curve, GroupTable, Report, Stage
from pymtg.report.data_maps import save_data_map
from pymtg.report.files import check_writable, json_ready, save_bytes, save_json, save_text
from pymtg.report.heatmap import save_memberships
from pymtg.report.html import render_html, save_html
from pymtg.report.wording import DMTG_WORDING, STG_WORDING, Wording

__all__ = [
    "DMTG_WORDING",
    "STG_WORDING",
    "Curve",
    "GroupTable",
    "Report",
    "Stage",
    "Wording",
    "check_writable",
    "json_ready",
    "render_html",
    "save_assignment",
    "save_bytes",
    "save_data_map",
    "save_html",
    "save_json",
    "save_memberships",
    "save_text",
]
