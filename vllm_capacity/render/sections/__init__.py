"""The tables and sentences of a page, one module per question: `vc.tables` in a notebook.

Each function takes an analysis or a plan and returns an object that JupyterLab, a page and a
terminal can show.
"""

from vllm_capacity.render.sections.choice import choice_text
from vllm_capacity.render.sections.claim import (
    claim_at_prices,
    claim_table,
    claim_verdict,
    gpu_use_table,
    implied_price,
)
from vllm_capacity.render.sections.comparison import (
    change_table,
    comparison_verdict,
    reason_table,
)
from vllm_capacity.render.sections.cost import (
    bill_table,
    break_even_table,
    cost_table,
    cost_verdict,
    first_changes,
    groups_table,
    other_prices,
)
from vllm_capacity.render.sections.fleet import engine_table, model_table
from vllm_capacity.render.sections.header import (
    definitions,
    kept_use,
    provenance,
    tiles,
    title_line,
    verdict,
)
from vllm_capacity.render.sections.invoice import invoice_by_file
from vllm_capacity.render.sections.latency import (
    failure_table,
    latency_breakdown,
    latency_table,
    latency_verdict,
    slo_table,
    traffic_table,
)
from vllm_capacity.render.sections.plan import (
    arithmetic_text,
    forecast_table,
    gpu_table,
    plan_verdict,
    queue_check,
    rejected_table,
    runway_table,
    savings_table,
    sensitivity_table,
    sizing_table,
)
from vllm_capacity.render.sections.quality import (
    capture_verdict,
    captures_compared,
    interruption_table,
    loss_table,
    quality_table,
    scrape_table,
)
from vllm_capacity.render.sections.saturation import (
    capacity_table,
    extrapolation_table,
    oversaturation,
    regime_table,
    saturation_verdict,
)
from vllm_capacity.render.sections.tenants import adapter_table, tenant_table, tenants_by_log
from vllm_capacity.render.sections.weeks import days_text
from vllm_capacity.render.tables import text
from vllm_capacity.verdicts.cost.comparisons import Claim

__all__ = [
    "Claim",
    "adapter_table",
    "arithmetic_text",
    "bill_table",
    "break_even_table",
    "capacity_table",
    "capture_verdict",
    "captures_compared",
    "change_table",
    "choice_text",
    "claim_at_prices",
    "claim_table",
    "claim_verdict",
    "comparison_verdict",
    "cost_table",
    "cost_verdict",
    "days_text",
    "definitions",
    "engine_table",
    "extrapolation_table",
    "failure_table",
    "first_changes",
    "forecast_table",
    "gpu_table",
    "gpu_use_table",
    "groups_table",
    "implied_price",
    "interruption_table",
    "invoice_by_file",
    "kept_use",
    "latency_breakdown",
    "latency_table",
    "latency_verdict",
    "loss_table",
    "model_table",
    "other_prices",
    "oversaturation",
    "plan_verdict",
    "provenance",
    "quality_table",
    "queue_check",
    "reason_table",
    "regime_table",
    "rejected_table",
    "runway_table",
    "saturation_verdict",
    "savings_table",
    "scrape_table",
    "sensitivity_table",
    "sizing_table",
    "slo_table",
    "tenant_table",
    "tenants_by_log",
    "text",
    "tiles",
    "title_line",
    "traffic_table",
    "verdict",
]
