"""Examples of each command's use for `--help`: lines to type, with your own names."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "alerts": (
        "alerts monday --over all --usd-per-hour 1.64 --above cost=2 --below headroom=0.2",
        "alerts --alertmanager http://alertmanager:9093 --notify 'slack://${SLACK}/#gpus'",
    ),
    "compare": (
        "compare before after --usd-per-hour 1.64",
        "compare week@..2026-11-24 week@2026-11-25.. --json",
    ),
    "completion": ("completion bash --install",),
    "config": ("config check",),
    "cost": ("cost monday --by model --price 'A100-80GB RunPod secure, on-demand 2025'",),
    "dashboard": ("dashboard --usd-per-hour 1.64 --out vllm-dashboard.json",),
    "doctor": ("doctor --vllm http://gpu-1:8000/metrics --collector none",),
    "export": (
        "export monday --to markdown --usd-per-hour 1.64",
        "export monday --to focus --usd-per-hour 1.64 --out monday.csv",
        "export reports/ --to focus --out november.csv",
    ),
    "facts": ("facts gpus H100",),
    "figures": (
        "figures monday --usd-per-hour 1.64",
        "figures monday --start 2026-11-24T08:00 --end 2026-11-24T12:00 --slo-ttft 2 --json",
    ),
    "fit": ("fit results/ --next", "fit loads.csv --at 32 --json"),
    "forecast": ("forecast requests.csv --column requests --horizon 48h",),
    "gpus": ("gpus H100",),
    "init": ("init --from http://prometheus:9090 --usd-per-hour 1.64 --keep 30d",),
    "model": ("model openai/gpt-oss-20b",),
    "models": ("models llama",),
    "plan": ("plan monday --gpu A100-80GB-PCIe --usd-per-hour 1.64 --slo-ttft 2",),
    "prices": ("prices A100 RunPod",),
    "proxy": ("proxy --upstream http://gpu-1:8000 --listen 127.0.0.1:9101",),
    "pull": (
        "pull --from http://prometheus:9090 --last 24h --to monday",
        "pull --from https://parseable.example.com --stream vllm_metrics --last 24h --to monday",
    ),
    "report": (
        "report monday --price 'A100-80GB RunPod secure, on-demand 2025'",
        "report --from http://prometheus:9090 --last 24h --usd-per-hour 1.64 --keep 30d",
        "report after --against before --usd-per-hour 1.64",
    ),
    "reprice": ("reprice reports/2026-11-27.html --usd-per-hour 1.20",),
    "rollup": (
        "rollup data/windows/july --workers 8",
        "rollup /shared/july --on ray://head:10001",
        "rollup data/windows/july --to s3://telemetry/july",
        "rollup http://prometheus:9090 --last 30d --to s3://telemetry/july --on ray",
        "rollup s3://parseable --stream vllm_metrics --last 7d --to data/windows/week",
    ),
    "rules": ("rules --usd-per-hour 1.64 --slo-ttft 2 --above cost=3 --out vllm-rules.yml",),
    "schedule": ("schedule cron --at 05:30 --install", "schedule kubernetes --kustomize base/"),
    "scrape": ("scrape http://gpu-1:8000 http://gpu-2:8000 --every 2s --for 10m --to monday",),
    "simulate": ("simulate kv-bound --to made-up",),
    "sql": ("sql",),
    "stack": ("stack init",),
    "tenants": ("tenants monday --usage spend_logs.csv --usd-per-hour 1.64",),
    "traces": ("traces --last 1h",),
    "watch": (
        "watch http://gpu-1:8000 http://gpu-2:8000 --usd-per-hour 1.64",
        "watch http://prometheus:9090 --match '{namespace=\"team-a\"}' --once --json",
    ),
    "whatif": (
        "whatif --model openai/gpt-oss-20b --from-gpu A100-80GB-PCIe --to-gpu H100-any "
        "--output-tokens-per-second 2400 --input-tokens 1000 --output-tokens 200 --clients 32",
    ),
    "windows": ("windows",),
}
